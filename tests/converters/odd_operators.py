"""Small nets, each with one operator, range or shape that some quantizer or delegate stumbles over."""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RANDOM = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return (RANDOM.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def whole(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    shape: tuple[int, ...],
    inputs: dict[str, tuple[int, ...]] | None = None,
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
            for n, s in {"x": shape, **(inputs or {})}.items()
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def conv(given: str, weight: str, made: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node("Conv", [given, weight], [made], f"conv_{made}", **attributes)


def between(node: onnx.NodeProto, constants: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """A net of two convolutions with the operator, which takes `a` and gives `b`, in their middle."""
    nodes = [
        conv("x", "w1", "pre", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["pre"], ["a"], "relu"),
        node,
        conv("b", "w2", "y", pads=[1, 1, 1, 1]),
    ]
    return whole(
        nodes, {"w1": weights(8, 3, 3, 3), "w2": weights(4, 8, 3, 3), **(constants or {})}, (1, 3, 12, 12)
    )


def dead_channel() -> onnx.ModelProto:
    model = between(helper.make_node("Identity", ["a"], ["b"]))
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name == "w1":
            array[2] = 0
        if tensor.name == "w2":
            array[1] = 0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def always_zero() -> onnx.ModelProto:
    """What stands between the convolutions is zero for every input."""
    return between(
        helper.make_node("Mul", ["a", "nothing"], ["b"], "mul"), {"nothing": np.zeros(1, np.float32)}
    )


def masked_attention() -> onnx.ModelProto:
    mask = np.triu(np.full((6, 6), -np.inf, np.float32), 1)
    nodes = [
        *(helper.make_node("MatMul", ["x", w], [w[1:]], w) for w in ("wq", "wk", "wv")),
        helper.make_node("Transpose", ["k"], ["kt"], "turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"], "scores"),
        helper.make_node("Add", ["scores", "mask"], ["masked"], "mask"),
        helper.make_node("Softmax", ["masked"], ["shares"], "softmax", axis=-1),
        helper.make_node("MatMul", ["shares", "v"], ["mixed"], "mix"),
        helper.make_node("MatMul", ["mixed", "wo"], ["y"], "out"),
    ]
    return whole(nodes, {**{w: weights(16, 16) for w in ("wq", "wk", "wv", "wo")}, "mask": mask}, (1, 6, 16))


def masked_scores() -> onnx.ModelProto:
    """Scores of which some are minus infinity in the output."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"], "scores"),
        helper.make_node("Where", ["is_open", "scores", "never"], ["y"], "where"),
    ]
    constants = {
        "w": weights(16, 8),
        "is_open": np.array([[True, True, False, True, True, True, False, True]]),
        "never": np.array(-np.inf, np.float32),
    }
    return whole(nodes, constants, (4, 16))


def volume(**attributes: object) -> onnx.ModelProto:
    """Two 3-D convolutions."""
    nodes = [
        conv("x", "w1", "pre", **attributes),
        helper.make_node("Relu", ["pre"], ["a"], "relu"),
        conv("a", "w2", "y", pads=[1] * 6),
    ]
    return whole(nodes, {"w1": weights(8, 2, 3, 3, 3), "w2": weights(4, 8, 3, 3, 3)}, (1, 2, 8, 8, 8))


def volume_pool() -> onnx.ModelProto:
    nodes = [
        conv("x", "w1", "a", pads=[1] * 6),
        helper.make_node("MaxPool", ["a"], ["b"], "pool", kernel_shape=[2, 2, 2], strides=[2, 2, 2]),
        conv("b", "w2", "y", pads=[1] * 6),
    ]
    return whole(nodes, {"w1": weights(8, 2, 3, 3, 3), "w2": weights(4, 8, 3, 3, 3)}, (1, 2, 8, 8, 8))


def volume_transposed(**attributes: object) -> onnx.ModelProto:
    nodes = [
        conv("x", "w1", "a", pads=[1] * 6),
        helper.make_node("ConvTranspose", ["a", "w2", "b2"], ["b"], "up", **attributes),
        conv("b", "w3", "y", pads=[1] * 6),
    ]
    constants = {"w1": weights(8, 2, 3, 3, 3), "w2": weights(8, 6, 3, 2, 3), "b2": weights(6)}
    return whole(nodes, {**constants, "w3": weights(4, 6, 3, 3, 3)}, (1, 2, 4, 5, 6))


def smallest() -> onnx.ModelProto:
    """The least entries of each row, in order."""
    node = helper.make_node("TopK", ["a", "count"], ["b", "places"], "least", largest=0)
    return between(node, {"count": np.array([5])})


def by_the_batch() -> onnx.ModelProto:
    """A normalization exported in training."""
    node = helper.make_node(
        "BatchNormalization", ["a", "s", "z", "m", "v"], ["b", "rm", "rv"], "norm", training_mode=1
    )
    constants = {"s": np.abs(weights(8)) + 1, "z": weights(8), "m": weights(8), "v": np.abs(weights(8))}
    return between(node, constants)


def listed() -> onnx.ModelProto:
    """Two halves of the channels, by a list of tensors, in the other order."""
    model = between(helper.make_node("ConcatFromSequence", ["turned"], ["b"], "join", axis=1), {
        "four": np.array(4), "one": np.array(1), "first": np.array(0)
    })  # fmt: skip
    parts = [
        helper.make_node("SplitToSequence", ["a", "four"], ["halves"], "split", axis=1),
        helper.make_node("SequenceAt", ["halves", "one"], ["second"], "at"),
        helper.make_node("SequenceErase", ["halves", "one"], ["left"], "erase"),
        helper.make_node("SequenceInsert", ["left", "second", "first"], ["turned"], "insert"),
    ]
    nodes = [*model.graph.node[:2], *parts, *model.graph.node[2:]]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def some_of_the_rows() -> onnx.ModelProto:
    """Entries of the first channels and rows alone, chosen by their places."""
    places = np.tile(np.array([3, 0, 7], np.int64), (1, 8, 5, 1))
    return between(
        helper.make_node("GatherElements", ["a", "places"], ["b"], "choose", axis=3), {"places": places}
    )


def some_of_a_part() -> onnx.ModelProto:
    """The same of channels 2 to 6, which OpenVINO would gather from all."""
    places = np.tile(np.array([3, 0, 7], np.int64), (1, 4, 12, 1))
    model = between(
        helper.make_node("GatherElements", ["part", "places"], ["b"], "choose", axis=3),
        {"places": places, "two": np.array([2]), "six": np.array([-2]), "one": np.array([1])},
    )
    model.graph.node.insert(2, helper.make_node("Slice", ["a", "two", "six", "one"], ["part"], "part"))
    (last,) = (tensor for tensor in model.graph.initializer if tensor.name == "w2")
    last.CopyFrom(numpy_helper.from_array(weights(4, 4, 3, 3), "w2"))
    return model


def reduced(kind: str, **attributes: object) -> onnx.ModelProto:
    """To sums over some axes, beside a convolution."""
    node = helper.make_node(kind, ["above"], ["sums"], "reduce", **attributes)
    model = between(helper.make_node("Add", ["a", "one"], ["above"], "above"), {"one": np.float32([1])})
    del model.graph.node[3:]
    model.graph.node.extend([node, helper.make_node("Neg", ["sums"], ["y"], "turn")])
    return model


def sparse() -> onnx.ModelProto:
    """A convolution whose weights are stored as the few that are not zero."""
    model = between(helper.make_node("Identity", ["a"], ["b"]))
    (stored,) = (tensor for tensor in model.graph.initializer if tensor.name == "w2")
    array = numpy_helper.to_array(stored)
    places = np.arange(0, array.size, 3)
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(
        helper.make_tensor("w2", TensorProto.FLOAT, [len(places)], array.ravel()[places]),
        helper.make_tensor("places", TensorProto.INT64, [len(places)], places), list(array.shape),
    ))  # fmt: skip
    model.graph.initializer.remove(stored)
    return model


def looked_at_by_a_loop() -> onnx.ModelProto:
    """A loop adds three times what was made outside of it, and is given nothing but where to start."""
    body = helper.make_graph(
        [
            helper.make_node("Add", ["so_far", "a"], ["more"], "more"),
            helper.make_node("Identity", ["going"], ["goes"], "goes"),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("so_far", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.FLOAT, None),
        ],
    )
    start = np.zeros((1, 8, 12, 12), np.float32)
    loop = helper.make_node("Loop", ["three", "", "start"], ["b"], "loop", body=body)
    return between(loop, {"three": np.array(3), "start": start})


def spectrum(opset: int, axis: int, **attributes: object) -> onnx.ModelProto:
    """The frequencies of rows, by the operator of torch.fft's exports."""
    deep = {"last": np.array([-1]), "along": np.array(axis), "twelve": np.array(12)}
    given = ["x@deep", "twelve", "along"] if opset >= 20 else ["x@deep", "twelve"]
    told = {} if opset >= 20 else {"axis": axis}
    nodes = [
        helper.make_node("Unsqueeze", ["x", "last"], ["x@deep"], "deep"),
        helper.make_node("DFT", given, ["y"], "spectrum", **told, **attributes),
    ]
    model = whole(nodes, deep if opset >= 20 else {k: deep[k] for k in ("last", "twelve")}, (2, 12, 12))
    model.opset_import[0].version = opset
    model.ir_version = 9
    return model


def wrong_shapes() -> onnx.ModelProto:
    """The file says of a value inside what is not so, as a simplifier left it."""
    model = between(helper.make_node("Identity", ["a"], ["b"]))
    model.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, (1, 99, 5, 5)))
    return model


def windows() -> onnx.ModelProto:
    """A running sum and a sum of pools, which arrive as reductions over windows."""
    return between(helper.make_node("CumSum", ["a", "axis"], ["b"], "sum"), {"axis": np.array(3, np.int64)})


def pool(kind: str, **attributes: object) -> onnx.ModelProto:
    return between(helper.make_node(kind, ["a"], ["b"], "pool", **attributes))


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "dilated max pool": lambda: pool(
        "MaxPool", kernel_shape=[3, 3], dilations=[2, 2], pads=[2, 2, 2, 2], strides=[1, 1]
    ),
    "Lp pool": lambda: pool("LpPool", kernel_shape=[3, 3], p=2),
    "running sum": windows,
    "channel of zeros": dead_channel,
    "all zero": always_zero,
    "mask of -inf": masked_attention,
    "scores of -inf": masked_scores,
    "strided 3-D convolution": lambda: volume(strides=[2, 2, 2], pads=[1] * 6),
    "dilated 3-D convolution": lambda: volume(dilations=[2, 2, 2], pads=[2] * 6),
    "3-D pool": volume_pool,
    "transposed 3-D convolution": lambda: volume_transposed(strides=[2, 1, 3], pads=[1, 0, 1, 0, 1, 1]),
    "transposed 3-D convolution, longer": lambda: volume_transposed(
        strides=[2, 2, 2], pads=[1] * 6, output_padding=[1, 0, 1]
    ),
    "some of the rows": some_of_the_rows,
    "spectrum of rows": lambda: spectrum(20, 2, onesided=1),
    "spectrum of columns": lambda: spectrum(20, -3),
    "spectrum by an attribute": lambda: spectrum(17, 2, onesided=1),
    "some of a part": some_of_a_part,
    "sum of magnitudes": lambda: reduced("ReduceL1", axes=[3], keepdims=0),
    "logarithm of a sum": lambda: reduced("ReduceLogSum", axes=[1, 3]),
    "logarithm of exponents": lambda: reduced("ReduceLogSumExp", axes=[2, -1], keepdims=0),
    "sparse weights": sparse,
    "smallest first": smallest,
    "normalized by the batch": by_the_batch,
    "list of tensors": listed,
    "wrong shapes": wrong_shapes,
}


def feeds(model: onnx.ModelProto, count: int = 6) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(3)
    sizes = {
        entry.name: [dim.dim_value for dim in entry.type.tensor_type.shape.dim] for entry in model.graph.input
    }
    return [
        {name: random.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
        for _ in range(count)
    ]
