"""Detectors with their suppression inside: as many rows as were found, compared as a set, bound in the manifest."""

import json
from pathlib import Path

import detectors
import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from converters.judge import fidelity, kinds
from converters.source.onnx_source import lengths_may_vary
from converters.work import lengths
from edgekit import bundle, loading, local, rows
from edgekit.errors import SourceError
from edgekit.rowset import RowSet

ROWS = RowSet({"detections": 0}, 16, (4.0, 4.0, 4.0, 4.0, 0.05, 0.0))


def found(count=40):
    """What a detector gives of so many pictures, padded, (N, 16, 6)."""
    made = []
    for index in range(count):
        rng = np.random.default_rng(index)
        size = int(rng.integers(0, 9))
        corner = rng.uniform(0, 300, (size, 2))
        made.append(
            np.concatenate(
                [corner, corner + rng.uniform(20, 60, (size, 2)), rng.uniform(0.3, 1, (size, 1)), rng.integers(0, 3, (size, 1))],
                axis=1,
            ).astype(np.float32)
        )  # fmt: skip
    return made


def padded(samples, name="detections", one=ROWS):
    return np.stack([rows.padded([one], {name: sample})[name] for sample in samples])


def verdict(judge, ours, theirs):
    """The judge's finding of a candidate."""
    digests = []
    for side in (ours, theirs):
        each = [fidelity.digest(judge, {judge.outputs[0]: sample[None]}) for sample in side]
        digests.append({name: np.stack([one[name][0] for one in each]) for name in each[0]})
    return fidelity.judged(judge, *digests)


def holds(told):
    return told.holds(0.99)


DAMAGES = {
    "the surest lost": lambda one: one[1:],
    "all lost": lambda one: one[:0],
    "moved by half their width": lambda one: one + np.array([20, 20, 20, 20, 0, 0], np.float32),
    "another class": lambda one: one + np.array([0, 0, 0, 0, 0, 1], np.float32),
    "given twice": lambda one: np.concatenate([one, one])[:16],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_candidate_that_loses_moves_or_renames_boxes_does_not_hold(damage):
    true = found()
    (judge,) = kinds.infer({"detections": padded(true)}, sets=[ROWS])
    assert judge.kind == "boxes"
    assert holds(verdict(judge, padded(one[::-1] for one in true), padded(true)))
    assert not holds(verdict(judge, padded(map(damage, true)), padded(true)))


PLACES = RowSet({"selected": 0}, 16, (0.0, 0.0, 0.0))
OF_PLACES = {
    "the last lost": lambda one: one[:-1],
    "neighbours instead": lambda one: one + 1,
    "another class": lambda one: one + np.array([0, 1, 0]),
}


@pytest.mark.parametrize("damage", OF_PLACES.values(), ids=OF_PLACES)
def test_rows_of_whole_numbers_are_a_set_too(damage):
    rng = np.random.default_rng(0)
    true = [np.stack([np.zeros(n), rng.integers(0, 3, n), 5 * rng.permutation(40)[:n]], 1).astype(np.int64) for n in range(16)]  # fmt: skip
    (judge,) = kinds.infer({"selected": padded(true, "selected", PLACES)}, sets=[PLACES])
    assert judge.kind == "rows"
    own = padded(true, "selected", PLACES)
    assert holds(verdict(judge, padded([one[::-1] for one in true], "selected", PLACES), own))
    assert not holds(verdict(judge, padded(map(damage, true), "selected", PLACES), own))


def test_outputs_of_one_set_are_judged_row_by_row():
    """A score beside the wrong place is no finding, though both outputs have all their values."""
    both = RowSet({"where": 1, "scores": 0}, 8, (0.0, 0.0, 0.05))
    rng = np.random.default_rng(1)
    true = [
        {"where": rng.integers(0, 99, (2, 5)), "scores": rng.uniform(0, 1, 5).astype(np.float32)}
        for _ in range(30)
    ]
    swapped = [{**one, "scores": one["scores"][::-1]} for one in true]
    sides = [
        {name: np.stack([rows.padded([both], one)[name] for one in side]) for name in both.axes}
        for side in (true, swapped)
    ]
    (judge,) = kinds.infer(sides[0], sets=[both])
    assert judge.outputs == ("where", "scores")

    def digested(side):
        each = [
            fidelity.digest(judge, {name: array[at : at + 1] for name, array in side.items()})
            for at in range(30)
        ]
        return {name: np.stack([one[name][0] for one in each]) for name in each[0]}

    true_digest, other = map(digested, sides)
    assert fidelity.judged(judge, true_digest, true_digest).figure == 1
    assert fidelity.judged(judge, other, true_digest).figure < 0.5


def test_only_what_can_follow_from_the_data_is_looked_for(digits, tmp_path):
    assert not lengths_may_vary(onnx.load(str(digits.folder / "model.onnx")))
    assert lengths_may_vary(onnx.load(str(detectors.model("rows", tmp_path / "m.onnx"))))


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        ([(2, 3), (3, 3)], 0),
        ([(2, 3), (2, 0)], 1),
        ([(2, 3), (2, 3)], None),
        ([(0, 4), (0, 4)], 0),
        ([(), ()], None),
    ],
)
def test_the_axis_that_changes_is_that_of_the_rows(shapes, told):
    assert lengths._axis("y", shapes, is_given=False) == told


