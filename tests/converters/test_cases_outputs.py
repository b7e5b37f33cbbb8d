"""Models whose outputs are no plain tensors of finite numbers: masks, None, dictionaries, words, numbers."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from litert_models import converted, outputs, prepared
from onnx import TensorProto, helper, numpy_helper

from converters.backends import get
from converters.bundle.reference import histogram
from converters.quantize.sensitivity import MAX_SNR_DB, snr_db
from converters.recipes.recipes import plans
from converters.source.code import CodeGate
from converters.source.opening import open_source
from converters.source.project import from_flags
from edgekit import profile
from edgekit.errors import EdgeKitError
from edgekit.gaps import largest_gap
from edgekit.local import opened
from edgekit.selftest import judge

INFINITE = float("inf")
RANDOM = np.random.default_rng(3)


def floats(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("ours", "theirs", "gap"),
    [
        ([1.0, -INFINITE], [1.5, -INFINITE], 0.5),
        ([INFINITE, 0.0], [-INFINITE, 0.0], INFINITE),
        ([-INFINITE, 0.0], [-3.4e38, 0.0], INFINITE),
        ([np.nan], [np.nan], INFINITE),
        ([0.0, 1.0], [0.0], INFINITE),
        ([], [], 0.0),
    ],
)
def test_infinities_agree_only_with_their_like(ours, theirs, gap):
    assert largest_gap(np.array(ours, np.float32), np.array(theirs, np.float32)) == pytest.approx(gap)


def test_a_layer_is_weighed_by_what_is_finite():
    wanted = [{"y": np.array([1.0, -INFINITE])}]
    assert snr_db(wanted, [{"y": np.array([1.1, -INFINITE])}]) == pytest.approx(20, abs=0.1)
    assert snr_db(wanted, [{"y": np.array([1.0, -1e9])}]) == -MAX_SNR_DB


def test_drift_is_told_from_finite_values():
    found = histogram([np.array([-INFINITE, 1, 2, 3, np.nan], np.float32)], np.zeros(1, np.int64))
    assert (min(found.edges), max(found.edges), sum(found.counts)) == (1, 3, 3)
    assert sum(histogram([np.full(4, -INFINITE, np.float32)], np.zeros(1, np.int64)).counts) == 0


def masked(hidden, number):
    """Scores of which a mask forbids some, by a number that stands for never."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["s"]),
        helper.make_node("Where", ["allowed", "s", "never"], ["y"]),
    ]
    constants = {"a": floats(6, hidden), "b": floats(hidden, 5), "never": np.full((1, 5), number, np.float32)}
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", 1, [1, 6]), helper.make_tensor_value_info("allowed", TensorProto.BOOL, [1, 5])],
        [helper.make_tensor_value_info("y", 1, [1, 5])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("number", [-INFINITE, float(np.finfo(np.float32).min)])
def test_scores_beside_a_mask_become_int8(number, tmp_path):
    feeds = [{"x": floats(1, 6), "allowed": RANDOM.random((1, 5)) > 0.4} for _ in range(8)]
    made = masked(16, number)
    ready = prepared(made, tmp_path, feeds)
    session = ort.InferenceSession(made.SerializeToString())
    (plan,) = plans(profile.load("x86-64-v4-vnni"), ["onnxruntime/static-int8"])
    (tmp_path / "ort").mkdir()
    artifact = get("onnxruntime").convert(ready, plan, tmp_path / "ort")
    int8 = ort.InferenceSession(str(artifact.folder / artifact.model))
    assert any(
        "QuantizeLinear" in node.op_type
        for node in onnx.load(str(artifact.folder / artifact.model)).graph.node
    )
    litert = converted(ready, tmp_path, "litert/static-int8")
    for feed in feeds:
        (wanted,) = session.run(None, feed)
        seen = wanted > -1e30
        scale = np.abs(wanted[seen]).max(initial=1e-3)
        for got in (int8.run(None, feed)[0], outputs(litert, ready, feed)["y"]):
            assert np.array_equal(got > -1e30, seen)
            assert np.abs(got - wanted)[seen].max(initial=0.0) < 0.1 * scale


def test_a_bundle_with_a_mask_is_built_and_its_self_test_keeps_its_teeth(tmp_path, run_build):
    made = masked(16, -INFINITE)
    onnx.save(made, str(tmp_path / "model.onnx"))
    allowed = RANDOM.random((300, 1, 5)) > 0.3
    allowed[:, 0, 0] = True
    data = {"x": floats(300, 1, 6), "allowed": allowed}
    np.savez(tmp_path / "data.npz", **data)
    result = run_build(
        tmp_path / "model.onnx", "--name", "m", "--version", "1", "--target", "x86-64-v3", "--calibration",
        tmp_path / "data.npz", "--evaluation", tmp_path / "data.npz", "--recipe", "onnxruntime/fp32",
        "--accept-uncertain", "--out", tmp_path / "dist", "--metric", "agreement",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    session = ort.InferenceSession(made.SerializeToString())
    with opened(tmp_path / "dist" / "m-1-x86-64-v3.edgekit") as here:
        got = here.loaded.run({name: array[0] for name, array in data.items()})["y"]
        (wanted,) = session.run(None, {name: array[0] for name, array in data.items()})
        assert largest_gap(got, wanted) < 1e-4
        golden = {"y": np.where(np.arange(5) == 2, -INFINITE, np.zeros((2, 1, 5))).astype(np.float32)}
        manifest = here.manifest
        answers = {**golden, "@answers": np.zeros((2, 1), np.uint8)}
        for damage, passes in ((0.0, True), (INFINITE, False), (np.nan, False)):
            ours = golden["y"].copy()
            ours[0, 0, 1] += damage
            told = judge(manifest, {"y": ours}, [1.0, 1.0], source=answers, artifact=answers)
            assert ("'y'" not in told.reason) is passes


PROGRAM = """
    import torch
    from collections import namedtuple

    Scores = namedtuple("Scores", "scores boxes extra")

    class Base(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = torch.nn.Linear(6, 4)

    class Nested(Base):
        def forward(self, x, gain=None, *, verbose=False):
            y = self.layer(x)
            return {"scores": y, "hidden": y * 2 if verbose else None, "more": (y.sum(-1), [None, y + 1]), "t": 1.5}

    class Fields(Base):
        def forward(self, x):
            y = self.layer(x)
            return Scores(y, y * 2, None)

    class Pair(Base):
        def forward(self, x):
            return self.layer(x), None

    class Keyword(Base):
        def forward(self, *, x):
            return self.layer(x)

    class Second(Base):
        def forward(self, x, gain=None):
            return self.layer(x) if gain is None else self.layer(x) * gain

    class Needs(Base):
        def forward(self, x, other):
            return self.layer(x) * other

    class Nothing(Base):
        def forward(self, x):
            return None

    class Strange(Base):
        def forward(self, x):
            return {"y": self.layer(x), "o": object()}

    class Fails(Base):
        def forward(self, x):
            raise KeyError("head")
"""


def program(folder, name, **shapes):
    import textwrap

    (folder / "net.py").write_text(textwrap.dedent(PROGRAM))
    return from_flags({
        "model": {"name": "m", "version": "1", "source": f"{folder / 'net.py'}:{name}"},
        "inputs": {key: {"shape": list(shape)} for key, shape in shapes.items()},
        "targets": {"x86-64-v3": {}}, "data": {"evaluation": "unused"},
    })  # fmt: skip


def source_of(project):
    return open_source(project, CodeGate(allowed=True, tell=lambda _: None))


@pytest.mark.parametrize(
    ("name", "names", "left"),
    [
        ("Nested", ["scores", "more_0", "more_1_1"], ["'hidden'", "'more_1_0'", "plain float (1.5)"]),
        ("Fields", ["scores", "boxes"], ["'extra'"]),
        ("Pair", ["output"], ["'1'"]),
        ("Keyword", ["output"], []),
    ],
)
def test_only_tensors_come_out_of_a_program_under_their_keys(name, names, left, tmp_path):
    source = source_of(program(tmp_path, name, x=(1, 6)))
    assert [spec.name for spec in source.outputs] == names
    assert len(source.notes) == len(left)
    assert all(word in note for word, note in zip(left, source.notes, strict=True))
    flat = source.module(torch.ones(1, 6))
    flat = flat if isinstance(flat, tuple) else (flat,)
    wanted = source.reference.run({"x": np.ones((1, 6), np.float32)})
    assert all(np.allclose(ours, theirs) for ours, theirs in zip(flat, wanted.values(), strict=True))


def test_an_argument_with_a_default_is_given_by_name_when_declared(tmp_path):
    plain = source_of(program(tmp_path, "Second", x=(1, 6)))
    both = source_of(program(tmp_path, "Second", gain=(1, 1), x=(1, 6)))
    x = floats(1, 6)
    wanted = plain.reference.run({"x": x})["output"]
    assert np.allclose(
        both.reference.run({"x": x, "gain": np.full((1, 1), 3, np.float32)})["output"], wanted * 3
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Needs", ["other", "--shape other="]),
        ("Nothing", ["returns no tensor"]),
        ("Strange", ["'o'", "object"]),
        ("Fails", ["net.py, line", "KeyError: 'head'"]),
    ],
)
def test_a_program_that_cannot_be_taken_says_why_in_one_sentence(name, words, tmp_path):
    with pytest.raises(EdgeKitError) as caught:
        source_of(program(tmp_path, name, x=(1, 6)))
    assert [word for word in words if word not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


class Ids(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(9, 4)

    def forward(self, ids, *, scale):
        return {"y": self.table(ids).mean(1) * scale, "n": None}


def exported(folder, **options):
    arguments = ((torch.zeros(1, 7, dtype=torch.int64),), {"scale": torch.ones(1, 1)})
    torch.export.save(torch.export.export(Ids().eval(), *arguments, **options), str(folder / "ids.pt2"))

    def project(**shapes):
        return from_flags({
            "model": {"name": "m", "version": "1", "source": str(folder / "ids.pt2")},
            "inputs": {key: {"shape": list(shape)} for key, shape in shapes.items()},
            "targets": {"x86-64-v3": {}}, "data": {"evaluation": "unused"},
        })  # fmt: skip

    return project


def test_an_exported_program_keeps_its_types_and_takes_inputs_by_name(tmp_path):
    source = source_of(exported(tmp_path)())
    assert [(spec.name, spec.dtype, spec.shape) for spec in source.inputs] == [
        ("ids", "int64", (1, 7)),
        ("scale", "float32", (1, 1)),
    ]
    assert [spec.name for spec in source.outputs] == ["y"]


def test_an_open_axis_of_an_exported_program_is_closed_by_its_shape(tmp_path):
    size = torch.export.Dim("size", min=2, max=64)
    project = exported(tmp_path, dynamic_shapes={"ids": {1: size}, "scale": None})
    with pytest.raises(EdgeKitError, match="--shape ids=1,N"):
        source_of(project())
    assert source_of(project(ids=(1, 5))).inputs[0].shape == (1, 5)
    with pytest.raises(EdgeKitError, match="contradicts"):
        source_of(project(ids=(2, 5)))
    with pytest.raises(EdgeKitError, match="no input"):
        source_of(project(words=(1, 5)))


class Pairs(torch.nn.Module):
    def forward(self, batch, weights):
        return (batch["left"] - batch["right"]) * weights[0] + weights[1]


def test_an_exported_program_takes_what_lies_in_dicts_and_lists_one_by_one(tmp_path):
    """It was called with the tensors in a row, which its own check of arguments refused."""
    left, right, first, second = (torch.full((1, 3), number) for number in (5.0, 2.0, 10.0, 1.0))
    made = torch.export.export(Pairs(), ({"left": left, "right": right}, [first, second]))
    torch.export.save(made, tmp_path / "pairs.pt2")
    source = source_of(from_flags({
        "model": {"name": "m", "version": "1", "source": str(tmp_path / "pairs.pt2")},
        "targets": {"x86-64-v3": {}}, "data": {"evaluation": "unused"},
    }))  # fmt: skip
    names = [spec.name for spec in source.inputs]
    assert names == ["batch_left", "batch_right", "weights_0", "weights_1"]
    feed = dict(zip(names, (left.numpy(), right.numpy(), first.numpy(), second.numpy()), strict=True))
    assert np.array_equal(source.reference.run(feed)["output"], [[31, 31, 31]])
    assert np.array_equal(source.module(left, right, first, second).numpy(), [[31, 31, 31]])


def test_a_number_of_numpys_is_written(tmp_path):
    from edgekit.cli import render

    assert json.loads(render.as_json({"a": np.float64(0.5), "b": np.int64(3)})) == {"a": 0.5, "b": 3}
    with pytest.raises(NotImplementedError):
        render.as_json({"a": np.zeros(3)})
