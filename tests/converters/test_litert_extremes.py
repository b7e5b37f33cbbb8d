"""Ranges for LiteRT's int8 by our own reading of the tensors, against ai-edge-quantizer's calibrater."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from ai_edge_quantizer import calibrator, recipe, recipe_manager
from ai_edge_quantizer.algorithms.uniform_quantize import common_quantize
from ai_edge_quantizer.utils import qsv_utils
from litert_models import converted, model, outputs, prepared
from onnx import helper
from test_litert_recipes import mobile

from converters.backends.litert import extremes, int8, running
from converters.keep.artifacts import Cache


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mobile")
    ready = mobile(folder)
    artifact = converted(ready, folder)
    return ready, artifact.folder / artifact.model


def theirs(ready, path, update):
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe.static_wi8_ai8())
    tool = calibrator.Calibrator(path.read_bytes(), num_threads=2, qsv_update_func=update)
    tool.calibrate({running.SIGNATURE: list(int8.feeds(ready))}, manager)
    return tool.get_model_qsvs()


@pytest.mark.parametrize(
    "update", [qsv_utils.min_max_update, partial(qsv_utils.moving_average_update, smoothing_factor=0.9)]
)
def test_ranges_are_those_of_its_own_calibrater(case, update):
    ready, path = case

    ours, wanted = extremes.extremes(path, int8.feeds(ready), update), theirs(ready, path, update)

    assert ours.keys() == wanted.keys()
    for name, entry in wanted.items():
        for end in ("min", "max"):
            assert np.array_equal(ours[name][end], entry[end]), name
            assert np.shape(ours[name][end]) == np.shape(entry[end])


def test_every_sample_is_looked_at(case):
    """A wider last sample widens the ranges."""
    ready, path = case
    samples = list(int8.feeds(ready))
    wider = {name: 10 * array for name, array in samples[0].items()}

    few = extremes.extremes(path, iter(samples), qsv_utils.min_max_update)
    more = extremes.extremes(path, iter([*samples, wider]), qsv_utils.min_max_update)

    assert all(float(more[name]["max"].max()) >= float(few[name]["max"].max()) for name in few)
    assert any(float(more[name]["max"].max()) > 2 * float(few[name]["max"].max()) for name in few)


def test_tensors_of_an_inner_graph_are_left_to_its_own_calibrater(case, monkeypatch):
    ready, path = case
    wanted = theirs(ready, path, qsv_utils.min_max_update)

    class Blind:
        def get_tensor_details(self):
            return []

    monkeypatch.setattr(running, "preserving", lambda _: Blind())
    ours = extremes.extremes(path, int8.feeds(ready), qsv_utils.min_max_update)

    assert {name: float(entry["max"].max()) for name, entry in ours.items()} == {
        name: float(entry["max"].max()) for name, entry in wanted.items()
    }


@pytest.mark.parametrize(
    "values",
    [
        [[1.0, -2.0]],
        [[np.inf, -2.0, 3.0]],
        [[-np.inf, 2.0]],
        [[np.nan, 2.0]],
        [[-3.4e38, 0.5]],
        [[np.inf, np.inf]],
    ],
)
def test_what_stands_for_infinity_is_left_out_as_it_is_there(values):
    array = np.float32(values)

    ours = extremes._ends(array)
    wanted = common_quantize.get_activation_min_max(array, -extremes.ENDLESS, extremes.ENDLESS)

    for end in ("min", "max"):
        assert np.array_equal(ours[end], wanted[end], equal_nan=True)
        assert ours[end].shape == wanted[end].shape


def test_a_float_model_is_converted_once_for_all_processes(tmp_path, monkeypatch):
    """`keep` stands for the cache that workers share; each has a memo of its own."""
    cache = Cache(tmp_path / "cache")
    ready = mobile(tmp_path)

    def keep(what, folder, make):
        return cache.fetch({"step": what}, folder, make)

    first = converted(replace(ready, keep=keep), tmp_path, "litert/fp32")
    monkeypatch.setattr("converters.backends.litert.backend._convert_torch", None)
    other = tmp_path / "other"
    other.mkdir()
    second = converted(replace(ready, keep=keep, memo={}), other, "litert/static-int8")

    assert first.size_bytes
    assert second.size_bytes
    assert cache.made == 1


def test_a_float_model_for_an_accelerator_is_another(tmp_path):
    kept = []

    def keep(what, folder, make):
        kept.append(what)
        return make(folder)

    ready = replace(mobile(tmp_path), keep=keep)
    converted(ready, tmp_path, "litert/static-int8", "arm-ethos-u55-128")
    converted(ready, tmp_path, "litert/fp32")

    assert kept == ["litert/float accelerator", "litert/float cpu"]


def test_what_has_no_entries_stays_in_float_and_the_rest_becomes_int8(tmp_path):
    """ai-edge-quantizer looks for ranges of every tensor, and breaks on one that has no values."""
    random = np.random.default_rng(0)
    made = model(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
            helper.make_node("Slice", ["y", "zero", "zero", "one"], ["nothing"], "cut"),
        ],
        {
            "w": random.normal(0, 0.3, (64, 16)).astype(np.float32),
            "zero": np.array([0]),
            "one": np.array([1]),
        },
        {"x": (1, 64)},
        {"y": (1, 16), "nothing": (1, 0)},
    )
    feeds = [{"x": random.normal(size=(1, 64)).astype(np.float32)} for _ in range(8)]
    ready = prepared(made, tmp_path, feeds)
    artifact = converted(ready, tmp_path, "litert/static-int8")
    assert "left in float, having no range that int8 holds: SLICE (1)" in artifact.notes
    given = outputs(artifact, ready, feeds[0])
    wanted = ready.source.reference.run(feeds[0])["y"]
    assert given["nothing"].shape == (1, 0)
    assert 0 < np.abs(given["y"] - wanted).max() < 0.05 * np.abs(wanted).max()
