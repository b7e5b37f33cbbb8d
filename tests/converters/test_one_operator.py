"""What a quantizer or an engine cannot take costs one operator, on every engine, and is named."""

import numpy as np
import odd_operators as odd
import pytest
from litert_models import converted as by_litert
from litert_models import prepared
from test_recurrent import converted, gap

from converters.backends import Unsupported

RECIPES = ("onnxruntime/static-int8", "openvino/static-int8")


@pytest.mark.parametrize("name", ["mask of -inf", "scores of -inf", "strided 3-D convolution", "all zero"])
def test_the_int8_candidates_of_two_engines_live(name, tmp_path):
    model = odd.MODELS[name]()
    made = prepared(model, tmp_path, odd.feeds(model))
    for recipe in RECIPES:
        assert gap(made, *converted(made, tmp_path, recipe)) < 0.2


def test_a_range_of_nothing_but_zero_costs_a_convolution_in_litert(tmp_path):
    """LiteRT's dynamic int8 of it failed to load: "conv.cc:379 output->type != input_type"."""
    model = odd.MODELS["all zero"]()
    made = prepared(model, tmp_path, odd.feeds(model))
    with pytest.raises(Unsupported) as told:
        by_litert(made, tmp_path, "litert/dynamic-int8")
    nothing, note = str(told.value).split("; ", 1)
    assert nothing.startswith("nothing of the model becomes int8 in LiteRT: CONV_2D (1)")
    assert note.startswith("left in float, since int8 broke the model")
    assert "conv_2d.0" in note
    assert "failed to prepare" in note


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("litert/fp32", "transposed 3-D convolution"),
        ("litert/fp32", "transposed 3-D convolution, longer"),
        ("litert/fp32", "smallest first"),
        ("litert/fp32", "normalized by the batch"),
        ("litert/fp32", "list of tensors"),
        ("openvino/f32", "some of the rows"),
        ("openvino/f32", "some of a part"),
        ("openvino/f32", "spectrum of rows"),
        ("openvino/f32", "spectrum of columns"),
        ("openvino/f32", "spectrum by an attribute"),
        ("openvino/f32", "sum of magnitudes"),
        ("openvino/f32", "logarithm of a sum"),
        ("openvino/f32", "logarithm of exponents"),
        ("openvino/f32", "sparse weights"),
    ],
)
def test_an_engine_computes_the_same_of_what_its_tools_get_wrong(recipe, name, tmp_path):
    model = odd.MODELS[name]()
    made = prepared(model, tmp_path, odd.feeds(model))
    assert gap(made, *converted(made, tmp_path, recipe)) < 1e-4
    assert not list(tmp_path.glob("tmp*")), "what OpenVINO was given to read is gone"


@pytest.mark.proof
@pytest.mark.parametrize("make", odd.MODELS.values(), ids=odd.MODELS)
def test_every_kind_through_every_engine(make, tmp_path):
    """Where LiteRT has nothing to quantize (3-D convolutions), there is no candidate by that name."""
    model = make()
    made = prepared(model, tmp_path, odd.feeds(model, 8))
    gaps = {recipe: gap(made, *converted(made, tmp_path, recipe)) for recipe in (*RECIPES, "litert/fp32")}
    for recipe in ("litert/static-int8", "litert/dynamic-int8", "litert/weights-int8"):
        try:
            gaps[recipe] = gap(made, *converted(made, tmp_path, recipe))
        except Unsupported as told:
            if "nothing of the model becomes int8 in LiteRT" not in str(told):
                raise
    assert max(gaps.values()) < 0.2, gaps
    assert np.isfinite(list(gaps.values())).all()


def test_a_value_that_a_loop_reads_may_be_quantized_outside(tmp_path):
    """ONNX Runtime's own sort put the loop before what it reads."""
    model = odd.looked_at_by_a_loop()
    made = prepared(model, tmp_path, odd.feeds(model))
    plan, artifact = converted(made, tmp_path, "onnxruntime/static-int8")
    assert gap(made, plan, artifact) < 0.2
    assert not any("left in float, since int8 broke" in note for note in artifact.notes)
