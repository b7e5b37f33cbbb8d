"""Packed weights are shared where many operators read the same ones, and where that changes no result."""

from pathlib import Path

import litert_models
import numpy as np
import pytest
import recurrent_models
import toy_tflite

from converters.backends import get
from converters.backends.litert import layouts
from converters.measure.race import Runner, run_race
from converters.recipes import recipes
from converters.recipes.recipe import AS_IS
from converters.source import tflite
from edgekit import engines, profile
from edgekit.manifest import EngineSpec, TensorSpec

BOARD = profile.load("raspberry-pi-5")


def plan(recipe: str) -> recipes.Plan:
    (found,) = recipes.plans(BOARD, [f"litert/{recipe}"])
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
    ("recipe", "may"),
    [("fp32", True), ("dynamic-int8", True), ("weights-int8", True), ("static-int8", False)],
)
def test_they_are_shared_unless_the_readers_zero_point_is_packed_with_them(recipe, may, tmp_path):
    assert get("litert").layouts(file(tmp_path, 6), plan(recipe)) == ((layouts.SHARED,) if may else ())


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


@pytest.mark.proof
def test_an_unrolled_layer_gives_the_same_with_shared_weights_and_static_int8_shows_why_not(tmp_path):
    """If the last assertion fails, LiteRT tells the readers apart, and static int8 may share them too."""
    model = recurrent_models.net("GRU", direction="bidirectional", linear_before_reset=1, hidden=64)
    ready = litert_models.prepared(model, tmp_path, recurrent_models.feeds(model))
    gaps = {}
    for recipe in ("fp32", "dynamic-int8", "static-int8"):
        artifact = litert_models.converted(ready, tmp_path, f"litert/{recipe}")
        bound = artifact.bound(ready.source.inputs), artifact.bound(ready.source.outputs, are_outputs=True)
        answers = []
        for how in ("own", "shared"):
            spec = EngineSpec("litert", "", artifact.model, {"weights": how}, 1)
            engine = engines.get("litert").load(artifact.folder / artifact.model, spec, *bound, None)
            answers.append([engine.run(feed) for feed in ready.calibration()])
        gaps[recipe] = max(
            float(np.abs(left[name] - right[name]).max())
            for left, right in zip(*answers, strict=True)
            for name in left
        )
    assert gaps["fp32"] == gaps["dynamic-int8"] == 0
    assert gaps["static-int8"] > 0
