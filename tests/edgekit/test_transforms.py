"""Pre-processing gives the same tensor everywhere; post-processing says what a person asked for; mistakes are named."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import InputError, ManifestError
from edgekit.manifest import Step, TensorSpec
from edgekit.transforms import check_post_steps, check_steps, postprocess, prepare, preprocess


def image(height: int = 7, width: int = 5) -> np.ndarray:
    """Bytes by arithmetic, so that no generator's version matters."""
    index = np.arange(height * width * 3, dtype=np.int64)
    return ((index * 73 + index**2 * 11) % 256).astype(np.uint8).reshape(height, width, 3)


def step(op: str, **args: object) -> Step:
    return Step(op, args)


# What each operation makes of the same picture, as the sha256 of shape, type and bytes: the promise that a device,
# whatever its CPU, feeds the model what the build judged.
DIGESTS = {
    "cast": ([step("scale", factor=1.7, offset=-40.0), step("cast", dtype="uint8")], "13bfc574"),
    "scale": ([step("scale", factor=1 / 255, offset=-0.5)], "219f5139"),
    "normalize": ([step("normalize", mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4])], "a9ae5ada"),
    "resize nearest": ([step("resize", height=4, width=9, mode="nearest")], "86ad8dcd"),
    "resize bilinear": ([step("resize", height=4, width=9)], "8b3f4a4a"),
    "resize keeping the ratio": ([step("resize", height=4, width=9, keep_ratio=True)], "47576df1"),
    "grayscale": ([step("grayscale")], "7b1377cf"),
    "flip_channels": ([step("flip_channels")], "0a8df5d8"),
    "transpose": ([step("transpose", axes=[2, 0, 1])], "0e1695f6"),
    "reshape": ([step("reshape", shape=[1, -1])], "1476b74a"),
    "expand_dims": ([step("expand_dims", axis=0)], "ef9efee2"),
    "clip": ([step("clip", low=20.0, high=99.5)], "f145f3f6"),
    "center_crop": ([step("center_crop", height=4, width=3)], "96e9448e"),
    "pad_to": ([step("pad_to", shape=[8, 8, 0], value=9.0, align="center")], "8f9183ae"),
}


def digest(array: np.ndarray) -> str:
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return hashlib.sha256(f"{array.shape}{array.dtype}".encode() + little.tobytes()).hexdigest()[:8]


@pytest.mark.parametrize(("steps", "expected"), DIGESTS.values(), ids=DIGESTS.keys())
def test_the_same_bytes_give_the_same_tensor(steps: list[Step], expected: str) -> None:
    assert digest(preprocess(steps, image())) == expected


def test_bilinear_resize_matches_its_definition() -> None:
    row = np.array([[0, 10, 20, 30]], np.float32)
    doubled = preprocess([step("resize", height=1, width=8)], row)[0]
    assert doubled.tolist() == [0, 2.5, 7.5, 12.5, 17.5, 22.5, 27.5, 30]
    assert preprocess([step("resize", height=1, width=2)], row)[0].tolist() == [5, 25]


def test_resizing_to_the_same_size_changes_no_value() -> None:
    for mode in ("nearest", "bilinear"):
        same = preprocess([step("resize", height=7, width=5, mode=mode)], image())
        assert np.array_equal(same, image())


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_a_kept_ratio_fits_inside_and_fills_one_side(height: int, width: int, to_h: int, to_w: int) -> None:
    value = np.zeros((height, width), np.uint8)
    made = preprocess([step("resize", height=to_h, width=to_w, mode="nearest", keep_ratio=True)], value)
    assert made.shape[0] <= to_h
    assert made.shape[1] <= to_w
    assert made.shape[0] == to_h or made.shape[1] == to_w


@given(st.lists(st.floats(allow_nan=True, width=32), min_size=1, max_size=20))
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64"])
def test_casting_to_integers_rounds_and_saturates(dtype: str, values: list[float]) -> None:
    made = preprocess([step("cast", dtype=dtype)], np.array(values, np.float32))
    bounds = np.iinfo(dtype)
    for value, got in zip(np.array(values, np.float32).tolist(), made.tolist(), strict=True):
        exact = 0 if np.isnan(value) else min(max(value, bounds.min), bounds.max)
        # The largest int64 has no float64 of its own: the one below is used, 1024 lower.
        assert abs(got - (exact if np.isinf(exact) else round(exact))) <= (1024 if dtype == "int64" else 0)


