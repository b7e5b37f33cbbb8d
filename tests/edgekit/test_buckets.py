"""A model with buckets: which one a call runs in, what reaches the engine, and what its bundle says."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper

from edgekit import bundle, local
from edgekit.buckets import bucket_of, fitted, padded
from edgekit.bundle import file_entry
from edgekit.errors import DataError, InputError, ManifestError
from edgekit.inputs import read_input
from edgekit.manifest import Buckets, EngineSpec, Manifest, SelfTest, StatePair, TensorSpec, decode, encode
from edgekit.predict import answers
from edgekit.samples import Samples, dump_arrays, dump_npz, load_arrays, load_npz, rows, stacked
from edgekit.selftest import agreement, record, run_samples
from edgekit.selftest import answers as task_answers

SIZES = (4, 8)
BUCKETS = Buckets({"x": 1}, SIZES, ("model/4.onnx", "model/8.onnx"))
GOLDEN = ("selftest/inputs.npz", "selftest/source.npz", "selftest/artifact.npz")
X = TensorSpec("x", "float32", (1, 8))
sizes = st.lists(st.integers(1, 50), min_size=1, max_size=5, unique=True).map(
    lambda found: tuple(sorted(found))
)


@given(sizes, st.data())
def test_a_call_runs_in_the_smallest_bucket_that_holds_it(
    chosen: tuple[int, ...], data: st.DataObject
) -> None:
    have = data.draw(st.integers(1, chosen[-1]))
    found = bucket_of(Buckets({"x": 0}, chosen), {"x": np.zeros(have)})
    assert found in chosen
    assert found >= have
    assert not [size for size in chosen if have <= size < found]


@given(sizes, st.integers(1, 100))
def test_what_is_larger_than_the_largest_bucket_is_refused(chosen: tuple[int, ...], more: int) -> None:
    with pytest.raises(InputError, match=f"takes 1 to {chosen[-1]}"):
        bucket_of(Buckets({"x": 0}, chosen), {"x": np.zeros(chosen[-1] + more)})


@given(sizes, st.data())
def test_padding_keeps_what_was_there_and_adds_zeros_at_the_end(
    chosen: tuple[int, ...], data: st.DataObject
) -> None:
    axis = data.draw(st.integers(0, 2))
    shape = data.draw(st.tuples(*[st.integers(1, 4)] * 3))
    shape = (*shape[:axis], data.draw(st.integers(1, chosen[-1])), *shape[axis + 1 :])
    values = data.draw(arrays.arrays(np.int16, shape))
    buckets = Buckets({"x": axis}, chosen)
    made = padded(buckets, {"x": values, "other": values})
    own, rest = np.split(made["x"], [shape[axis]], axis)
    assert np.array_equal(own, values)
    assert not rest.any()
    assert made["x"].dtype == values.dtype
    assert made["x"].shape[axis] == bucket_of(buckets, {"x": values})
    assert made["other"] is values
    assert np.array_equal(fitted(buckets, made, shape[axis])["x"], values)


def test_inputs_that_step_together_must_be_of_one_size() -> None:
    buckets = Buckets({"ids": 1, "mask": 1}, SIZES)
    assert bucket_of(buckets, {"ids": np.zeros((1, 5)), "mask": np.zeros((1, 5))}) == 8
    with pytest.raises(InputError, match="ids 5 along axis 1, mask 4 along axis 1"):
        bucket_of(buckets, {"ids": np.zeros((1, 5)), "mask": np.zeros((1, 4))})


def test_an_empty_input_has_no_bucket() -> None:
    with pytest.raises(InputError, match="has 0 along axis 0"):
        bucket_of(Buckets({"x": 0}, SIZES), {"x": np.zeros(0)})


def test_samples_of_several_shapes_are_stored_and_read_back_with_fixed_bytes(tmp_path: Path) -> None:
    parts = [np.arange(count, dtype=np.float32).reshape(1, count) for count in (3, 8, 5)]
    samples = Samples({"x": stacked(parts)}, sequence=np.array([0, 1, 2]))
    data = dump_npz(samples)
    assert data == dump_npz(samples.take([0, 1, 2]))
    back = load_npz(data, BUCKETS.admitted([X]), stored_only=True)
    assert [back.sample(index)["x"].tolist() for index in range(3)] == [part.tolist() for part in parts]
    (tmp_path / "x.npz").write_bytes(dump_arrays(samples.inputs))
    assert [row["x"].shape for row in rows(load_arrays(tmp_path / "x.npz"))] == [(1, 3), (1, 8), (1, 5)]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x@shapes": np.array([[1, 3], [1, 9]])}, "does not have the values"),
        ({"x@shapes": np.array([[1, 3], [-1, -5]])}, "not made of shapes"),
        ({"x@shapes": np.array([1.5, 2.5])}, "not made of shapes"),
        ({"x": np.zeros((2, 4), np.float32)}, "does not have the values"),
    ],
)
def test_shapes_that_do_not_fit_their_values_are_refused(changes: dict[str, np.ndarray], says: str) -> None:
    good = {"x": np.zeros(8, np.float32), "x@shapes": np.array([[1, 3], [1, 5]])}
    assert len(load_npz(dump_arrays(good), BUCKETS.admitted([X]))) == 2
    with pytest.raises(DataError, match=says):
        load_npz(dump_arrays({**good, **changes}), BUCKETS.admitted([X]))


def test_ragged_answers_count_every_position() -> None:
    ours = stacked([np.eye(3)[[0, 1]], np.eye(3)[[0, 1, 2, 2]]])
    theirs = stacked([np.eye(3)[[0, 2]], np.eye(3)[[0, 1, 2, 1]]])
    assert agreement(task_answers(ours), task_answers(theirs)) == pytest.approx(4 / 6)


def network(size: int) -> bytes:
    """y = x + x, of as many entries, and its sum: one output that grows with the input and one that does not."""
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "x"], ["y"]),
            helper.make_node("ReduceSum", ["y"], ["total"], keepdims=1),
        ],
        "double",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, size])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, size]),
            helper.make_tensor_value_info("total", TensorProto.FLOAT, [1, 1]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9)
    return bytes(model.SerializeToString())


def lines(*counts: int) -> Samples:
    chance = np.random.default_rng(0)
    return Samples({"x": stacked([chance.normal(size=(1, count)).astype(np.float32) for count in counts])})


def make_manifest(files: dict[str, bytes], **changes: object) -> Manifest:
    manifest = Manifest(
        format=2,
        name="lines",
        version="1",
        profile="x86-64-v3",
        engine=EngineSpec("onnxruntime", ">=1", "model/8.onnx", threads=1),
        inputs=(X,),
        outputs=(TensorSpec("y", "float32", (1, None)), TensorSpec("total", "float32", (1, 1))),
        recipe="onnxruntime/fp32",
        source_sha256="0" * 64,
        files=tuple(file_entry(path, data) for path, data in sorted(files.items())),
        selftest=SelfTest(*GOLDEN, samples=4, tolerance={"y": 1e-3, "total": 1e-3}, agreement=1),
        buckets=BUCKETS,
    )
    return msgspec.structs.replace(manifest, **changes)


@pytest.fixture
def lines_bundle(tmp_path: Path) -> Path:
    """Its golden outputs are worked out here, not by an engine."""
    golden = lines(2, 4, 5, 8)
    ready = [padded(BUCKETS, row)["x"] for row in rows(golden.inputs)]
    told = record(
        {
            "y": stacked([x + x for x in ready]),
            "total": np.stack([2 * x.sum(1, keepdims=True) for x in ready]),
        }
    )
    files = {
        "model/4.onnx": network(4),
        "model/8.onnx": network(8),
        GOLDEN[0]: dump_npz(golden),
        GOLDEN[1]: dump_arrays(told),
        GOLDEN[2]: dump_arrays(told),
    }
    path = tmp_path / "lines.edgekit"
    bundle.write(path, make_manifest(files), files)
    return path


def test_the_self_test_of_a_bundle_runs_each_sample_in_its_bucket(lines_bundle: Path) -> None:
    result = local.verify(lines_bundle)
    assert result.passed, result.reason
    assert result.agreement == 1


def test_outputs_are_those_of_the_padded_input_and_each_bucket_has_a_model_of_its_own(
    lines_bundle: Path,
) -> None:
    with local.opened(lines_bundle) as here:
        samples = lines(2, 4, 5, 8)
        outputs, _ = run_samples(here.loaded.run, here.manifest.admitted, (), {}, samples)
        assert [row["y"].shape for row in rows(outputs)] == [(1, 4), (1, 4), (1, 8), (1, 8)]
        for sample, output in zip(rows(samples.inputs), rows(outputs), strict=True):
            assert output["total"] == pytest.approx(2 * sample["x"].sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.zeros((1, 9), np.float32), "input 'x' has 9 along axis 1; this model takes 1 to 8"),
        (np.zeros((2, 4), np.float32), "expected x: float32 1x\\?"),
        (np.zeros((1, 4), np.int32), "has dtype int32"),
    ],
)
def test_an_input_that_no_bucket_takes_is_refused_with_what_would_fit(
    value: np.ndarray, says: str, lines_bundle: Path
) -> None:
    with local.opened(lines_bundle) as here, pytest.raises(InputError, match=says):
        here.loaded.run({"x": value})


def test_run_takes_files_of_any_size_and_names_the_one_that_is_too_large(
    lines_bundle: Path, tmp_path: Path
) -> None:
    files = []
    for count in (3, 8, 9):
        files.append(tmp_path / f"{count}.npy")
        np.save(files[-1], np.ones((1, count), np.float32))
    with local.opened(lines_bundle) as here:
        assert len(read_input(files[0], here.manifest)) == 1
        found = list(answers(here, files))
    assert [answer.outputs.get("total") for answer in found] == [[[6.0]], [[16.0]], None]
    assert "this model takes 1 to 8" in found[-1].error


def test_a_bundle_without_buckets_keeps_its_bytes_and_its_format() -> None:
    files = {"model/8.onnx": b"m", **dict.fromkeys(GOLDEN, b"")}
    plain = make_manifest(files, buckets=msgspec.UNSET, format=1)
    assert b"buckets" not in encode(plain)
    assert decode(encode(plain)).admitted == (X,)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 1}, "came with format 2"),
        ({"buckets": Buckets({"x": 1}, (8, 4), BUCKETS.models)}, "ascending sizes"),
        ({"buckets": Buckets({"x": 1}, (4, 8), ("model/8.onnx",))}, "a model for each size"),
        ({"buckets": Buckets({"z": 1}, (4, 8), BUCKETS.models)}, "no input 'z'"),
        ({"buckets": Buckets({"x": 0}, (4, 8), BUCKETS.models)}, "along axis 0"),
        ({"buckets": Buckets({"x": 1}, (4, 8), ("model/5.onnx", "model/8.onnx"))}, "model/5.onnx"),
        ({"state": (StatePair("x", "y"),)}, "a state keeps its shape"),
    ],
)
def test_buckets_that_contradict_the_bundle_are_refused(changes: dict[str, object], says: str) -> None:
    files = {**dict.fromkeys(BUCKETS.models, b"m"), **dict.fromkeys(GOLDEN, b"")}
    assert decode(encode(make_manifest(files))).buckets == BUCKETS
    with pytest.raises(ManifestError, match=says):
        decode(encode(make_manifest(files, **changes)))
