"""Patterns before a conversion: what is recognised computes the same in fewer operators; near misses are left alone."""

import math

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from litert_models import converted, model, operators, outputs, prepared
from onnx import helper

from converters.graph.patterns import recognised

RANDOM = np.random.default_rng(0)
ROOT = np.float32(math.sqrt(2))
COEFFICIENT = np.float32(math.sqrt(2 / math.pi))


def node(op_type, inputs, output, **attributes):
    return helper.make_node(op_type, inputs.split(), [output], **attributes)


def floats(*shape, scale=1.0):
    return (scale * RANDOM.standard_normal(shape)).astype(np.float32)


def erf_gelu(half=0.5):
    return [
        node("Div", "x root", "a"), node("Erf", "a", "b"), node("Add", "b one", "c"),
        node("Mul", "x c", "d"), node("Mul", "d half", "y"),
    ], {"root": ROOT, "one": np.float32(1), "half": np.float32(half)}  # fmt: skip


def tanh_gelu(inner=0.044715):
    return [
        node("Pow", "x three", "a"), node("Mul", "a inner", "b"), node("Add", "x b", "c"),
        node("Mul", "c outer", "d"), node("Tanh", "d", "e"), node("Add", "e one", "f"),
        node("Mul", "x f", "g"), node("Mul", "g half", "y"),
    ], {
        "three": np.float32(3), "inner": np.float32(inner), "outer": COEFFICIENT, "one": np.float32(1),
        "half": np.float32(0.5),
    }  # fmt: skip


def hard_swish(upper=6.0):
    return [
        node("Add", "x three", "a"), node("Clip", "a low high", "b"), node("Mul", "x b", "c"),
        node("Div", "c six", "y"),
    ], {
        "three": np.float32(3), "low": np.float32(0), "high": np.float32(upper), "six": np.float32(6),
    }  # fmt: skip


def silu(sign="Neg"):
    return [
        node(sign, "x", "a"), node("Exp", "a", "b"), node("Add", "b one", "c"), node("Div", "x c", "y"),
    ], {"one": np.float32(1)}  # fmt: skip


def layer_norm(variance="y0"):
    """`variance` of the centred values, or of something else."""
    return [
        node("ReduceMean", "x", "mean", axes=[-1]), node("Sub", "x mean", "y0"),
        node("Pow", f"{variance} two", "sq"), node("ReduceMean", "sq", "var", axes=[-1]),
        node("Add", "var eps", "v"), node("Sqrt", "v", "sd"), node("Div", "y0 sd", "n"),
        node("Mul", "n scale", "m"), node("Add", "m shift", "y"),
    ], {
        "two": np.float32(2), "eps": np.float32(1e-5), "scale": floats(16), "shift": floats(16),
    }  # fmt: skip


def softmax(total="e"):
    """`total` of the exponentials, or of something else."""
    return [
        node("ReduceMax", "x", "top", axes=[-1]), node("Sub", "x top", "low"), node("Exp", "low", "e"),
        node("ReduceSum", f"{total} axis", "s"), node("Div", "e s", "y"),
    ], {"axis": np.array([-1])}  # fmt: skip


def pooling(axes=(2, 3)):
    return [node("ReduceMean", "x", "y", axes=list(axes))], {}


def batch_norm(extra=()):
    return [
        node("Conv", "x w", "h", pads=[1, 1, 1, 1]), node("BatchNormalization", "h s b m v", "y"), *extra,
    ], {
        "w": floats(6, 4, 3, 3), "s": floats(6), "b": floats(6), "m": floats(6), "v": np.abs(floats(6)) + 0.1,
    }  # fmt: skip