def test_casting_between_integers_saturates_too() -> None:
    assert preprocess([step("cast", dtype="uint8")], np.array([-5, 300], np.int32)).tolist() == [0, 255]
    assert preprocess([step("cast", dtype="int32")], np.array([0, 200], np.uint8)).tolist() == [0, 200]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (step("resiz"), r"'resiz' is unknown; did you mean 'resize'\?"),
        (step("quantum"), r"'quantum' is unknown; known are cast, scale"),
        (step("softmax", output="y"), r"'softmax' is unknown"),
        (step("resize", height=8), r"'resize': missing argument `width`; it takes e.g. height = 224"),
        (step("resize", height=0, width=8), r"'resize': argument height: expected `int` >= 1"),
        (step("resize", height=8, width=8, mode="cubic"), r"'resize': argument mode: invalid enum value 'cubic'"),
        (step("normalize", mean=[1.0], st=[1.0]), r"'normalize': unknown argument 'st'"),
        (step("normalize", mean=[1.0], std=["a"]), r"'normalize': argument std\[0\]: expected `float`, got `str`"),
        (step("normalize", mean=[1.0], std=[0.0]), r"'normalize': std holds a 0"),
        (step("normalize", mean=[1.0, 2.0], std=[1.0]), r"mean has 2 numbers and std 1"),
        (step("scale", factor=float("nan")), r"'scale': argument 'factor' is not finite"),
        (step("transpose", axes=[0, 0, 1]), r"axes \[0, 0, 1\] do not name each of 0 to 2 once"),
        (step("reshape", shape=[-1, -1]), r"more than one -1"),
        (step("clip", low=1.0, high=0.0), r"low 1.0 is above high 0.0"),
        (step("cast", dtype="complex64"), r"'cast': argument dtype: invalid enum value 'complex64'"),
    ],
)  # fmt: skip
def test_a_wrong_step_is_refused_when_loaded(bad: Step, says: str) -> None:
    with pytest.raises(ManifestError, match=says):
        check_steps([step("expand_dims"), bad])


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (step("top_k", output="z"), r"there is no output 'z'; the model has y"),
        (step("top_k", output="y", labels=["a"]), r"1 labels for 3 entries of output 'y'"),
        (step("top_k", output="y", k=0), r"argument k: expected `int` >= 1"),
        (step("threshold", output="y", labels=["one"]), r"argument labels"),
        (step("cast", dtype="int8"), r"'cast' is unknown"),
    ],
)
def test_a_wrong_post_step_is_refused_when_loaded(bad: Step, says: str) -> None:
    with pytest.raises(ManifestError, match=says):
        check_post_steps([bad], [TensorSpec("y", "float32", (1, 3))])


@pytest.mark.parametrize(
    ("steps", "value"),
    [
        ([step("resize", height=2, width=2)], np.zeros((1, 2, 3, 4), np.uint8)),
        ([step("resize", height=2, width=2)], np.zeros((0, 3), np.uint8)),
        ([step("grayscale")], np.zeros((4, 4, 4), np.uint8)),
        ([step("normalize", mean=[1.0, 2.0], std=[1.0, 2.0])], np.zeros((4, 4, 3), np.uint8)),
        ([step("normalize", mean=[1.0], std=[1.0], axis=3)], np.zeros((4, 4, 3), np.uint8)),
        ([step("transpose", axes=[1, 0])], np.zeros((4, 4, 3), np.uint8)),
        ([step("reshape", shape=[5])], np.zeros(4, np.uint8)),
        ([step("expand_dims", axis=9)], np.zeros(4, np.uint8)),
        ([step("center_crop", height=9, width=1)], np.zeros((4, 4), np.uint8)),
        ([step("pad_to", shape=[2, 2])], np.zeros((4, 4), np.uint8)),
        ([step("pad_to", shape=[8])], np.zeros((4, 4), np.uint8)),
        ([step("flip_channels")], np.uint8(3)),
    ],
)
def test_a_value_that_does_not_suit_is_the_callers_mistake(steps: list[Step], value: np.ndarray) -> None:
    check_steps(steps)
    with pytest.raises(InputError):
        preprocess(steps, np.asarray(value))


def test_a_missing_leading_axis_of_one_is_added() -> None:
    spec = TensorSpec("x", "float32", (1, 3, 7, 5))
    ready = prepare(
        [spec], {"x": [step("transpose", axes=[2, 0, 1]), step("scale", factor=1.0)]}, {"x": image()}
    )
    assert ready["x"].shape == spec.shape


LOGITS = np.array([[1.0, 3.0, 2.0]], np.float32)


def test_without_steps_the_raw_outputs_are_the_answer() -> None:
    raw = postprocess([], {"y": LOGITS, "flag": np.array(True), "odd": np.array([np.nan, np.inf])})
    assert raw == {"y": [[1.0, 3.0, 2.0]], "flag": True, "odd": [None, None]}
    assert json.loads(json.dumps(raw, allow_nan=False)) == raw


def test_softmax_and_top_k_name_the_best_first() -> None:
    steps = [step("softmax", output="y"), step("top_k", output="y", k=2, labels=["a", "b", "c"])]
    best = postprocess(steps, {"y": LOGITS, "other": LOGITS})
    assert list(best) == ["y"]
    assert [entry["label"] for entry in best["y"]] == ["b", "c"]
    assert best["y"][0]["score"] == pytest.approx(np.exp(3) / np.exp([1, 2, 3]).sum(), rel=1e-6)


def test_softmax_of_large_values_does_not_overflow() -> None:
    assert postprocess([step("softmax", output="y")], {"y": LOGITS * 1e4})["y"] == [[0, 1, 0]]


def test_equal_scores_rank_by_index_and_rows_are_ranked_apart() -> None:
    rows = np.array([[[1, 1, 0], [0, 2, 2]]], np.float32)
    ranked = postprocess([step("top_k", output="y", k=5)], {"y": rows})["y"]
    assert [[entry["index"] for entry in row] for row in ranked] == [[0, 1, 2], [1, 2, 0]]


def test_sigmoid_and_threshold_decide() -> None:
    steps = [step("sigmoid", output="y"), step("threshold", output="y", at=0.5, labels=["no", "yes"])]
    assert postprocess(steps, {"y": np.array([[0.0]])})["y"] == {
        "value": 0.5,
        "reached": True,
        "label": "yes",
    }
    several = postprocess(steps, {"y": np.array([[-1000.0, 1000.0]])})["y"]
    assert [(entry["value"], entry["label"]) for entry in several] == [(0, "no"), (1, "yes")]


def test_a_post_step_for_an_absent_output_is_named() -> None:
    with pytest.raises(ManifestError, match="no output 'z'"):
        postprocess([step("sigmoid", output="z")], {"y": LOGITS})
