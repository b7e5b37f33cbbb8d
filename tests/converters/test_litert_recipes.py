"""Every LiteRT recipe really made: what the flatbuffer holds, that it computes what the source does, and its notes."""

import dataclasses
import subprocess
import sys

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from litert_models import converted, model, operators, outputs, prepared
from onnx import helper

from converters.backends import Unsupported
from converters.backends.litert import graph as litert_graph
from converters.backends.litert import int8
from converters.recipes.recipes import Tuning, plans
from edgekit import profile

FLOAT16, FLOAT32, INT8, INT16 = (
    getattr(schema.TensorType, name) for name in ("FLOAT16", "FLOAT32", "INT8", "INT16")
)
CPU, U55 = "raspberry-pi-5", "arm-ethos-u55-128"
# recipe, target, type of the first convolution's weights, type of its output, agreement with the source
MADE = [
    ("litert/fp16", CPU, FLOAT16, FLOAT32, 1.0),
    ("litert/weights-int8", CPU, INT8, FLOAT32, 0.97),
    ("litert/dynamic-int8", CPU, INT8, FLOAT32, 0.97),
    ("litert/static-int8", CPU, INT8, INT8, 0.95),
    ("litert/static-int8", U55, INT8, INT8, 0.95),
    ("litert/static-int16x8", U55, INT8, INT16, 0.97),
    ("litert/percentile-int8", U55, INT8, INT8, 0.93),
]


@pytest.fixture(scope="module")
def ready(digits, tmp_path_factory):
    feeds = [{"x": image[None]} for image in np.load(digits.folder / "calib.npz")["x"][:40]]
    return prepared(onnx.load(digits.folder / "model.onnx"), tmp_path_factory.mktemp("ready"), feeds)


def types(artifact):
    """Of the first convolution: its weights' tensor type, past what widens them, and its output's."""
    raw = (artifact.folder / artifact.model).read_bytes()
    found = schema.ModelT.InitFromObj(schema.Model.GetRootAs(raw))
    graph = found.subgraphs[0]
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in found.operatorCodes]
    maker = {index: entry for entry in graph.operators for index in entry.outputs}
    layer = next(
        entry for entry in graph.operators if codes[entry.opcodeIndex] == schema.BuiltinOperator.CONV_2D
    )
    weights = layer.inputs[1]
    weights = maker[weights].inputs[0] if weights in maker else weights
    return graph.tensors[weights].type, graph.tensors[layer.outputs[0]].type


@pytest.mark.proof
def test_calibration_samples_are_seen_once_for_all_settings_that_do_not_change_what_is_seen(digits, tmp_path):
    feeds = [{"x": image[None]} for image in np.load(digits.folder / "calib.npz")["x"][:40]]
    tunings = [Tuning("t", settings=settings) for settings in (
        {}, {"percentile": 0.999}, {"percentile": 0.9999, "per_channel": False}, {"moving_average": 0.9}, {},
    )]  # fmt: skip

    def fresh(name):
        folder = tmp_path / name
        folder.mkdir()
        return prepared(onnx.load(digits.folder / "model.onnx"), folder, feeds), folder

    passes = 0
    shared, folder = fresh("shared")

    def counted():
        nonlocal passes
        passes += 1
        return iter(feeds)

    shared = dataclasses.replace(shared, calibration=counted)
    made, seen = [], []
    for tuning in tunings:
        artifact = converted(shared, folder, "litert/static-int8", CPU, tuning)
        made.append((artifact.folder / artifact.model).read_bytes())
        seen.append(passes)
    # Extremes; then the spread; nothing new; the smoothed extremes; nothing new.
    assert seen == [1, 2, 2, 3, 3]
    assert made[0] == made[4]
    for number, tuning in enumerate(tunings[:4]):
        artifact = converted(*fresh(str(number)), "litert/static-int8", CPU, tuning)
        assert (artifact.folder / artifact.model).read_bytes() == made[number]


@pytest.mark.parametrize(("recipe", "target", "weights", "activations", "agreement"), MADE)
def test_a_recipe_is_made_and_agrees_with_the_source(
    ready, digits, tmp_path, recipe, target, weights, activations, agreement
):
    artifact = converted(ready, tmp_path, recipe, target)
    assert types(artifact) == (weights, activations)
    assert artifact.size_bytes < 0.8 * ready.canonical.path.stat().st_size
    images = np.load(digits.folder / "eval.npz")["x"][:150]
    same = [
        outputs(artifact, ready, {"x": image[None]})["logits"].argmax()
        == ready.source.reference.run({"x": image[None]})["logits"].argmax()
        for image in images
    ]
    assert np.mean(same) >= agreement


def test_a_16_bit_graph_for_an_ethos_u_is_integer_throughout(ready, tmp_path):
    artifact = converted(ready, tmp_path, "litert/static-int16x8", U55)
    inside = {
        kind
        for layer in litert_graph.layers(artifact.folder / artifact.model)
        if layer.op_type in litert_graph.HEAVY
        for kind in layer.types
    }
    assert FLOAT32 not in inside


