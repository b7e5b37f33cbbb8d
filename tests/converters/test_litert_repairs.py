"""A LiteRT-only build mends its int8 candidate: the backend finds the layers at fault and leaves them in float."""

import json

import numpy as np
import onnx
import pytest
from litert_models import converted, outputs, prepared

from converters.backends import get
from converters.backends.litert import graph as litert_graph
from converters.recipes.recipes import Tuning, plans
from edgekit import profile
from edgekit.errors import ToolFailedError


@pytest.fixture
def ready(outlier, digits, tmp_path):
    feeds = [{"x": image[None]} for image in np.load(digits.folder / "calib.npz")["x"][:40]]
    return prepared(onnx.load(outlier), tmp_path, feeds)


def test_the_layers_around_the_outlier_are_the_worst_and_all_are_of_the_float_graph(ready, tmp_path):
    (plan,) = plans(profile.load("x86-64-v3"), ["litert/static-int8"])
    artifact = converted(ready, tmp_path, "litert/static-int8", "x86-64-v3")
    found = get("litert").sensitivity(ready, plan, artifact)
    fp32 = converted(ready, tmp_path, "litert/fp32", "x86-64-v3")
    known = {layer.name: layer for layer in litert_graph.layers(fp32.folder / fp32.model)}
    assert {error.name for error in found} <= set(known)
    assert [error.snr_db for error in found] == sorted(error.snr_db for error in found)
    # The outlier's channel is gone behind the second convolution: what comes later is harmless.
    last = next(error for error in found if error.op_type == "FULLY_CONNECTED")
    assert found[0].snr_db < 20 < last.snr_db
    assert found[0].name != last.name


def test_layers_left_in_float_bring_the_answers_back(ready, tmp_path):
    (plan,) = plans(profile.load("x86-64-v3"), ["litert/static-int8"])
    plain = converted(ready, tmp_path, "litert/static-int8", "x86-64-v3")
    worst = [error.name for error in get("litert").sensitivity(ready, plan, plain)[:3]]
    gaps = []
    feed = next(iter(ready.calibration()))
    wanted = ready.source.reference.run(feed)["logits"]
    for tuning in (None, Tuning("mixed", float_layers=tuple(worst))):
        artifact = converted(ready, tmp_path, "litert/static-int8", "x86-64-v3", tuning)
        gaps.append(float(np.abs(outputs(artifact, ready, feed)["logits"] - wanted).max()))
    assert gaps[1] < gaps[0] / 4


def test_a_misspelt_layer_and_an_unknown_setting_are_named(ready, tmp_path):
    with pytest.raises(ToolFailedError, match=r"no layer 'conv_2d\.99'; close ones are conv_2d\."):
        converted(ready, tmp_path, "litert/static-int8", tuning=Tuning("t", float_layers=("conv_2d.99",)))
    with pytest.raises(ToolFailedError, match=r"no setting percent; there are .*percentile"):
        converted(ready, tmp_path, "litert/static-int8", tuning=Tuning("t", settings={"percent": 0.9}))


@pytest.mark.parametrize(
    "settings", [{"percentile": 0.999}, {"moving_average": 0.9}, {"per_channel": False}], ids=str
)
def test_every_setting_makes_another_model_that_still_answers(ready, tmp_path, settings):
    plain = converted(ready, tmp_path, "litert/static-int8")
    before = (plain.folder / plain.model).read_bytes()
    tuned = converted(ready, tmp_path, "litert/static-int8", tuning=Tuning("t", settings=settings))
    assert (tuned.folder / tuned.model).read_bytes() != before
    feed = next(iter(ready.calibration()))
    assert np.isfinite(outputs(tuned, ready, feed)["logits"]).all()


def test_a_build_with_litert_alone_mends_the_candidate_and_names_the_layer(
    outlier, digits, run_build, tmp_path
):
    found = run_build(
        *digits.flags(str(outlier), "x86-64-v3"), "--recipe", "litert/static-int8",
        "--out", tmp_path / "dist", "--json", tmp_path / "result.json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    plain, mended = json.loads((tmp_path / "result.json").read_text())["candidates"]
    assert plain["status"] == "refused"
    assert "worst layers" in plain["reason"]
    assert mended["recipe"] == "litert/static-int8+mixed"
    assert mended["status"] == "picked"
    assert mended["accuracy"]["drop"] <= 0.03 < plain["accuracy"]["drop"]
