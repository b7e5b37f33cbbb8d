"""What people bring, to the end: built, published, rolled out, and answered by a board with as many rows as there are."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import detectors
import numpy as np
import onnxruntime as ort
import pytest
import torch
from agent_support import made
from field_support import Board, Field

from edgekit import bundle

pytestmark = [pytest.mark.slow, pytest.mark.proof]


def edgekit(*words: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def built(folder: Path, name: str, source: Path, *words: str) -> Path:
    """The bundle that `edgekit build` makes of data that lie beside."""
    edgekit(
        "build", source, "--name", name, "--version", "1.0.0", "--calibration", folder / "calib.npz", "--evaluation",
        folder / "eval.npz", "--target", made.PROFILE, "--recipe", "onnxruntime/fp32", "--out", folder / "dist",
        "--accept-uncertain", "--jobs", "0", "--no-cache", *words,
    )  # fmt: skip
    (path,) = (folder / "dist").glob("*.edgekit")
    return path


def answer(board: Board, name: str, **inputs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays that a board's HTTP API gives, and the answer's parameters."""
    types = {"float32": "FP32", "int64": "INT64"}
    body = {
        "inputs": [
            {
                "name": key,
                "shape": list(array.shape),
                "datatype": types[str(array.dtype)],
                "data": array.ravel().tolist(),
            }
            for key, array in inputs.items()
        ]
    }
    told = made.Client(board.agent.port).post(f"/v2/models/{name}/infer", body)
    assert told.status == 200, told.body
    given = told.json
    found = {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in given["outputs"]}
    return found, given.get("parameters", {})


def shapes(board: Board, name: str) -> dict[str, list[int]]:
    said = made.Client(board.agent.port).get(f"/v2/models/{name}").json
    return {one["name"]: one["shape"] for one in said["outputs"]}


def rolled_out(field: Field, board: Board, name: str, path: Path, **inputs: Any) -> None:
    """Published, and rolled out under a gate that wants answers: the board is asked until the rollout is complete."""
    field.operator.types("publish", path)
    rollout = field.operator.rolls_out(f"{name}@1.0.0", "site=field", "--stages", "100%")
    field.wait(lambda: board.runs("1.0.0", name), f"{name} is served")

    def is_complete() -> bool:
        answer(board, name, **inputs)
        return field.client.rollout(rollout).status == "completed"

    field.wait(is_complete, f"{name} is rolled out")


@pytest.mark.timeout(1800)
def test_a_board_answers_with_as_many_boxes_as_a_detector_finds(field: Field, tmp_path: Path) -> None:
    source = detectors.model("rows", tmp_path / "detector.onnx")
    for name, count, seed in (("calib", 16, 1), ("eval", 96, 2)):
        np.savez(tmp_path / f"{name}.npz", x=detectors.pictures(count, seed))
    path = built(tmp_path, "detector", source)
    (one,) = bundle.read(path).manifest.sets or ()
    assert f"detections: float32 ?x6, up to {one.bound} rows" in edgekit("inspect", path)

    board = field.board("north", deployments=("detector",))
    rolled_out(field, board, "detector", path, x=detectors.pictures(1, 3)[0])
    assert shapes(board, "detector") == {"detections": [-1, 6]}
    session = ort.InferenceSession(str(source))
    lengths = set()
    crowd = np.zeros((1, 2, detectors.SIZE, detectors.SIZE), np.float32)
    crowd[..., :8, :8] = crowd[..., 16:24, 16:24] = crowd[..., 24:, :8] = 1.0
    for picture in (np.zeros_like(crowd), crowd, *detectors.pictures(12, 5)):
        (wanted,) = session.run(None, {"x": picture})
        found, told = answer(board, "detector", x=picture)
        np.testing.assert_allclose(found["detections"], wanted[: one.bound], atol=1e-4)
        assert told == ({"rows_cut": True} if len(wanted) > one.bound else {})
        lengths.add(len(wanted))
    assert 0 in lengths
    assert max(lengths) >= 6
    assert len(lengths) > 3


class Finder(torch.nn.Module):
    """Whole numbers of any batch and length: which words of a sentence count, as many as there are, and their mean."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = torch.nn.Embedding(50, 16), torch.nn.Linear(16, 5)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        counted = mask.unsqueeze(-1).to(torch.float32)
        mean = (self.words(ids) * counted).sum(1) / counted.sum(1).clamp(min=1)
        return {"scores": self.head(mean).softmax(-1), "where": torch.nonzero((ids > 40) & (mask > 0))}


@pytest.mark.timeout(1800)
def test_a_board_serves_a_program_of_open_dimensions_and_whole_numbers(field: Field, tmp_path: Path) -> None:
    net = Finder().eval()
    batch, steps = torch.export.Dim("batch"), torch.export.Dim("steps", min=2, max=64)
    example = (torch.randint(0, 50, (2, 12)), torch.ones(2, 12, dtype=torch.int64))
    program = torch.export.export(net, example, dynamic_shapes=({0: batch, 1: steps},) * 2)
    torch.export.save(program, tmp_path / "finder.pt2")
    rng = np.random.default_rng(0)
    for name, count in (("calib", 16), ("eval", 96)):
        mask = (np.arange(16) < rng.integers(3, 17, count)[:, None, None]).astype(np.int64)
        np.savez(tmp_path / f"{name}.npz", ids=rng.integers(0, 50, (count, 1, 16)), mask=mask)
    path = built(tmp_path, "finder", tmp_path / "finder.pt2", "--shape", "ids=1,16", "--shape", "mask=1,16")
    assert "where: int64 ?x2, up to " in edgekit("inspect", path)

    board = field.board("south", deployments=("finder",))
    sentence = {name: np.ones((1, 16), np.int64) for name in ("ids", "mask")}
    rolled_out(field, board, "finder", path, **sentence)
    assert shapes(board, "finder") == {"scores": [1, 5], "where": [-1, 2]}
    for count in (0, 1, 3, 8):
        ids = np.zeros((1, 16), np.int64)
        ids[0, :count] = 41 + np.arange(count)
        mask = np.ones((1, 16), np.int64)
        found, _ = answer(board, "finder", ids=ids, mask=mask)
        assert found["where"].tolist() == [[0, place] for place in range(count)]
        wanted = net(torch.from_numpy(ids), torch.from_numpy(mask))["scores"].detach().numpy()
        np.testing.assert_allclose(found["scores"], wanted, atol=1e-5)
