"""ONNX files as old, careless and unusual exporters write them, and layers that quantizers stumble over."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from litert_models import converted, model, operators, outputs, prepared, prepared_program
from onnx import TensorProto, helper, numpy_helper

from converters.graph import canonical
from converters.source import onnx_source
from converters.source.project import from_flags
from edgekit.errors import EdgeKitError

RANDOM = np.random.default_rng(5)


def floats(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def opened(made, folder):
    path = folder / "a model.onnx"
    onnx.save(made, str(path))
    project = from_flags({
        "model": {"name": "m", "version": "1", "source": str(path)},
        "targets": {"x86-64-v3": {}}, "data": {"evaluation": "unused"},
    })  # fmt: skip
    return onnx_source.open_file(project, path)


def info(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def old_file(is_named_twice=False):
    """IR 3: constants among the inputs, one of them unused, one an output; odd names."""
    constants = {"w/0:0": floats(6, 4), "left": floats(3), "table:0": floats(2, 2)}
    first, second = ("same", "same") if is_named_twice else ("one", "")
    nodes = [
        helper.make_node("MatMul", ["x é:0", "w/0:0"], ["h/1:0"], name=first),
        helper.make_node("Relu", ["h/1:0"], ["y out:0"], name=second),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [info("x é:0", [1, 6]), *(info(name, array.shape) for name, array in constants.items())],
        [info("y out:0", [1, 4]), info("table:0", [2, 2])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=3), constants


@pytest.mark.parametrize("is_named_twice", [False, True])
def test_an_old_file_is_put_in_order(is_named_twice, tmp_path):
    made, constants = old_file(is_named_twice)
    source = opened(made, tmp_path)
    feeds = [{"x é:0": floats(1, 6)} for _ in range(3)]
    form = canonical.canonicalize(source, feeds, tmp_path)
    graph = onnx.load(str(form.path)).graph
    assert onnx.load(str(form.path)).ir_version >= 8
    assert [value.name for value in graph.input] == ["x é:0"]
    assert "left" not in {tensor.name for tensor in graph.initializer}
    made_by_nodes = {name for node in graph.node for name in node.output}
    assert {value.name for value in graph.output} <= made_by_nodes
    session = ort.InferenceSession(str(form.path))
    for feed in feeds:
        y, table = session.run(["y out:0", "table:0"], feed)
        assert np.allclose(y, np.maximum(feed["x é:0"] @ constants["w/0:0"], 0), atol=1e-5)
        assert np.array_equal(table, constants["table:0"])


def classifier(*outputs):
    weights = floats(6 * 3)
    nodes = [
        helper.make_node(
            "LinearClassifier", ["x"], ["label", "p"], domain="ai.onnx.ml", coefficients=weights.tolist(),
            intercepts=[0.0] * 3, classlabels_strings=["a", "b", "c"], post_transform="SOFTMAX",
        ),
        helper.make_node("ZipMap", ["p"], ["maps"], domain="ai.onnx.ml", classlabels_strings=["a", "b", "c"]),
    ]  # fmt: skip
    graph = helper.make_graph(nodes, "g", [info("x", [1, 6])], list(outputs))
    imports = [helper.make_opsetid("", 15), helper.make_opsetid("ai.onnx.ml", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8), weights.reshape(3, 6)


LABEL = info("label", [1], TensorProto.STRING)
MAPS = helper.make_value_info(
    "maps",
    helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    ),
)


def test_probabilities_come_as_a_tensor_and_labels_of_words_are_left_out(tmp_path):
    made, weights = classifier(LABEL, MAPS)
    source = opened(made, tmp_path)
    assert [spec.name for spec in source.outputs] == ["maps"]
    assert [word in note for word, note in zip(["ZipMap", "words"], source.notes, strict=True)] == [
        True,
        True,
    ]
    feed = {"x": floats(1, 6)}
    form = canonical.canonicalize(source, [feed], tmp_path)
    scores = np.exp(feed["x"] @ weights.T)
    (got,) = ort.InferenceSession(str(form.path)).run(None, feed)
    assert np.allclose(got, scores / scores.sum(), atol=1e-5)
    assert form.notes[:2] == source.notes


def simple(value, result=None):
    graph = helper.make_graph(
        [helper.make_node("Identity", [value.name], ["y"])], "g", [value], [result or info("y", None)]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: classifier(LABEL)[0], ["'label'", "words"]),
        (lambda: simple(info("t", [1, 2], TensorProto.STRING)), ["input 't'", "words"]),
        (lambda: simple(info("t", [1, 0, 2])), ["input 't'", "axis 1", "size 0"]),
        (lambda: simple(info("t", [1, 2], TensorProto.BFLOAT16)), ["input 't'", "bfloat16"]),
        (
            lambda: simple(helper.make_value_info("t", helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [2])))),
            ["input 't'", "sequence"],
        ),
    ],
)  # fmt: skip
def test_what_is_no_tensor_of_numbers_is_refused_in_one_sentence(made, words, tmp_path):
    with pytest.raises(EdgeKitError) as caught:
        opened(made(), tmp_path)
    assert [word for word in words if word not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("domain", "who"), [("acme", "Plugin of acme"), ("", "Plugin")])
def test_an_operator_that_nobody_has_is_named_with_its_node(domain, who, tmp_path):
    """Exporters for other runtimes write such: a TensorRT plugin, or layers of a training library."""
    inside = helper.make_node("Plugin", ["x"], ["t"], name="nms", domain=domain)
    branch = helper.make_graph([inside], "b", [], [info("t", None)])
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
    inputs = [info("x", [1, 2]), info("c", [], TensorProto.BOOL)]
    imports = [helper.make_opsetid(name, 17) for name in ("", *filter(None, (domain,)))]
    graph = helper.make_graph(nodes, "g", inputs, [info("y", None)])
    with pytest.raises(EdgeKitError, match=rf"a model\.onnx: node 'nms' is {who}, .*; export") as caught:
        opened(helper.make_model(graph, opset_imports=imports, ir_version=8), tmp_path)
    assert "ONNXRuntimeError" not in str(caught.value)


def pooled(op, shape, opset=17, **attributes):
    ones = (1,) * (len(shape) - 2)
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]),
        helper.make_node(op, ["h"], ["p"], **attributes),
        helper.make_node("Conv", ["p", "b"], ["y"]),
    ]
    return model(
        nodes, {"a": floats(4, shape[1], *ones), "b": floats(4, 4, *ones)}, {"x": shape}, {"y": None}, opset
    )


POOLS = {
    "dilated": ("MaxPool", (1, 3, 9, 10), 17, {"kernel_shape": [3, 2], "dilations": [2, 1], "pads": [2, 1, 1, 0]}),
    "dilated, rounded up": (
        "MaxPool", (1, 3, 11, 10), 17, {"kernel_shape": [3, 3], "dilations": [1, 2], "strides": [2, 2], "ceil_mode": 1},
    ),
    "three axes": ("MaxPool", (1, 2, 4, 6, 5), 17, {"kernel_shape": [2, 3, 3], "strides": [1, 2, 2], "pads": [0, 1, 1] * 2}),
    "one axis, dilated": ("MaxPool", (1, 3, 20), 17, {"kernel_shape": [3], "dilations": [3], "strides": [2]}),
    "average within its pads": ("AveragePool", (1, 3, 9, 9), 17, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}),
    "average over three axes": ("AveragePool", (1, 2, 4, 6, 6), 17, {"kernel_shape": [2] * 3, "strides": [2] * 3}),
}  # fmt: skip


@pytest.mark.parametrize(("op", "shape", "opset", "attributes"), POOLS.values(), ids=POOLS)
@pytest.mark.parametrize(
    "target", [pytest.param("x86-64-v4-vnni", marks=pytest.mark.proof), "arm-ethos-u55-128"]
)
def test_a_pool_without_a_kernel_does_not_cost_the_candidate(op, shape, opset, attributes, target, tmp_path):
    feeds = [{"x": floats(*shape)} for _ in range(6)]
    made = pooled(op, shape, opset, **attributes)
    ready = prepared(made, tmp_path, feeds)
    artifact = converted(ready, tmp_path, "litert/static-int8", target)
    session = ort.InferenceSession(made.SerializeToString())
    for feed in feeds:
        (wanted,) = session.run(None, feed)
        assert np.abs(outputs(artifact, ready, feed)["y"] - wanted).max() < 0.15 * np.abs(wanted).max()
    if op == "MaxPool":
        assert "STABLEHLO_REDUCE_WINDOW" not in operators(artifact)
    elif operators(artifact)["STABLEHLO_REDUCE_WINDOW"]:
        assert any("STABLEHLO_REDUCE_WINDOW" in note for note in artifact.notes)


@pytest.mark.parametrize("what", ["activation", "filter", "input"])
def test_what_is_always_zero_costs_nothing(what, tmp_path):
    first, bias = floats(4, 3, 3, 3), np.zeros(4, np.float32)
    if what == "filter":
        first[2] = 0
    if what == "activation":
        first[:], bias[:] = 0, -1
    nodes = [
        helper.make_node("Conv", ["x", "a", "bias"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "b"], ["m"]),
        helper.make_node("Add", ["m", "n"], ["y"]),
        helper.make_node("Conv", ["x", "c"], ["n"]),
    ]
    nodes = [nodes[index] for index in (0, 1, 2, 4, 3)]
    constants = {"a": first, "bias": bias, "b": floats(4, 4, 1, 1) * 1000, "c": floats(4, 3, 3, 3)}
    made = model(nodes, constants, {"x": (1, 3, 8, 8)}, {"y": None})
    scale = 0.0 if what == "input" else 100.0
    feeds = [{"x": floats(1, 3, 8, 8) * np.float32(scale)} for _ in range(6)]
    ready = prepared(made, tmp_path, feeds)
    artifact = converted(ready, tmp_path, "litert/static-int8")
    session = ort.InferenceSession(made.SerializeToString())
    for feed in feeds:
        (wanted,) = session.run(None, feed)
        found = outputs(artifact, ready, feed)["y"]
        assert np.abs(found - wanted).max() <= 0.08 * np.abs(wanted).max()
    assert operators(artifact)["CONV_2D"] == 3


TWICE = """
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = torch.nn.Linear(6, 4)

        def forward(self, x, unused):
            y = self.layer(x)
            return y, y, x, y > 0

    def make():
        return Net()
"""


@pytest.mark.parametrize("recipe", ["litert/fp32", "litert/static-int8"])
def test_one_tensor_may_be_several_outputs_and_an_input(recipe, tmp_path):
    feeds = [{"x": floats(1, 6), "unused": floats(1, 2)} for _ in range(6)]
    ready = prepared_program(TWICE, tmp_path, feeds)
    assert ready.canonical.notes == ()
    artifact = converted(ready, tmp_path, recipe)
    for feed in feeds:
        wanted, found = ready.source.reference.run(feed), outputs(artifact, ready, feed)
        assert np.array_equal(found["output_0"], found["output_1"])
        assert np.abs(found["output_0"] - wanted["output_0"]).max() < 0.05
        assert np.abs(found["output_2"] - feed["x"]).max() < 0.05