@pytest.mark.parametrize(
    ("shapes", "told"), [([(2, 3), (3, 4)], "changes along axes 0, 1"), ([(2,), (2, 1)], "more axes")]
)
def test_a_shape_that_no_bundle_holds_is_refused(shapes, told):
    with pytest.raises(SourceError, match=told):
        lengths._axis("y", shapes, is_given=False)


def data(folder):
    np.savez(folder / "calib.npz", x=detectors.pictures(32, 1))
    np.savez(folder / "eval.npz", x=detectors.pictures(120, 2))


def test_a_detector_is_built_and_answers_with_as_many_rows_as_it_finds(run_build, tmp_path):
    """The whole way: bound in the manifest, a self-test that passes, answers of the file's own length."""
    path = detectors.model("rows", tmp_path / "detector.onnx")
    data(tmp_path)
    result = run_build(
        path, "--name", "d", "--version", "1", "--calibration", tmp_path / "calib.npz", "--evaluation",
        tmp_path / "eval.npz", "--target", "x86-64-v3", "--recipe", "onnxruntime/fp32", "--recipe", "litert/fp32",
        "--recipe", "onnxruntime/static-int8", "--out", tmp_path / "dist", "--json", tmp_path / "result.json",
        "--accept-uncertain",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    candidates = {
        one["recipe"]: one for one in json.loads((tmp_path / "result.json").read_text())["candidates"]
    }
    assert "NonMaxSuppression" in candidates["litert/fp32"]["reason"]
    assert candidates["onnxruntime/static-int8"]["status"] != "failed"
    (made,) = (tmp_path / "dist").glob("*.edgekit")
    manifest = bundle.read(made).manifest
    (one,) = manifest.sets
    assert one.axes == {"detections": 0}
    assert manifest.outputs[0].shape == (one.bound, 6)
    assert local.verify(made).passed
    session = ort.InferenceSession(str(path))
    with loading.load(made) as model:
        assert model.outputs[0].shape == (None, 6)
        seen = set()
        for picture in detectors.pictures(12, 5):
            (wanted,) = session.run(None, {"x": picture})
            np.testing.assert_allclose(model.predict(picture)["detections"], wanted, atol=1e-4)
            seen.add(len(wanted))
    assert 0 in seen
    assert len(seen) > 3
    damaged = _pushed(made, tmp_path)
    assert not local.verify(damaged).passed


def _pushed(made, folder):
    """The bundle with boxes that lie 5 pixels further right."""
    found = bundle.read(made)
    (folder / "files").mkdir()
    found.extract(folder / "files")
    target = folder / "files" / found.manifest.engine.model
    model = onnx.load(str(target))
    (anchors,) = [one for one in model.graph.initializer if list(one.dims) == [1, 49, 4]]
    moved = onnx.numpy_helper.to_array(anchors) + np.array([5, 0, 5, 0], np.float32)
    anchors.CopyFrom(onnx.numpy_helper.from_array(moved, anchors.name))
    onnx.save(model, str(target))
    files = {entry.path: folder / "files" / entry.path for entry in found.manifest.files}
    entries = tuple(bundle.file_entry(path, file) for path, file in files.items())
    bundle.write(folder / "pushed.edgekit", msgspec.structs.replace(found.manifest, files=entries), files)
    return folder / "pushed.edgekit"


@pytest.mark.proof
@pytest.mark.parametrize("form", detectors.FORMS)
def test_each_form_reaches_the_engines_that_run_it(form, run_build, tmp_path):
    path = detectors.model(form, tmp_path / "detector.onnx")
    data(tmp_path)
    recipes = (
        "onnxruntime/fp32",
        "onnxruntime/static-int8",
        "openvino/f32",
        "openvino/static-int8",
        "litert/fp32",
    )
    result = run_build(
        path, "--name", "d", "--version", "1", "--calibration", tmp_path / "calib.npz", "--evaluation",
        tmp_path / "eval.npz", "--target", "x86-64-v3", "--out", tmp_path / "dist", "--json", tmp_path / "r.json",
        "--accept-uncertain", *[word for recipe in recipes for word in ("--recipe", recipe)],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    told = {one["recipe"]: one for one in json.loads((tmp_path / "r.json").read_text())["candidates"]}
    assert {name for name, one in told.items() if one["status"] == "failed"} == {"litert/fp32"}
    assert told["openvino/f32"]["accuracy"]["shipped"] == 1


class Places(torch.nn.Module):
    """Where the first row is above 1, and the sum of all: on zeros it finds nothing."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"where": torch.nonzero(x[0] > 1.0), "total": x.sum()}


def told(folder):
    return {one["recipe"]: one for one in json.loads((folder / "r.json").read_text())["candidates"]}


def built(run_build, source, folder, *words):
    """The bundle and its candidates, of data in `folder`."""
    result = run_build(
        source, "--name", "m", "--version", "1", "--calibration", folder / "calib.npz", "--evaluation",
        folder / "eval.npz", "--target", "x86-64-v3", "--out", folder / "dist", "--json", folder / "r.json",
        "--accept-uncertain", "--max-accuracy-drop", "0.1", *words,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (made,) = (folder / "dist").glob("*.edgekit")
    assert local.verify(made).passed
    return made


def numbers(folder, shape, seed=0):
    rng = np.random.default_rng(seed)
    for name, count in (("calib", 40), ("eval", 120)):
        np.savez(folder / f"{name}.npz", x=rng.normal(size=(count, *shape)).astype(np.float32))


def test_a_program_that_gives_as_many_rows_as_it_finds_is_known_by_its_samples(run_build, tmp_path):
    """Names of a dict stay; on zeros and on small numbers it gives nothing, which its samples show to be no rule."""
    torch.export.save(torch.export.export(Places(), (torch.randn(1, 8),)), tmp_path / "places.pt2")
    numbers(tmp_path, (1, 8))
    made = built(run_build, tmp_path / "places.pt2", tmp_path, "--recipe", "onnxruntime/fp32")
    with loading.load(made) as model:
        assert [(spec.name, spec.shape) for spec in model.outputs] == [("where", (None, 1)), ("total", ())]
        x = np.array([[0, 2, 0, 3, 0, 0, 0, 5]], np.float32)
        assert model.predict(x)["where"].ravel().tolist() == [1, 3, 7]
        assert model.predict(-x)["where"].shape == (0, 1)


class Reader(torch.nn.Module):
    """Token ids and a mask, both whole numbers of any batch and length, to a dict of three."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.mix, self.head = (
            torch.nn.Embedding(50, 16),
            torch.nn.Linear(16, 16),
            torch.nn.Linear(16, 5),
        )

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = torch.relu(self.mix(self.words(ids))) * mask.unsqueeze(-1).to(torch.float32)
        mean = hidden.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return {"scores": self.head(mean).softmax(-1), "mean": mean, "length": mask.sum(1)}


@pytest.mark.proof
def test_a_program_of_open_dimensions_and_whole_numbers_reaches_every_engine(run_build, tmp_path):
    batch, steps = torch.export.Dim("batch"), torch.export.Dim("steps", min=2, max=64)
    example = (torch.ones(2, 12, dtype=torch.int64), torch.ones(2, 12, dtype=torch.int64))
    program = torch.export.export(Reader().eval(), example, dynamic_shapes=({0: batch, 1: steps},) * 2)
    torch.export.save(program, tmp_path / "reader.pt2")
    rng = np.random.default_rng(0)
    for name, count in (("calib", 40), ("eval", 120)):
        mask = (np.arange(16) < rng.integers(3, 17, count)[:, None, None]).astype(np.int64)
        np.savez(tmp_path / f"{name}.npz", ids=rng.integers(0, 50, (count, 1, 16)), mask=mask)
    words = ["--shape", "ids=1,16", "--shape", "mask=1,16"]
    made = built(
        run_build, tmp_path / "reader.pt2", tmp_path, *words,
        *[word for recipe in ("onnxruntime/fp32", "openvino/f32", "litert/fp32") for word in ("--recipe", recipe)],
    )  # fmt: skip
    assert {one["status"] for one in told(tmp_path).values()} <= {"picked", "lost"}
    manifest = bundle.read(made).manifest
    assert [spec.name for spec in manifest.outputs] == ["scores", "mean", "length"]
    assert [spec.dtype for spec in manifest.inputs] == ["int64", "int64"]


@pytest.mark.proof
def test_an_output_of_no_entries_reaches_every_engine(run_build, tmp_path):
    value = helper.make_tensor_value_info
    weights = np.random.default_rng(0).normal(0, 0.3, (64, 6)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("Slice", ["y", "zero", "zero", "one"], ["nothing"]),
        ],
        "g", [value("x", TensorProto.FLOAT, [1, 64])],
        [value("y", TensorProto.FLOAT, [1, 6]), value("nothing", TensorProto.FLOAT, [1, 0])],
        [
            onnx.numpy_helper.from_array(weights, "w"), onnx.numpy_helper.from_array(np.array([0]), "zero"),
            onnx.numpy_helper.from_array(np.array([1]), "one"),
        ],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "m.onnx",
    )
    numbers(tmp_path, (1, 64))
    recipes = ("onnxruntime/fp32", "openvino/f32", "litert/*", "onnxruntime/static-int8")
    made = built(
        run_build,
        tmp_path / "m.onnx",
        tmp_path,
        *[word for recipe in recipes for word in ("--recipe", recipe)],
    )
    assert {one["status"] for one in told(tmp_path).values()} <= {"picked", "lost"}
    with loading.load(made) as model:
        assert model.predict(np.ones((1, 64), np.float32))["nothing"].shape == (1, 0)


