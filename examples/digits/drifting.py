"""The demo's last act: inputs drift, devices tell, samples come back, and a release that was trained on them goes out.

The digits turn dark on light. They are the same pictures, and the good release, which was as good as it was judged to
be, hardly gets one right, and is sure of most: no error, no slow answer, no low confidence tells. Their drift does.

What is measured is kept apart from what is learnt: samples come from the first pictures of the evaluation set only, one
half of them is trained on and the other judges the build; accuracy before and after is of pictures that no sample is of.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from agents import Sample, Traffic
from digits import WHITEST, evaluation, inverted
from saying import console, expect

from edgekit.samples import Samples, dump_npz, load_npz

if TYPE_CHECKING:
    from demo import Demo

HERE = Path(__file__).parent
VERSION = "5.0.0"
# Pictures of the evaluation set that samples may come from; the others measure.
FIELD = 400
# Of all devices; some bring the same picture. Half of the different ones judge the build.
MOST = 320
SHIFT = 0.2
# Half an hour of windows, which are of two seconds here, and more where a device is not sure.
PATIENCE_S = 400


def act(demo: "Demo", traffic: Traffic) -> None:
    """Raises: SystemExit at the first thing that is not as promised."""
    console.rule("9  the digits turn dark on light: the inputs drift, and devices tell")
    pictures = list(evaluation())
    measuring = list(inverted(pictures[FIELD:]))
    usual = demo.classify(traffic, "2.0.0")
    demo.wait(
        lambda: all(index is not None and index < SHIFT for index in _drift(demo)),
        "every device finds its inputs to be what the release was judged on",
        PATIENCE_S,
    )
    traffic.switch(measuring)
    fallen = demo.classify(traffic, "2.0.0")
    expect(
        fallen < usual / 2, f"digits got right by 2.0.0: {usual:.1%} as they were, {fallen:.1%} dark on light"
    )
    traffic.switch(list(inverted(pictures[:FIELD])))
    demo.wait(
        lambda: any(index is not None and index > SHIFT for index in _drift(demo)),
        "a device says that its inputs drift",
        PATIENCE_S,
    )
    told = [f"{index:.2f}" if index is not None else "not known" for index in _drift(demo)]
    console.print(f"  index of the newest windows, device by device: {', '.join(told)}; the fleet says:")
    demo.call("drift")
    labelled, judging, raw = _samples(demo)
    traffic.switch(measuring)
    console.rule("10  release 5, trained on those samples, goes out")
    subprocess.run([sys.executable, HERE / "retrain.py", labelled], check=True)
    demo.build_one(
        VERSION, "retrained", (demo.profile,), "--calibration", raw, "--evaluation", judging,
        "--max-accuracy-drop", "0.05", "--recipe", "onnxruntime/fp32",
    )  # fmt: skip
    last = demo.roll_out(VERSION, "the retrained release goes out in stages")
    expect(last["status"] == "completed", "release 5 completed")
    demo.expect_all_run(VERSION)
    regained = demo.classify(traffic, VERSION)
    expect(
        regained > max(0.75, fallen),
        f"digits got right dark on light: {fallen:.1%} before, {regained:.1%} after",
    )
    said = [index for index in _drift(demo) if index is not None]
    expect(all(index < SHIFT for index in said), f"of drift from what release 5 was judged on: {_told(said)}")
    traffic.switch(pictures)
    still = demo.classify(traffic, VERSION)
    expect(still > 0.85, f"digits as they were before are got right still: {still:.1%}")


def _drift(demo: "Demo") -> list[float | None]:
    """The index of the input, of each device, as it said last; None from those that do not know."""
    return [
        device["deployments"]["digits"]["telemetry"]["drift"].get("inputs/x")
        for device in demo.ask("devices")
    ]


def _told(said: list[float]) -> str:
    return f"index {max(said):.2f} at most" if said else "no device knows yet"


def _samples(demo: "Demo") -> tuple[Path, Path, Path]:
    """Ask for samples, wait for them, and label them: those to train on, those to judge by, and all without labels."""
    demo.call(
        "samples", "collect", "digits", "--on", "site=lab", "--drifted", "--most", str(MOST), "--for", "1h"
    )
    demo.wait(lambda: demo.ask("samples", "list")[0]["samples"] >= MOST, f"{MOST} samples came", PATIENCE_S)
    collection = demo.ask("samples", "list")[0]["id"]
    out = demo.folder / "samples"
    demo.call("samples", "download", collection, "--out", out)
    reasons = {entry["about"]["reason"] for entry in json.loads((out / "index.json").read_text())}
    expect(reasons == {"drift"}, "each was kept because its device found drift")
    found = _labelled(load_npz(out / "raw.npz").inputs["x"])
    console.print(
        f"A person would label these; here the data set knows them: {len(found)} different pictures."
    )
    learnt, judging = out / "labelled.npz", out / "judging.npz"
    learnt.write_bytes(_archive(found[::2]))
    judging.write_bytes(_archive(found[1::2]))
    return learnt, judging, out / "raw.npz"


def _labelled(images: np.ndarray) -> list[Sample]:
    """Each picture of (N, 8, 8) once, with the digit that the data set has for it."""
    known = {_key(inputs["x"]): label for inputs, label in inverted(evaluation())}
    different = {_key(image): image for image in images}
    return [({"x": image.astype(np.float32)}, known[key]) for key, image in different.items()]


def _key(image: np.ndarray) -> bytes:
    return bytes(np.rint(np.clip(image, 0, WHITEST)).astype(np.uint8))


def _archive(samples: list[Sample]) -> bytes:
    labels = np.asarray([label for _, label in samples])
    return dump_npz(Samples({"x": np.stack([inputs["x"] for inputs, _ in samples])}, labels))
