"""Self-test data within its budget tells as much as it did: damage to bundles whose inputs and outputs are large."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from edgekit import bundle, selftest
from edgekit.bundle import Bundle
from edgekit.engines import LoadedBundle
from edgekit.manifest import Manifest, Step


class Detector(nn.Module):
    """Pictures of 320x320 in, boxes and scores joined in one output."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 8, 16, 32, 32)
        self.body = nn.Sequential(
            *(
                layer
                for inside, outside in pairwise(widths)
                for layer in (nn.Conv2d(inside, outside, 3, 2, 1), nn.ReLU())
            )
        )
        self.boxes, self.scores = nn.Conv2d(32, 16, 1), nn.Conv2d(32, 320, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        seen = self.body(image)
        boxes, scores = self.boxes(seen).reshape(1, 4, -1), self.scores(seen).reshape(1, 80, -1)
        return torch.cat([boxes * 100, torch.sigmoid(scores * 5)], 1)


class Transcription(nn.Module):
    """Two seconds of sound in, three large outputs that are rarely active."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(1, 32, 1023, 255, 511), nn.ReLU(), nn.Conv1d(32, 32, 9, 1, 4), nn.ReLU()
        )
        self.heads = nn.ModuleList(nn.Conv1d(32, size, 1) for size in (264, 88, 88))

    def forward(self, audio: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen = self.body(audio)
        return tuple(torch.sigmoid(20 * head(seen).transpose(1, 2) - 4) for head in self.heads)


def pictures(count: int) -> np.ndarray:
    """Raw, H x W x C, as a camera gives them."""
    chance = np.random.default_rng(count)
    coarse = chance.integers(0, 256, (count, 10, 10, 3))
    return coarse.repeat(32, 1).repeat(32, 2).astype(np.uint8)


def sounds(count: int) -> np.ndarray:
    chance = np.random.default_rng(count)
    time = np.arange(43844) / 22050
    tones = [
        sum(
            np.sin(2 * np.pi * chance.uniform(80, 2000) * time) * np.exp(-chance.uniform(0, 3) * time)
            for _ in range(5)
        )
        for _ in range(count)
    ]
    return np.stack(tones).astype(np.float32)[:, None]


STEPS = (
    Step("normalize", {"mean": [120.0, 110.0, 100.0], "std": [60.0, 55.0, 50.0], "axis": -1}),
    Step("transpose", {"axes": [2, 0, 1]}),
)
CASES: dict[str, tuple[type[nn.Module], str, tuple[int, ...], Callable[[int], np.ndarray]]] = {
    "detector": (Detector, "image", (1, 3, 320, 320), pictures),
    "transcription": (Transcription, "audio", (1, 1, 43844), sounds),
}


@pytest.fixture(scope="module", params=CASES)
def shipped(request, run_build, tmp_path_factory) -> Bundle:
    """A bundle of each, int8."""
    kind, name, shape, make = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    torch.onnx.export(
        kind().eval(), (torch.zeros(shape),), str(folder / "model.onnx"), dynamo=False, opset_version=17,
        input_names=[name],
    )  # fmt: skip
    np.savez(folder / "calib.npz", **{name: make(16)})
    np.savez(folder / "eval.npz", **{name: make(70)})
    (folder / "edgekit.toml").write_text(
        f"""
        [model]
        name = "{request.param}"
        version = "1.0.0"
        source = "model.onnx"
        [data]
        calibration = "calib.npz"
        evaluation = "eval.npz"
        metric = "agreement"
        [contract]
        max_accuracy_drop = 0.9
        [targets.x86-64-v3]
        """
        + "".join(
            f"\n[[preprocess.{name}]]\nop = '{step.op}'\n"
            + "".join(f"{key} = {json.dumps(value)}\n" for key, value in step.args.items())
            for step in (STEPS if name == "image" else ())
        )
    )
    result = run_build(
        "--project", folder / "edgekit.toml", "--recipe", "onnxruntime/static-int8", "--out", folder / "dist"
    )
    assert result.exit_code == 0, result.output
    return bundle.read(next((folder / "dist").glob("*.edgekit")))


@pytest.fixture
def folder(shipped: Bundle, tmp_path: Path) -> Path:
    shipped.extract(tmp_path)
    return tmp_path


def passes(manifest: Manifest, folder: Path) -> bool:
    loaded = LoadedBundle(manifest, folder)
    try:
        return selftest.check(manifest, loaded, folder).passed
    finally:
        loaded.close()


def changed(manifest: Manifest, folder: Path, which: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """One initializer whose name holds `which` is replaced."""
    path = folder / manifest.engine.model
    model = onnx.load(str(path))
    found = next(each for each in model.graph.initializer if which in each.name)
    array = numpy_helper.to_array(found)
    found.CopyFrom(numpy_helper.from_array(change(array).astype(array.dtype), found.name))
    onnx.save(model, str(path))


def test_it_weighs_what_it_may_and_passes(shipped: Bundle, folder: Path) -> None:
    sizes = {entry.path: entry.size for entry in shipped.manifest.files}
    data = sum(size for path, size in sizes.items() if path.startswith("selftest/"))
    assert data <= max(256_000, 0.15 * sizes[shipped.manifest.engine.model])
    assert shipped.manifest.selftest.samples >= 4
    assert shipped.manifest.format == 3
    assert passes(shipped.manifest, folder)


@pytest.mark.parametrize(
    "which", ["weight_scale", "weight_quantized", "scores.weight_scale", "heads.2.weight_scale"]
)
def test_a_corrupted_scale_or_weight_fails_also_of_the_last_head(
    which: str, shipped: Bundle, folder: Path
) -> None:
    """Scores are small beside boxes in pixels; of the transcription the last output has to be looked at."""
    if ("scores" in which and shipped.manifest.name != "detector") or (
        "heads" in which and shipped.manifest.name == "detector"
    ):
        pytest.skip("a head of the other model")
    changed(
        shipped.manifest,
        folder,
        which,
        lambda array: array * 1.25 if "scale" in which else np.roll(array, 1, axis=0),
    )
    assert not passes(shipped.manifest, folder)


@pytest.mark.parametrize(
    "steps",
    [
        (Step("normalize", {**STEPS[0].args, "std": [60.0, 55.0, 75.0]}), STEPS[1]),
        (Step("flip_channels", {}), *STEPS),
        (STEPS[0], Step("transpose", {"axes": [2, 1, 0]})),
    ],
    ids=["a std", "channels flipped", "height and width swapped"],
)
def test_a_wrong_constant_or_channel_order_fails(
    steps: tuple[Step, ...], shipped: Bundle, folder: Path
) -> None:
    if "image" not in shipped.manifest.preprocess:
        steps = (Step("scale", {"factor": 1.25}),)
        wrong = msgspec.structs.replace(shipped.manifest, preprocess={"audio": steps})
    else:
        wrong = msgspec.structs.replace(shipped.manifest, preprocess={"image": steps})
    assert not passes(wrong, folder)