@pytest.mark.proof
def test_a_real_text_detector_with_suppression_appended_is_built_and_served(run_build, tmp_path, monkeypatch):
    """PP-OCRv6's detector: cells of a drawn page that hold text, as rows; int8 candidates are judged by boxes."""
    pytest.importorskip("rapidocr", reason="the weights come with rapidocr")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "e2e" / "real_data"))
    import pages

    path = detectors.of_real_text(tmp_path / "cells.onnx")
    mean, std = (np.array(each, np.float32) for each in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    for name, count, seed in (("calib", 12, 1), ("eval", 64, 2)):
        drawn = [sample["x"] for sample, _ in pages.pages(count, seed)]
        ready = [((page / np.float32(255) - mean) / std).transpose(2, 0, 1)[None] for page in drawn]
        np.savez(tmp_path / f"{name}.npz", x=np.stack(ready).astype(np.float32))
    recipes = ("onnxruntime/fp32", "openvino/f32", "onnxruntime/static-int8", "openvino/static-int8")
    made = built(
        run_build, path, tmp_path, "--shape", "x=1,3,320,320",
        *[word for recipe in recipes for word in ("--recipe", recipe)],
    )  # fmt: skip
    scores = {name: one["accuracy"]["shipped"] for name, one in told(tmp_path).items()}
    print(
        scores, {name: one["latency_ms"]["p50"] for name, one in told(tmp_path).items() if one["latency_ms"]}
    )
    assert scores["onnxruntime/fp32"] == scores["openvino/f32"] == 1
    assert told(tmp_path)["onnxruntime/fp32"]["outputs"][0]["kind"] == "boxes"
    (one,) = bundle.read(made).manifest.sets
    session = ort.InferenceSession(str(path))
    with np.load(tmp_path / "eval.npz") as held, loading.load(made) as model:
        for page in held["x"][:4]:
            (wanted,) = session.run(None, {"x": page})
            found = model.predict(page)["cells"]
            tables = [rows.table(one, rows.padded([one], {"cells": array})) for array in (found, wanted)]
            assert rows.share(len(rows.matched(*tables)[0]), len(found) + len(wanted)) > 0.9
            assert len(wanted) > 20
