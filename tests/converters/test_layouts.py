"""Packed weights are shared where many operators read the same ones, and where that changes no result."""

from pathlib import Path

import litert_models
import numpy as np
import pytest
import recurrent_models
import toy_tflite
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer, recipe
from msgspec import structs

from converters.backends import get
from converters.backends.litert import layouts
from converters.measure.race import Runner, run_race
from converters.recipes import recipes
from converters.recipes.recipe import AS_IS
from converters.source import tflite
from edgekit import engines, profile
from edgekit.manifest import EngineSpec, TensorSpec
from edgekit.quiet import quietly

BOARD = profile.load("raspberry-pi-5")


def plan(name: str) -> recipes.Plan:
    (found,) = recipes.plans(BOARD, [f"litert/{name}"])
    return found


def file(folder: Path, times: int, width: int = 128) -> Path:
    path = folder / f"{times}.tflite"
    path.write_bytes(toy_tflite.again_and_again(times, width))
    return path


def test_weights_that_one_operator_reads_are_not_shared(tmp_path):
    once = file(tmp_path, 1, 512)
    assert layouts.repeated(tflite.read(once)) == 0
    assert get("litert").layouts(once, plan("fp32")) == ()


def test_a_few_copies_of_small_weights_are_left_as_they_are(tmp_path):
    few = file(tmp_path, 4, 16)
    assert layouts.repeated(tflite.read(few)) == 3 * 16 * 16
    assert get("litert").layouts(few, plan("fp32")) == ()


@pytest.mark.parametrize(
    ("name", "may"),
    [("fp32", True), ("dynamic-int8", True), ("weights-int8", True), ("static-int8", False)],
)
def test_they_are_shared_unless_the_readers_zero_point_is_packed_with_them(name, may, tmp_path):
    assert get("litert").layouts(file(tmp_path, 6), plan(name)) == ((layouts.SHARED,) if may else ())


def test_a_file_taken_as_it_is_shares_them_if_it_computes_in_float(tmp_path):
    for precision, may in (("fp32", True), ("int8", False)):
        (taken,) = [
            each
            for each in recipes.as_is(BOARD, "litert", precision, "a TFLite file", ["litert/as-is"])
            if each.recipe.scheme == AS_IS
        ]
        assert bool(get("litert").layouts(file(tmp_path, 6), taken)) == may


def test_an_accelerators_model_is_not_laid_out_otherwise(tmp_path):
    (npu,) = recipes.plans(profile.load("nxp-imx93-ethos-u65"), ["litert/static-int8"])
    assert get("litert").layouts(file(tmp_path, 6), npu) == ()


def test_a_way_is_raced_beside_the_models_own(tmp_path):
    path = file(tmp_path, 20, 512)
    model = tflite.read(path)
    names = [model.tensors[index].name for index in (model.inputs[0], model.outputs[0])]
    x, y = (TensorSpec(name, "float32", (1, 512), own) for name, own in zip("xy", names, strict=True))
    own = Runner("own", str(path), EngineSpec("litert", "", path.name, {}, 1), (x,), (y,))
    shared = Runner(
        "shared", str(path), EngineSpec("litert", "", path.name, {"weights": "shared"}, 1), (x,), (y,), "own"
    )
    feeds = [{"x": np.ones((1, 512), np.float32)}]
    timing = run_race([own, shared], feeds, ["own"], tmp_path / "race", budget_s=0.2)
    assert timing.latencies.keys() == {"own", "shared"}
    assert not timing.failures


def answer(path, how, x):
    """Of a file with one input and one output, 16 wide."""
    interpreter = quietly(lambda: Interpreter(model_path=str(path)))
    given, got = interpreter.get_input_details()[0]["name"], interpreter.get_output_details()[0]["name"]
    specs = [TensorSpec("x", "float32", x.shape, given)], [TensorSpec("y", "float32", x.shape, got)]
    spec = EngineSpec("litert", "", path.name, {"weights": how}, 1)
    return quietly(lambda: engines.get("litert").load(path, spec, *specs, None)).run({"x": x})["y"]


def test_static_int8_would_give_every_reader_the_first_ones_zero_point(tmp_path):
    """If the last assertion fails, LiteRT tells the readers apart, and static int8 may share them too."""
    path, integer = tmp_path / "float.tflite", tmp_path / "integer.tflite"
    path.write_bytes(toy_tflite.again_and_again(3, 16))
    x = np.random.default_rng(0).uniform(-4, 1, (1, 16)).astype(np.float32)
    made = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())
    integer.write_bytes(
        bytes(made.quantize(made.calibrate({"serving_default": [{"in": x}]})).quantized_model)
    )
    wanted = answer(path, "own", x)
    assert np.abs(answer(path, "shared", x) - wanted).max() == 0
    assert np.abs(answer(integer, "own", x) - wanted).max() < 0.05
    assert np.abs(answer(integer, "shared", x) - wanted).max() > 0.5


@pytest.mark.proof
def test_an_unrolled_layer_gives_the_same_to_the_bit_with_shared_weights(tmp_path):
    model = recurrent_models.net("GRU", direction="bidirectional", linear_before_reset=1, hidden=64)
    ready = litert_models.prepared(model, tmp_path, recurrent_models.feeds(model))
    for name in ("fp32", "dynamic-int8"):
        artifact = litert_models.converted(ready, tmp_path, f"litert/{name}")
        bound = artifact.bound(ready.source.inputs), artifact.bound(ready.source.outputs, are_outputs=True)
        spec = EngineSpec("litert", "", artifact.model, {}, 1)
        own, shared = (
            engines.get("litert").load(
                artifact.folder / artifact.model, structs.replace(spec, options=options), *bound, None
            )
            for options in ({}, layouts.SHARED)
        )
        for feed in ready.calibration():
            left, right = own.run(feed), shared.run(feed)
            assert all(np.array_equal(left[key], right[key]) for key in left)