def depthwise(kernel=(7, 7), channels=4, **attributes):
    attributes = {"pads": [3, 3, 3, 3], "group": channels, **attributes}
    return [node("Conv", "x w b", "y", **attributes)], {
        "w": floats(channels, 4 // attributes["group"], *kernel),
        "b": floats(channels),
    }


def attention(where="product"):
    """(q · k) scaled behind the product; rows of 4, 16 of them."""
    scaled = [node("MatMul", "x k", "p"), node("Mul", "p eighth", "y")]
    if where == "small":
        scaled = [node("MatMul", "x narrow", "p"), node("Mul", "p eighth", "y")]
    return [node("Transpose", "x", "k", perm=[0, 2, 1]), *scaled], {
        "eighth": np.float32(0.125),
        "narrow": floats(4, 2),
    }


IMAGE = (1, 4, 9, 10)
ROWS = (1, 5, 16)
POSITIVE = {
    # name of the pattern: graph, shape of x, operator that stands for it, operators that are gone
    "erf-GELU": (erf_gelu(), ROWS, "GELU", {"MUL", "ADD"}),
    "tanh-GELU": (tanh_gelu(), ROWS, "GELU", {"TANH", "POW", "MUL"}),
    "hard-swish": (hard_swish(), IMAGE, "HARD_SWISH", {"MINIMUM", "RELU6", "ADD"}),
    "SiLU": (silu(), IMAGE, "LOGISTIC", {"EXP", "DIV", "NEG"}),
    "layer norm": (layer_norm(), ROWS, "RSQRT", {"DIV", "SQRT", "POW"}),
    "softmax": (softmax(), ROWS, "SOFTMAX", {"EXP", "DIV", "SUM"}),
    "global pooling": (pooling(), IMAGE, "MEAN", {"AVERAGE_POOL_2D", "SUM"}),
    "batch norm": (batch_norm(), IMAGE, "CONV_2D", {"MUL", "SUB", "RSQRT"}),
    "wide depthwise": (depthwise(), IMAGE, "DEPTHWISE_CONV_2D", {"CONV_2D"}),
}
NEGATIVE = {
    "half of a GELU that is not a half": (erf_gelu(half=0.4), ROWS),
    "a tanh with another cubic": (tanh_gelu(inner=0.06), ROWS),
    "a swish that saturates elsewhere": (hard_swish(upper=5.0), IMAGE),
    "a SiLU of the other sign": (silu("Abs"), IMAGE),
    "a variance of values that are not centred": (layer_norm(variance="x"), ROWS[1:]),
    "a softmax over another sum": (softmax(total="low"), ROWS),
    "a mean over channels": (pooling((1, 2)), IMAGE),
    "a batch norm whose convolution is read elsewhere": (batch_norm([node("Relu", "h", "z")]), IMAGE),
    "a depthwise kernel of 25 taps": (depthwise((5, 5), pads=[2, 2, 2, 2]), IMAGE),
    "a wide kernel that is not depthwise": (depthwise(group=2), IMAGE),
    "a product smaller than its operand": (attention("small"), (1, 16, 4)),
}


def build(graph, shape):
    nodes, constants = graph
    extra = {name: None for part in nodes for name in part.output if name in ("y", "z")}
    made = model(nodes, {name: np.asarray(value) for name, value in constants.items()}, {"x": shape}, extra)
    feeds = [{"x": floats(*shape, scale=2)} for _ in range(3)]
    return made, feeds


def run(made, feed):
    made.opset_import[0].version = max(made.opset_import[0].version, 20)
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)


@pytest.mark.parametrize("name", POSITIVE)
def test_a_pattern_becomes_the_operator_that_has_a_kernel_and_computes_the_same(tmp_path, name):
    graph, shape, operator, gone = POSITIVE[name]
    made, feeds = build(graph, shape)
    _, found = recognised(made, for_xnnpack=True)
    assert found == {name: 1}
    ready = prepared(made, tmp_path, feeds)
    artifact = converted(ready, tmp_path)
    for feed in feeds:
        wanted = ready.source.reference.run(feed)["y"]
        assert np.allclose(outputs(artifact, ready, feed)["y"], wanted, atol=2e-5 * np.abs(wanted).max())
    kinds = operators(artifact)
    assert kinds[operator]
    assert not gone & set(kinds), kinds


@pytest.mark.parametrize("name", NEGATIVE)
def test_a_near_miss_is_left_alone(name):
    made, _ = build(*NEGATIVE[name])
    after, found = recognised(made, for_xnnpack=True)
    assert found == {}
    assert [part.op_type for part in after.graph.node] == [part.op_type for part in made.graph.node]


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ((7, 7), {}),
        ((7, 7), {"strides": [2, 1]}),
        ((3, 9), {"pads": [1, 4, 1, 2], "dilations": [2, 1]}),
        ((1, 31), {"pads": [0, 15, 0, 15]}),
        ((9, 9), {"pads": [4, 4, 4, 4]}),
    ],
)
def test_a_wide_depthwise_kernel_in_parts_is_the_same_convolution(kernel, attributes):
    made, feeds = build(depthwise(kernel, **attributes), (1, 4, 13, 14))
    after, found = recognised(made, for_xnnpack=True)
    assert found == {"wide depthwise": 1}
    sizes = [onnx.numpy_helper.to_array(part).shape[2:] for part in after.graph.initializer]
    assert all(np.prod(size) <= 25 for size in sizes if len(size) == 2)
    for feed in feeds:
        wanted, have = run(made, feed)[0], run(after, feed)[0]
        assert np.allclose(have, wanted, atol=1e-5 * np.abs(wanted).max())


def test_every_engine_but_xnnpack_gets_a_wide_depthwise_kernel_whole():
    made, _ = build(depthwise(), IMAGE)
    assert recognised(made)[1] == {}


def test_the_scale_of_attention_goes_to_the_smaller_operand():
    made, feeds = build(attention(), (1, 16, 4))
    after, _ = recognised(made)
    assert [part.op_type for part in after.graph.node] == ["Transpose", "Mul", "MatMul"]
    assert np.allclose(run(after, feeds[0])[0], run(made, feeds[0])[0], rtol=1e-5, atol=1e-5)


def test_the_callers_model_is_not_changed():
    made, _ = build(erf_gelu(), ROWS)
    before = made.SerializeToString(deterministic=True)
    recognised(made)
    assert made.SerializeToString(deterministic=True) == before
