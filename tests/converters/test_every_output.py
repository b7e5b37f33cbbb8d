"""A build keeps its word for every output, says which limit holds, and takes no labels that its source cannot answer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.local import opened

CALIBRATION, EVALUATION = 64, 600


class Heads(nn.Module):
    """Scores, and quantities behind a layer of which one channel is a thousand times its neighbours: the next layer takes
    that away again, and eight bits take the others with it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU())
        self.scores, self.wide, self.narrow = nn.Linear(8, 4), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 1)
        with torch.no_grad():
            self.wide.weight[0] *= 1e3
            self.wide.bias[0] = 4e3
            self.narrow.weight[:, 0] *= 1e-3

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = self.body(image)
        quantities = self.narrow(torch.relu(self.wide(seen))).mean((2, 3))
        return self.scores(seen.mean((2, 3))) * 8, quantities


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    torch.manual_seed(3)
    torch.onnx.export(
        Heads().eval(), (torch.zeros(1, 1, 16, 16),), str(folder / "heads.onnx"), dynamo=False, opset_version=17,
        input_names=["image"], output_names=["scores", "quantities"],
    )  # fmt: skip
    chance = np.random.default_rng(0)
    for name, count in (("calib", CALIBRATION), ("eval", EVALUATION)):
        images = chance.normal(size=(count, 1, 1, 1, 1)) + 0.6 * chance.normal(size=(count, 1, 1, 16, 16))
        np.savez(folder / f"{name}.npz", image=images.astype(np.float32))
    return folder


@pytest.fixture
def build(run_build: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    def run(model: Path, *words: str) -> tuple[Any, dict[str, Any]]:
        folder = model.parent
        out = run_build(
            model, "--name", "m", "--version", "1", "--calibration", folder / "calib.npz",
            "--evaluation", folder / "eval.npz", "--target", "x86-64-v3", "--out", tmp_path / "dist",
            "--json", tmp_path / "r.json", *words,
        )  # fmt: skip
        told = tmp_path / "r.json"
        return out, json.loads(told.read_text()) if told.exists() else {}

    return run


def test_an_output_that_the_metric_never_sees_is_mended_or_refused(heads, build, tmp_path):
    out, told = build(
        heads / "heads.onnx", "--metric", "agreement", "--max-accuracy-drop", "0.05",
        "--recipe", "onnxruntime/fp32", "--recipe", "onnxruntime/static-int8",
    )  # fmt: skip
    assert out.exit_code == 0, out.output
    found = {row["recipe"]: row for row in told["candidates"]}
    plain = found["onnxruntime/static-int8"]
    assert plain["accuracy"]["drop"] <= 0.05
    assert plain["status"] == "refused"
    assert "'quantities'" in plain["reason"]
    worst = {output["name"]: output for output in plain["outputs"]}["quantities"]
    assert not worst["holds"]
    assert worst["snr_db"] < 15
    with opened(tmp_path / "dist" / "m-1-x86-64-v3.edgekit") as here:
        source = build_source(heads / "heads.onnx")
        images = np.load(heads / "eval.npz")["image"][:64]
        wanted = np.stack([source({"image": image})[1] for image in images])
        have = np.stack([here.loaded.run({"image": image})["quantities"] for image in images])
    noise = float(((have - wanted) ** 2).sum())
    signal = float(((wanted - wanted.mean(axis=0)) ** 2).sum())
    assert noise * 10**1.5 < signal


def build_source(path: Path) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return lambda feed: session.run(None, feed)


def test_the_project_file_may_say_what_an_output_holds_and_how_much_of_it_must_stay(heads, build, tmp_path):
    project = tmp_path / "edgekit.toml"
    project.write_text(
        f"""
        [model]
        name = "m"
        version = "1"
        source = "{heads / "heads.onnx"}"
        [data]
        calibration = "{heads / "calib.npz"}"
        evaluation = "{heads / "eval.npz"}"
        metric = "agreement"
        [outputs.quantities]
        min_snr_db = 0
        [outputs.scores]
        kind = "values"
        [targets.x86-64-v3]
        """
    )
    out, told = build(heads / "heads.onnx", "--project", str(project), "--recipe", "onnxruntime/static-int8")
    rows = {output["name"]: output for output in told["candidates"][0]["outputs"]}
    assert rows["scores"]["kind"] == "values"
    assert rows["quantities"]["floor_db"] == 0
    assert "metric agreement says nothing of output 'scores'" in out.output + out.stderr
    project.write_text(project.read_text().replace("outputs.quantities", "outputs.quantity"))
    out, _ = build(heads / "heads.onnx", "--project", str(project), "--recipe", "onnxruntime/static-int8")
    assert out.exit_code == 2
    assert "outputs.quantity" in str(out.exception)


def test_without_a_limit_one_holds_and_is_told(digits, build):
    out, told = build(digits.folder / "model.onnx", "--recipe", "onnxruntime/fp32")
    assert out.exit_code == 0, out.output
    assert "no max_accuracy_drop given: 0.01 top1 holds (one point)" in out.output + out.stderr
    assert told["profiles"][0]["contract"]["max_accuracy_drop"] == 0.01


def test_a_source_that_can_make_nothing_of_the_labels_is_refused(digits, build, tmp_path):
    with np.load(digits.folder / "eval.npz") as data:
        np.savez(tmp_path / "eval.npz", x=data["x"], labels=data["labels"] + 1)
    out, _ = build(
        digits.folder / "model.onnx",
        "--evaluation",
        str(tmp_path / "eval.npz"),
        "--recipe",
        "onnxruntime/fp32",
    )
    assert out.exit_code == 2
    assert "top1 of the float source is" in str(out.exception)
    assert "labels - 1" in str(out.exception)
