"""A metric of the user's own that gives no number: on the source it ends the build, on a candidate it costs that one."""

import json
import textwrap

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters.judge import accuracy, metrics
from edgekit import bundle as bundles
from edgekit import evidence, local

WEIGHTS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
# What int8 gives takes few values; `coarse` knows a candidate by that.
METRIC = """
    import numpy as np

    def coarse(outputs):
        rows = np.unique(outputs["y"].reshape(-1, 3), axis=0)
        return np.unique(rows).size < rows.size - 5

    def share(outputs, labels):
        return float((outputs["y"].argmax(-1).ravel() == labels).mean())

    def source(outputs, labels):
        RETURN

    def candidate(outputs, labels):
        if coarse(outputs):
            RETURN
        return share(outputs, labels)
"""
RETURNS = [
    ("return float('nan')", "nan"),
    ("return float('inf')", "inf"),
    ("return None", "returned None, not a number"),
    ("return '0.9'", "returned '0.9', not a number"),
    ("return np.zeros(3)", "returned array([0., 0., 0.]), not a number"),
    ("raise ValueError('odd')", "ValueError: odd"),
]
GIVES = pytest.mark.parametrize(("gives", "says"), RETURNS, ids=[says for _, says in RETURNS])
# Each is a build of its own: of the suite's, one that answers and one that raises.
GIVES_LATER = pytest.mark.parametrize(
    ("gives", "says"),
    [
        pytest.param(
            gives, says, id=says, marks=[] if says in ("nan", "ValueError: odd") else pytest.mark.proof
        )
        for gives, says in RETURNS
    ],
)


@pytest.fixture
def build(run_build, tmp_path):
    """A build of one linear layer by the metric's function of that name, with `result.json`."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9),
        str(tmp_path / "linear.onnx"),
    )
    x = np.random.default_rng(1).normal(size=(200, 4)).astype(np.float32)
    np.savez(tmp_path / "eval.npz", x=x, labels=(x @ WEIGHTS).argmax(1))

    def built(function, gives):
        (tmp_path / "own.py").write_text(textwrap.dedent(METRIC).replace("RETURN", gives))
        return run_build(
            tmp_path / "linear.onnx", "--name", "linear", "--version", "1.0.0", "--target", "x86-64-v3",
            "--calibration", tmp_path / "eval.npz", "--evaluation", tmp_path / "eval.npz",
            "--recipe", "onnxruntime/fp32", "--recipe", "onnxruntime/static-int8",
            "--metric", f"{tmp_path / 'own.py'}:{function}", "--out", tmp_path / "dist",
            "--json", tmp_path / "r.json",
        )  # fmt: skip

    return built


@GIVES
def test_on_the_source_it_ends_the_build_with_one_sentence(gives, says, build, tmp_path):
    result = build("source", gives)
    assert result.exit_code == 2
    told = str(result.exception)
    assert "own.py:source" in told
    assert says in told
    assert "float source" in told
    assert "\n" not in told
    assert not (tmp_path / "dist").exists()


@GIVES_LATER
def test_on_a_candidate_it_is_a_miss_and_the_others_are_judged(gives, says, build, tmp_path):
    result = build("candidate", gives)
    assert result.exit_code == 0, str(result.exception)
    rows = {row["recipe"]: row for row in json.loads((tmp_path / "r.json").read_text())["candidates"]}
    assert rows["onnxruntime/fp32"]["status"] == "picked"
    assert rows["onnxruntime/static-int8"]["status"] == "refused"
    assert says in rows["onnxruntime/static-int8"]["reason"]
    assert "candidate" in rows["onnxruntime/static-int8"]["reason"]
    # What a figure is missing from must be readable all the same.
    (path,) = (tmp_path / "dist").glob("*.edgekit")
    told = local.evidence_of(bundles.read(path))
    (mine,) = (item for item in told.predicate.candidates if item.recipe == "onnxruntime/static-int8")
    assert mine.accuracy is None
    assert mine.accuracy_drop is None
    assert evidence.beside(path).is_file()
    assert "own.py" in (tmp_path / "dist" / "report.html").read_text()


def test_on_a_resampled_set_of_a_candidate_alone_it_is_a_miss_too():
    def sometimes(outputs, wanted):
        return None if len(np.unique(outputs["value"])) < 2 else 1.0

    values = np.zeros(100, int)
    values[0] = 1
    other = np.arange(100)
    found = accuracy.compare(
        metrics.users("own.py:sometimes", sometimes), {"value": other}, {"value": values}, other, sequence=None, seed=0
    )  # fmt: skip
    judged = accuracy.judge(found, 1.0, is_bounded=False)
    assert judged.verdict == "missed"
    assert "on a resampled set of samples of this candidate, own.py:sometimes returned None" in judged.reason


def test_of_the_source_it_is_never_a_candidates_fault():
    def sometimes(outputs, wanted):
        return None if outputs["value"][0] else 1.0

    metric, labels = metrics.users("own.py:sometimes", sometimes), np.ones(40)
    source, candidate = {"value": labels}, {"value": np.zeros(40)}
    with pytest.raises(metrics.MetricError, match=r"on the float source, own\.py:sometimes returned None"):
        accuracy.compare(metric, source, candidate, labels, sequence=None, seed=0)