def test_recipes_of_one_source_share_its_float_conversion(ready, tmp_path, monkeypatch):
    converted(ready, tmp_path, "litert/fp16", CPU)
    monkeypatch.setattr("converters.backends.litert.backend._convert_torch", None)
    assert converted(ready, tmp_path, "litert/weights-int8", CPU).size_bytes


def test_a_graph_that_cannot_be_converted_is_tried_once_for_all_recipes(ready, tmp_path, monkeypatch):
    calls = []

    def refuse(*_, **__):
        calls.append(1)
        raise RuntimeError("no")

    monkeypatch.setattr("converters.backends.litert.backend._convert_torch", refuse)
    fresh = dataclasses.replace(ready, memo={})
    for recipe in ("litert/fp32", "litert/weights-int8"):
        with pytest.raises(Unsupported, match="as it is: RuntimeError: no"):
            converted(fresh, tmp_path, recipe, CPU)
    assert len(calls) == len(("with its patterns recognised", "as it is", "traced"))


def test_boxes_and_scores_that_are_joined_in_one_output_keep_their_own_precision(tmp_path):
    random = np.random.default_rng(0)
    made = model(
        [
            helper.make_node("Conv", ["x", "b"], ["boxes"]),
            helper.make_node("Conv", ["x", "s"], ["raw"]),
            helper.make_node("Sigmoid", ["raw"], ["scores"]),
            helper.make_node("Concat", ["boxes", "scores"], ["y"], axis=1),
        ],
        {
            "b": random.uniform(20, 40, (4, 3, 1, 1)).astype(np.float32),
            "s": random.standard_normal((6, 3, 1, 1)).astype(np.float32),
        },
        {"x": (1, 3, 8, 8)},
        {"y": (1, 10, 8, 8)},
    )
    feeds = [{"x": random.uniform(0, 3, (1, 3, 8, 8)).astype(np.float32)} for _ in range(8)]
    ready = prepared(made, tmp_path, feeds)
    artifact = converted(ready, tmp_path, "litert/static-int8", CPU)
    assert types(artifact) == (INT8, INT8)
    gap = np.abs(outputs(artifact, ready, feeds[0])["y"] - ready.source.reference.run(feeds[0])["y"])
    # With one range for both a score would be a multiple of more than one.
    assert gap[:, 4:].max() < 0.05
    assert gap[:, :4].max() < 5


def mobile(folder):
    """A depthwise and a pointwise convolution, and a GATHER_ND that XNNPACK leaves."""
    from litert_models import model
    from onnx import helper

    random = np.random.default_rng(0)
    made = model(
        [
            helper.make_node("Conv", ["x", "d"], ["h"], group=8, pads=[1, 1, 1, 1]),
            helper.make_node("Conv", ["h", "p"], ["r"]),
            helper.make_node("Resize", ["r", "", "scales"], ["s"], mode="nearest", nearest_mode="floor",
                             coordinate_transformation_mode="asymmetric"),
            helper.make_node("Relu", ["s"], ["y"]),
        ],
        {
            "d": random.standard_normal((8, 1, 3, 3)).astype(np.float32),
            "p": random.standard_normal((16, 8, 1, 1)).astype(np.float32),
            "scales": np.float32([1, 1, 2, 2]),
        },
        {"x": (1, 8, 12, 12)},
        {"y": (1, 16, 24, 24)},
    )  # fmt: skip
    feeds = [{"x": random.standard_normal((1, 8, 12, 12)).astype(np.float32)} for _ in range(4)]
    return prepared(made, folder, feeds)


def test_what_stays_in_float_is_found_once_for_a_graph_not_for_each_of_its_layers(monkeypatch):
    """Of an unrolled recurrence with 1,600 layers that took as long as all else of a static conversion."""
    graph = [litert_graph.Layer(f"add.{n}", "ADD", (f"t{n}",), (f"t{n + 1}",), (0, 0)) for n in range(50)]
    looked, find = [], int8.slow_in
    monkeypatch.setattr(int8, "slow_in", lambda *given: looked.append(1) or find(*given))
    for recipe, times in (("litert/static-int8", 0), ("litert/dynamic-int8", 1)):
        (plan,) = plans(profile.load("x86-64-v4-vnni"), [recipe])
        looked.clear()
        assert int8.float_weights(plan, graph) == ()
        assert len(looked) == times


def test_what_the_fast_path_leaves_and_what_stays_in_float_is_said(tmp_path):
    ready = mobile(tmp_path)
    dynamic = converted(ready, tmp_path, "litert/dynamic-int8")
    assert "off the fast path (XNNPACK): RESIZE_NEAREST_NEIGHBOR (1)" in dynamic.notes
    assert "weights left in float, which runs faster: DEPTHWISE_CONV_2D (1)" in dynamic.notes
    everywhere = converted(
        ready, tmp_path, "litert/dynamic-int8", tuning=Tuning("t", settings={"int8_everywhere": True})
    )
    assert any("DEPTHWISE_CONV_2D (1)" in note and "off the fast path" in note for note in everywhere.notes)


