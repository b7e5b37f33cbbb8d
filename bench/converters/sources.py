"""The sources' matrix: small nets in every form that models come in, built for one profile by all recipes.

    python bench/converters/sources.py --json matrix.json

`forms.py` has the forms. A row has the share of digits that its source gets right (of a detector, its F1 against itself), and
by how much each recipe differs on the same samples. In brackets stands what the contract refuses; after the table stands
why there is none of an engine.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from forms import FORMS, Form, LeftOut, Workshop

import edgekit
from edgekit.errors import EdgeKitError

ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "litert": "LiteRT"}
# What a candidate may lose; beyond it stands in brackets.
LIMIT = 0.03
_HEADER = f"| form | source | {' | '.join(ENGINES.values())} | picked |\n|---|---|---|---|---|---|"


def built(form: Form, folder: Path) -> dict[str, Any]:
    """What `edgekit build --json` writes; what was said instead, as `error`, where there is no build."""
    files = {}
    for key, arrays in (("calibration", form.calibration), ("evaluation", form.evaluation)):
        files[key] = folder / f"{key}.npz"
        is_judged = form.labels is not None and key == "evaluation"
        np.savez(files[key], **arrays, **({"labels": form.labels} if is_judged else {}))  # type: ignore[arg-type]
    try:
        result = edgekit.build(
            form.source, targets="x86-64-v3", inputs={name: array.shape[1:] for name, array in form.calibration.items()},
            calibration=files["calibration"], evaluation=files["evaluation"], max_accuracy_drop=LIMIT,
            accept_uncertain=True, must_meet=False, out=folder / "dist", progress=False,
            # Loading the converters takes most of a worker's time here.
            jobs=0,
        )  # fmt: skip
    except EdgeKitError as error:
        return {"error": str(error), "candidates": []}
    return dict(result.document)


def cell(candidates: list[dict[str, Any]], engine: str) -> str:
    parts = []
    for one in candidates:
        name = one["recipe"].partition("/")[2]
        # Repaired ones have their layers in the name.
        if (
            not one["recipe"].startswith(engine)
            or one["status"] == "failed"
            or not one["accuracy"]
            or "+" in name
        ):
            continue
        text = f"{name} {change(one['accuracy'])}"
        parts.append(f"({text})" if one["status"] == "refused" else text)
    return ", ".join(parts) or "none"


def change(accuracy: dict[str, Any]) -> str:
    """Against the source on the same samples; a candidate that is slower is judged on some of them only."""
    change = round(accuracy["shipped"] - accuracy["source"], 3)
    return "0" if not change else f"{change:+.3f}".replace("0.", ".", 1)


def row(what: str, told: dict[str, Any]) -> str:
    candidates = told["candidates"]
    picked = next((f"`{one['recipe']}`" for one in candidates if one["status"] == "picked"), "none")
    cells = [cell(candidates, engine) for engine in ENGINES]
    sources = [profile["source_accuracy"]["value"] for profile in told.get("profiles", ())]
    source = f"{sources[0]:.3f}".removeprefix("0") if sources else ""
    return f"| {what} | {source} | {' | '.join(cells)} | {picked} |"


def reasons(what: str, told: dict[str, Any]) -> list[str]:
    """Why there is none of an engine, and what failed."""
    if told.get("error"):
        return [f"{what}: {told['error'].strip()}"]
    found = [
        f"{what}: {one['recipe']}: {one['status']}: {one['reason']}"
        for one in told["candidates"]
        if one["status"] == "failed" or not one["accuracy"]
    ]
    tried = {one["recipe"].partition("/")[0] for one in told["candidates"]}
    return found + [f"{what}: {engine}: not tried" for engine in ENGINES if engine not in tried]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write what each build told there")
    parser.add_argument(
        "--only", action="append", default=[], help="forms with this in their name; may be repeated"
    )
    arguments = parser.parse_args()
    everything: dict[str, dict[str, Any]] = {}
    said: list[str] = []
    print(_HEADER, flush=True)
    with tempfile.TemporaryDirectory() as name:
        shop = Workshop(Path(name))
        for what, make in FORMS.items():
            if arguments.only and not any(only in what for only in arguments.only):
                continue
            begun = time.monotonic()
            try:
                form = make(shop)
            except LeftOut as why:
                said.append(f"{what}: left out: {why}")
                continue
            everything[what] = built(form, shop.folder)
            print(row(what, everything[what]), flush=True)
            print(f"{what}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
            said += reasons(what, everything[what])
            if arguments.json:
                arguments.json.write_text(json.dumps(everything, indent=1))
    print("\n" + "\n".join(f"- {line}" for line in said))


if __name__ == "__main__":
    main()
