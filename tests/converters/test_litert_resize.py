"""Nearest-neighbour Resize on the way to LiteRT: one operator with a fast kernel, and never another entry."""

import numpy as np
import pytest
from litert_models import converted, model, operators, outputs, prepared
from onnx import helper

RANDOM = np.random.default_rng(0)
# What none of these graphs may hold: the spellings of a selection that XNNPACK leaves to slow kernels.
SLOW = {"GATHER", "GATHER_ND", "CONCATENATION", "RESHAPE", "BROADCAST_TO", "TILE"}
FACTORS = [
    # coordinates, rounding, factors: whole ones, up or down
    ("asymmetric", "floor", (2, 2)),
    ("asymmetric", "floor", (4, 4)),
    ("asymmetric", "floor", (2, 3)),
    ("half_pixel", "round_prefer_floor", (2, 2)),
    ("half_pixel", "round_prefer_ceil", (1, 4)),
    ("pytorch_half_pixel", "round_prefer_floor", (8, 8)),
]


def resize(factors, **attributes):
    """A convolution, a Resize and a convolution: (1, 3, 8, 8) to (1, 2, …)."""
    made = model(
        [
            helper.make_node("Conv", ["x", "a"], ["h"], pads=[1, 1, 1, 1]),
            helper.make_node("Resize", ["h", "", "scales"], ["r"], mode="nearest", **attributes),
            helper.make_node("Conv", ["r", "b"], ["y"], pads=[1, 1, 1, 1]),
        ],
        {
            "a": RANDOM.standard_normal((4, 3, 3, 3)).astype(np.float32),
            "b": RANDOM.standard_normal((2, 4, 3, 3)).astype(np.float32),
            "scales": np.float32([1, 1, *factors]),
        },
        {"x": (1, 3, 8, 8)},
        {"y": (1, 2, int(8 * factors[0]), int(8 * factors[1]))},
    )
    return made, [{"x": RANDOM.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(3)]


def check(made, feeds, folder):
    """Convert, compare with ONNX Runtime, and give the operators."""
    ready = prepared(made, folder, feeds)
    artifact = converted(ready, folder)
    for feed in feeds:
        wanted = ready.source.reference.run(feed)["y"]
        assert np.allclose(outputs(artifact, ready, feed)["y"], wanted, atol=1e-4 * np.abs(wanted).max())
    return operators(artifact)


@pytest.mark.parametrize(("coordinates", "rounding", "factors"), FACTORS)
def test_a_whole_factor_becomes_one_resize_operator(tmp_path, coordinates, rounding, factors):
    made, feeds = resize(factors, coordinate_transformation_mode=coordinates, nearest_mode=rounding)
    found = check(made, feeds, tmp_path)
    assert found["RESIZE_NEAREST_NEIGHBOR"] == 1
    assert not SLOW & set(found)


def test_a_whole_reduction_becomes_a_slice(tmp_path):
    made, feeds = resize((0.5, 0.25), coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    found = check(made, feeds, tmp_path)
    assert found["STRIDED_SLICE"]
    assert not SLOW & set(found)


@pytest.mark.parametrize(
    ("coordinates", "rounding", "factors"),
    [
        # A factor that is not whole, rounding that takes the next entry, corners that are aligned: LiteRT's kernel
        # would take other entries.
        ("half_pixel", "round_prefer_floor", (1.5, 1.25)),
        ("asymmetric", "ceil", (2, 2)),
        ("align_corners", "round_prefer_ceil", (4, 4)),
    ],
)
def test_what_the_kernel_would_get_wrong_does_not_go_there(tmp_path, coordinates, rounding, factors):
    made, feeds = resize(factors, coordinate_transformation_mode=coordinates, nearest_mode=rounding)
    assert "RESIZE_NEAREST_NEIGHBOR" not in check(made, feeds, tmp_path)


def test_int8_keeps_the_one_operator(tmp_path):
    made, feeds = resize((2, 2), coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    ready = prepared(made, tmp_path, feeds)
    found = operators(converted(ready, tmp_path, "litert/static-int8"))
    assert found["RESIZE_NEAREST_NEIGHBOR"] == 1
    assert not SLOW & set(found)


def test_a_sequence_is_resized_as_an_image_of_one_row(tmp_path):
    made = model(
        [
            helper.make_node("Resize", ["x", "", "scales"], ["r"], mode="nearest"),
            helper.make_node("Conv", ["r", "a"], ["y"]),
        ],
        {"a": RANDOM.standard_normal((4, 3, 3)).astype(np.float32), "scales": np.float32([1, 1, 2])},
        {"x": (1, 3, 16)},
        {"y": (1, 4, 30)},
    )
    feeds = [{"x": RANDOM.standard_normal((1, 3, 16)).astype(np.float32)} for _ in range(2)]
    found = check(made, feeds, tmp_path)
    assert found["RESIZE_NEAREST_NEIGHBOR"] == 1