def test_a_graph_that_is_all_on_the_fast_path_has_no_such_note(ready, tmp_path):
    artifact = converted(ready, tmp_path, "litert/fp32")
    assert operators(artifact)["CONV_2D"] == 1
    assert not [note for note in artifact.notes if "fast path" in note]


PEAK = """
import resource, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from converters.backends import Prepared
from converters.backends.litert import int8
from converters.recipes.recipes import plans
from edgekit import profile
from edgekit.manifest import TensorSpec
from types import SimpleNamespace
random = np.random.default_rng(0)
def feeds():
    for _ in range(int(sys.argv[2])):
        yield {"x": random.standard_normal((1, 8, 12, 12)).astype(np.float32)}
source = SimpleNamespace(inputs=(TensorSpec("x", "float32", (1, 8, 12, 12)),), native=None)
(plan,) = plans(profile.load("arm-ethos-u55-128"), ["litert/" + sys.argv[3]])
assert int8.calibrated(Prepared(source, None, feeds), plan, Path(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("recipe", ["static-int8", pytest.param("percentile-int8", marks=pytest.mark.proof)])
def test_calibration_needs_no_more_memory_for_many_samples_than_for_sixteen(tmp_path, recipe):
    artifact = converted(mobile(tmp_path), tmp_path)
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", PEAK, str(artifact.folder / artifact.model), count, recipe],
                capture_output=True, text=True, check=True,
            ).stdout.split()[-1]
        )
        for count in ("16", "1000")
    ]  # fmt: skip
    # In kB. The activations of 1,000 samples are 90 MB, their inputs alone 5.
    assert peaks[1] - peaks[0] < 20_000


@pytest.mark.parametrize("kind", ["uint8", "uint16", "uint32", "int64"])
def test_integers_come_in_as_the_model_declares_them(tmp_path, kind):
    """LiteRT has kernels for fewer integer types than ONNX; the engine's binding takes the model's own."""
    made = model(
        [helper.make_node("Cast", ["x"], ["f"], to=1), helper.make_node("Mul", ["f", "half"], ["y"])],
        {"half": np.float32([0.5])},
        {"x": [1, 4]},
        {"y": [1, 4]},
    )
    code = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    made.graph.input[0].type.tensor_type.elem_type = code
    feed = {"x": np.array([[0, 1, 7, 250]], kind)}
    ready = prepared(made, tmp_path, [feed])
    found = outputs(converted(ready, tmp_path), ready, feed)
    np.testing.assert_allclose(found["y"], [[0, 0.5, 3.5, 125]])


@pytest.fixture(scope="module")
def embedding(tmp_path_factory):
    """A table of 1,000 rows whose scales differ by orders of magnitude, some looked up from its end, and a product."""
    random = np.random.default_rng(0)
    sizes = [(1000, 64), (64, 32)]
    table, weights = (
        (random.standard_normal(size) * np.exp(2 * random.standard_normal(along))).astype(np.float32)
        for size, along in zip(sizes, [(1000, 1), (1, 32)], strict=True)
    )
    made = model(
        [
            helper.make_node("Gather", ["table", "x"], ["rows"], "lookup"),
            helper.make_node("MatMul", ["rows", "m"], ["y"], "product"),
        ],
        {"table": table, "m": weights},
        {"x": (1, 4)},
        {"y": (1, 4, 32)},
    )
    made.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    feeds = [{"x": random.integers(-1000, 1000, (1, 4))} for _ in range(8)]
    return prepared(made, tmp_path_factory.mktemp("embedding"), feeds), feeds


@pytest.mark.proof
def test_a_table_of_an_onnx_model_is_looked_up_and_stays_in_int8_until_then(embedding, tmp_path):
    ready, feeds = embedding
    plain = converted(ready, tmp_path, "litert/fp32")
    largest = max(np.abs(ready.source.reference.run(feed)["y"]).max() for feed in feeds)
    for recipe in ("litert/weights-int8", "litert/dynamic-int8", "litert/static-int8"):
        artifact = converted(ready, tmp_path, recipe)
        found = operators(artifact)
        assert found["EMBEDDING_LOOKUP"] == 1
        # What is widened as a whole are the product's weights, or its result.
        assert found["DEQUANTIZE"] == (recipe != "litert/dynamic-int8")
        assert artifact.size_bytes < 0.4 * plain.size_bytes
        for feed in feeds:
            wanted = ready.source.reference.run(feed)["y"]
            gap = np.abs(outputs(artifact, ready, feed)["y"] - wanted)
            if recipe == "litert/static-int8":
                # 255 steps for a product's result, from the smallest to the largest that calibration saw.
                assert np.median(gap) < 0.01 * largest
            else:
                # One scale for each row and each channel: small ones keep their digits.
                assert np.median(gap / np.abs(wanted)) < 0.03
            assert np.allclose(outputs(plain, ready, feed)["y"], wanted, atol=1e-4)
