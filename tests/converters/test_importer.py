"""Operators of the importer against ONNX's reference implementation, and what is refused."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from converters.graph import importer
from converters.graph.importer import UnsupportedOperatorsError
from edgekit.errors import SourceError

RANDOM = np.random.default_rng(0)


def data(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def ints(*values):
    return np.asarray(values, np.int64)


IMAGE = data(1, 4, 9, 10)
TABLE = [
    # operator, opset, data inputs, constants behind them, attributes
    *[(name, 17, [data(2, 5)], [], {}) for name in ("Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Abs", "Floor", "Neg")],
    *[(name, 17, [data(2, 5), data(1, 5)], [], {}) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min")],
    ("Sqrt", 17, [np.abs(data(2, 5))], [], {}),
    ("Pow", 17, [np.abs(data(2, 5))], [np.float32(2)], {}),
    ("HardSigmoid", 17, [data(2, 5)], [], {"alpha": 0.3, "beta": 0.4}),
    ("HardSwish", 17, [data(2, 5)], [], {}),
    ("LeakyRelu", 17, [data(2, 5)], [], {"alpha": 0.2}),
    ("Elu", 17, [data(2, 5)], [], {"alpha": 1.5}),
    ("PRelu", 17, [data(2, 5)], [data(5)], {}),
    ("Clip", 17, [data(2, 5)], [np.float32(-0.5), np.float32(0.7)], {}),
    ("Softmax", 13, [data(2, 3, 4)], [], {"axis": 1}),
    ("LogSoftmax", 17, [data(2, 5)], [], {}),
    ("Gelu", 20, [data(2, 5)], [], {}),
    ("Cast", 17, [data(2, 5)], [], {"to": TensorProto.INT32}),
    ("Where", 17, [data(2, 5) > 0, data(2, 5), data(2, 5)], [], {}),
    ("Reshape", 17, [data(2, 3, 4)], [ints(0, -1)], {}),
    ("Flatten", 17, [data(2, 3, 4)], [], {"axis": 2}),
    ("Transpose", 17, [data(2, 3, 4)], [], {"perm": [2, 0, 1]}),
    ("Concat", 17, [data(2, 3), data(2, 4)], [], {"axis": -1}),
    ("Slice", 17, [data(6, 8)], [ints(5, 1), ints(-7, 7), ints(0, 1), ints(-2, 3)], {}),
    ("Slice", 17, [data(6, 8)], [ints(2), ints(1000)], {}),
    ("Split", 17, [data(2, 6)], [ints(1, 5)], {"axis": 1}),
    ("Squeeze", 17, [data(1, 3, 1)], [ints(-1)], {}),
    ("Squeeze", 11, [data(1, 3, 1)], [], {"axes": [0]}),
    ("Unsqueeze", 17, [data(3, 4)], [ints(0, -1)], {}),
    ("Gather", 17, [data(4, 5)], [ints(3, -4)], {"axis": 0}),
    ("Gather", 17, [data(4, 5)], [np.int64(-1)], {"axis": 1}),
    ("Expand", 17, [data(3, 1)], [ints(2, 1, 4)], {}),
    ("Tile", 17, [data(2, 3)], [ints(2, 2)], {}),
    ("Pad", 17, [data(3, 4)], [ints(1, 0, 2, 3), np.float32(0.5)], {}),
    ("Pad", 17, [data(3, 5)], [ints(0, 3, 0, 4)], {"mode": "reflect"}),
    ("Pad", 17, [data(3, 5)], [ints(1, 0, 0, 2)], {"mode": "edge"}),
    ("DepthToSpace", 17, [data(1, 8, 2, 3)], [], {"blocksize": 2}),
    ("DepthToSpace", 17, [data(1, 8, 2, 3)], [], {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", 17, [data(1, 2, 4, 6)], [], {"blocksize": 2}),
    ("Conv", 17, [IMAGE], [data(6, 4, 3, 3), data(6)], {"pads": [1, 1, 1, 1], "strides": [2, 1]}),
    ("Conv", 17, [IMAGE], [data(4, 1, 3, 2)], {"group": 4, "pads": [0, 1, 2, 0], "dilations": [2, 1]}),
    ("Conv", 17, [IMAGE], [data(6, 4, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", 17, [data(1, 3, 20)], [data(2, 3, 5)], {"pads": [2, 2]}),
    ("ConvTranspose", 17, [IMAGE], [data(4, 3, 3, 3)], {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("ConvTranspose", 17, [IMAGE], [data(4, 3, 3, 3)], {"strides": [2, 2], "pads": [0, 1, 1, 0]}),
    ("MaxPool", 17, [IMAGE], [], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    ("AveragePool", 17, [IMAGE], [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("AveragePool", 17, [IMAGE], [], {"kernel_shape": [3, 3], "pads": [1, 0, 0, 1]}),
    ("AveragePool", 17, [IMAGE], [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("GlobalAveragePool", 17, [IMAGE], [], {}),
    ("GlobalMaxPool", 17, [IMAGE], [], {}),
    ("BatchNormalization", 17, [IMAGE], [data(4), data(4), data(4), np.abs(data(4))], {"epsilon": 1e-3}),
    ("BatchNormalization", 17, [IMAGE], [data(4), data(4), data(4), np.abs(data(4))], {"training_mode": 1}),
    ("InstanceNormalization", 17, [IMAGE], [data(4), data(4)], {}),
    ("TopK", 17, [data(3, 7)], [ints(4)], {"largest": 0}),
    ("TopK", 17, [data(2, 3, 7, 4)], [ints(3)], {"largest": 0, "axis": 1}),
    ("TopK", 17, [data(2, 3, 7, 4)], [ints(2)], {"axis": -2}),
    ("TopK", 17, [RANDOM.permutation(24).reshape(4, 6) - 12], [ints(6)], {"largest": 0}),
    ("LayerNormalization", 17, [data(2, 3, 4)], [data(4), data(4)], {"axis": -1}),
    ("Gemm", 17, [data(2, 3)], [data(4, 3), data(4)], {"transB": 1}),
    ("Gemm", 17, [data(3, 2)], [data(3, 4), data(1, 4)], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    ("MatMul", 17, [data(2, 3, 4), data(4, 5)], [], {}),
    ("ReduceMean", 17, [data(2, 3, 4)], [], {"axes": [-1], "keepdims": 0}),
    ("ReduceMean", 18, [data(2, 3, 4)], [ints(1, 2)], {}),
    ("ReduceSum", 17, [data(2, 3, 4)], [ints(0)], {"keepdims": 0}),
    ("ReduceMax", 17, [data(2, 3, 4)], [], {}),
    ("ReduceL2", 17, [data(2, 3, 4)], [], {"axes": [1]}),
    ("ArgMax", 17, [data(2, 5)], [], {"axis": 1, "keepdims": 0}),
    ("Resize", 17, [data(1, 2, 3, 4)], [np.float32([]), np.float32([1, 1, 2, 2])], {"mode": "nearest"}),
    (
        "Resize", 17, [data(1, 2, 3, 4)], [np.float32([]), np.float32([]), ints(1, 2, 5, 6)],
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
]  # fmt: skip
OUTPUTS = {"Split": 2, "TopK": 2}


def build(op_type, opset, inputs, constants, attributes, outputs=1):
    feeds = {f"x{index}": np.asarray(array) for index, array in enumerate(inputs)}
    fixed = [numpy_helper.from_array(np.asarray(array), f"c{index}") for index, array in enumerate(constants)]
    names = [f"y{index}" for index in range(outputs)]
    node = helper.make_node(op_type, [*feeds, *(tensor.name for tensor in fixed)], names, **attributes)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "one",
        [
            value(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in feeds.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in names],
        fixed,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), feeds


def run(model, feeds, path):
    path.write_bytes(model.SerializeToString())
    module = importer.load(path)
    arguments = [torch.from_numpy(array) for array in feeds.values()]
    result = importer.traced(module, arguments)(*arguments)
    return [tensor.detach().numpy() for tensor in (result if isinstance(result, tuple | list) else [result])]


@pytest.mark.parametrize(
    "case", TABLE, ids=[f"{case[0]}-{case[1]}-{index}" for index, case in enumerate(TABLE)]
)
def test_an_operator_gives_what_the_reference_gives(case, tmp_path):
    model, feeds = build(*case, outputs=OUTPUTS.get(case[0], 1))
    wanted = ReferenceEvaluator(model).run(None, feeds)
    for ours, theirs in zip(run(model, feeds, tmp_path / "m.onnx"), wanted, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_an_lstm_gives_what_onnx_runtime_gives(direction, tmp_path):
    import onnxruntime as ort

    ways = 2 if direction == "bidirectional" else 1
    model, feeds = build(
        "LSTM", 17, [data(4, 2, 3)], [data(ways, 20, 3), data(ways, 20, 5), data(ways, 40)],
        {"hidden_size": 5, "direction": direction}, outputs=3,
    )  # fmt: skip
    for value in model.graph.output:
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    wanted = ort.InferenceSession(model.SerializeToString()).run(None, feeds)
    for ours, theirs in zip(run(model, feeds, tmp_path / "m.onnx"), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_softmax_before_opset_13_flattens_as_onnx_runtime_does(tmp_path):
    """ONNX's reference implementation takes the newer meaning for all opsets."""
    import onnxruntime as ort

    model, feeds = build("Softmax", 11, [data(2, 3, 4)], [], {"axis": 1})
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    (wanted,) = ort.InferenceSession(model.SerializeToString()).run(None, feeds)
    np.testing.assert_allclose(run(model, feeds, tmp_path / "m.onnx")[0], wanted, rtol=1e-5)


def test_shape_arithmetic_folds_away(tmp_path):
    """Reshape to a shape computed with Shape, Slice and Concat: one view is left."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Slice", ["s", "zero", "one"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    fixed = {"zero": ints(0), "one": ints(1), "rest": ints(-1)}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, [2, 3, 4])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(array, name) for name, array in fixed.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    traced = importer.traced(importer.load(tmp_path / "m.onnx"), [torch.zeros(2, 3, 4)])
    calls = [node for node in traced.graph.nodes if node.op == "call_function"]
    assert len(calls) == 1
    assert traced(torch.zeros(2, 3, 4)).shape == (2, 12)


@pytest.mark.parametrize("condition", [True, False])
def test_a_constant_condition_chooses_its_branch(condition, tmp_path):
    def branch(op_type):
        return helper.make_graph(
            [helper.make_node(op_type, ["x"], ["r"])], op_type, [], [helper.make_empty_tensor_value_info("r")]
        )

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("Relu"), else_branch=branch("Neg"))
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", 1, [2, 3])], [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.array(condition), "c")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    value = data(2, 3)
    (ours,) = run(model, {"x": value}, tmp_path / "m.onnx")
    np.testing.assert_allclose(ours, np.maximum(value, 0) if condition else -value)


def listed(*nodes):
    """A model of nodes between `x` (2 x 6) and `y`; `i0`, `i1`, `i2`, `last` and `sizes` are numbers."""
    numbers = {f"i{count}": np.array(count) for count in range(3)}
    numbers |= {"last": np.array(-1), "sizes": np.array([4, 2])}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, [2, 6])], [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(array, name) for name, array in numbers.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


SPLIT = helper.make_node("SplitToSequence", ["x", "i2"], ["s"], axis=1)
LISTS = {
    "an entry": [SPLIT, helper.make_node("SequenceAt", ["s", "last"], ["y"])],
    "sizes": [
        helper.make_node("SplitToSequence", ["x", "sizes"], ["s"], axis=1),
        helper.make_node("SequenceAt", ["s", "i0"], ["y"]),
    ],
    "rows": [
        helper.make_node("SplitToSequence", ["x"], ["s"], axis=0, keepdims=0),
        helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=1, new_axis=1),
    ],
    "made, changed and joined": [
        SPLIT,
        helper.make_node("SequenceEmpty", [], ["none"]),
        helper.make_node("SequenceAt", ["s", "i1"], ["part"]),
        helper.make_node("SequenceInsert", ["none", "part"], ["one"]),
        helper.make_node("SequenceInsert", ["one", "x", "i0"], ["two"]),
        helper.make_node("Identity", ["two"], ["same"]),
        helper.make_node("SequenceErase", ["same", "i1"], ["rest"]),
        helper.make_node("SequenceConstruct", ["x", "part"], ["pair"]),
        helper.make_node("SequenceInsert", ["pair", "part", "i1"], ["three"]),
        helper.make_node("ConcatFromSequence", ["three"], ["wide"], axis=1),
        helper.make_node("SequenceAt", ["rest", "i0"], ["back"]),
        helper.make_node("Concat", ["wide", "back"], ["y"], axis=1),
    ],
    "its length": [
        SPLIT,
        helper.make_node("SequenceLength", ["s"], ["count"]),
        helper.make_node("Cast", ["count"], ["number"], to=1),
        helper.make_node("Mul", ["x", "number"], ["y"]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_tensors_leaves_the_tensors(name, tmp_path):
    model, feeds = listed(*LISTS[name]), {"x": data(2, 6)}
    (wanted,) = ReferenceEvaluator(model).run(None, feeds)
    (ours,) = run(model, feeds, tmp_path / "m.onnx")
    np.testing.assert_allclose(ours, wanted)


def test_an_entry_that_data_chooses_is_refused(tmp_path):
    nodes = [
        SPLIT,
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["place"], to=7),
        helper.make_node("SequenceAt", ["s", "place"], ["y"]),
    ]
    with pytest.raises(UnsupportedOperatorsError, match="entry whose number is computed from data"):
        run(listed(*nodes), {"x": data(2, 6)}, tmp_path / "m.onnx")


def test_all_unknown_operators_are_listed_at_once(tmp_path):
    nodes = [
        helper.make_node("NonZero", ["x"], ["a"]),
        helper.make_node("Mystery", ["a"], ["b"], domain="com.example"),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, [2, 2])],
        [helper.make_empty_tensor_value_info("y")],
    )
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(UnsupportedOperatorsError, match=r"NonZero \(1\), com.example.Mystery \(1\)"):
        importer.load(tmp_path / "m.onnx")


def test_an_attribute_that_is_not_implemented_is_refused_not_ignored(tmp_path):
    inputs = [data(4, 2, 3)]
    constants = [data(1, 20, 3), data(1, 20, 5), data(1, 40)]
    model, _ = build("LSTM", 17, inputs, constants, {"hidden_size": 5, "input_forget": 1}, outputs=3)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedOperatorsError, match="input_forget"):
        importer.load(tmp_path / "m.onnx")


NEWEST = onnx.defs.onnx_opset_version()


@pytest.mark.parametrize("opset", range(7, NEWEST + 1))
def test_every_opset_from_7_on_is_read(opset, tmp_path):
    """Operators whose inputs and attributes changed places over the years, in one graph of two inputs and two outputs."""
    newer = {"squeeze": opset >= 13, "pad": opset >= 11, "slice": opset >= 10, "reduce": opset >= 18}
    fixed = {"starts": ints(1), "ends": ints(3), "along": ints(2), "pads": ints(0, 0, 1, 0, 0, 1), "mean": ints(1),
             "front": ints(0)}  # fmt: skip
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Pad", ["sum", "pads"], ["padded"])
        if newer["pad"]
        else helper.make_node("Pad", ["sum"], ["padded"], pads=[0, 0, 1, 0, 0, 1]),
        helper.make_node("Slice", ["padded", "starts", "ends", "along"], ["part"])
        if newer["slice"]
        else helper.make_node("Slice", ["padded"], ["part"], starts=[1], ends=[3], axes=[2]),
        helper.make_node("Softmax", ["part"], ["first"], axis=-1 if opset >= 13 else 2),
        helper.make_node("ReduceMean", ["part", "mean"], ["mean_of"])
        if newer["reduce"]
        else helper.make_node("ReduceMean", ["part"], ["mean_of"], axes=[1]),
        helper.make_node("Squeeze", ["mean_of", "front"], ["second"])
        if newer["squeeze"]
        else helper.make_node("Squeeze", ["mean_of"], ["second"], axes=[0]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("a", 1, [1, 3, 4]), value("b", 1, [3, 1])],
        [helper.make_empty_tensor_value_info(name) for name in ("first", "second")],
        [numpy_helper.from_array(array, name) for name, array in fixed.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    a, b = data(1, 3, 4), data(3, 1)
    part = np.pad(a + b, [(0, 0), (0, 0), (1, 1)])[:, :, 1:3]
    exponents = np.exp(part)
    first, second = run(model, {"a": a, "b": b}, tmp_path / "m.onnx")
    np.testing.assert_allclose(first, exponents / exponents.sum(-1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(second, part.mean(1), rtol=1e-5)


SMALL = {
    np.int8: [-128, 127, 3],
    np.uint8: [0, 255, 3],
    np.int16: [-32768, 32767, 3],
    np.uint16: [0, 65535, 3],
}


@pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "BitwiseAnd", "BitwiseOr", "BitwiseXor"])
def test_small_integers_wrap_around_as_numpy_has_them(op_type, kind, tmp_path):
    left, right = np.array(SMALL[kind], kind), np.array([7, 5, 6], kind)
    function = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "BitwiseAnd": np.bitwise_and,
                "BitwiseOr": np.bitwise_or, "BitwiseXor": np.bitwise_xor}[op_type]  # fmt: skip
    model, feeds = build(op_type, 18, [left, right], [], {})
    (ours,) = run(model, feeds, tmp_path / "m.onnx")
    np.testing.assert_array_equal(ours.astype(kind), function(left, right))
    assert ours.dtype == (np.int32 if kind is np.uint16 else kind)


@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_a_shift_by_data_moves_bits_and_drops_them_past_the_width(direction, tmp_path):
    value, distance = np.int32([5, -5, 1, -(2**31), 7, 7]), np.int32([1, 1, 31, 31, 32, 40])
    model, feeds = build("BitShift", NEWEST, [value, distance], [], {"direction": direction})
    wide = value.astype(np.int64)
    wanted = (wide << distance).astype(np.int32) if direction == "LEFT" else wide >> distance
    (ours,) = run(model, feeds, tmp_path / "m.onnx")
    np.testing.assert_array_equal(ours, wanted)


def test_integers_and_booleans_are_inputs_and_outputs(tmp_path):
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Gather", ["table", "index"], ["rows"]),
        helper.make_node("Where", ["flags", "rows", "zero"], ["kept"]),
        helper.make_node("Greater", ["kept", "zero"], ["positive"]),
        helper.make_node("ArgMax", ["kept"], ["best"], axis=1, keepdims=0),
    ]
    table = data(5, 4)
    graph = helper.make_graph(
        nodes, "g", [value("index", TensorProto.INT32, [3]), value("flags", TensorProto.BOOL, [3, 4])],
        [helper.make_empty_tensor_value_info(name) for name in ("kept", "positive", "best")],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.float32(0), "zero")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    index, flags = np.int32([4, -5, 2]), data(3, 4) > 0
    kept, positive, best = run(model, {"index": index, "flags": flags}, tmp_path / "m.onnx")
    wanted = np.where(flags, table[index], 0)
    np.testing.assert_array_equal(kept, wanted)
    np.testing.assert_array_equal(positive, wanted > 0)
    np.testing.assert_array_equal(best, wanted.argmax(1))


def test_half_precision_is_computed_in_single_and_given_as_half(tmp_path):
    """40000 + 40000 is no half; their mean is."""
    x = np.full((1, 2), 40000, np.float16)
    nodes = [helper.make_node("ReduceSum", ["x"], ["s"]), helper.make_node("Mul", ["s", "half"], ["y"])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 2])],
        [helper.make_empty_tensor_value_info("y")], [numpy_helper.from_array(np.float16(0.5), "half")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    (ours,) = run(model, {"x": x}, tmp_path / "m.onnx")
    assert ours.dtype == np.float16
    assert ours.item() == 40000


@pytest.mark.parametrize("reduction", ["add", "mul", "max", "min"])
@pytest.mark.parametrize("kind", [np.float32, np.int64], ids=["float32", "int64"])
def test_scattered_updates_of_one_place_are_combined(reduction, kind, tmp_path):
    value, updates = (data(3, 4) * 9).astype(kind), (data(2, 3) * 9).astype(kind)
    indices = np.int64([[0, 0, -1], [0, 1, 2]])
    model, feeds = build("ScatterElements", 18, [value, indices, updates], [], {"reduction": reduction})
    (wanted,) = ReferenceEvaluator(model).run(None, feeds)
    (ours,) = run(model, feeds, tmp_path / "m.onnx")
    np.testing.assert_allclose(ours, wanted, rtol=1e-5)


def test_a_branch_that_data_chooses_is_selected_from_both(tmp_path):
    def branch(op_type):
        return helper.make_graph(
            [helper.make_node(op_type, ["x"], ["r"])], op_type, [], [helper.make_empty_tensor_value_info("r")]
        )

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("Relu"), else_branch=branch("Neg"))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "g", [value("c", TensorProto.BOOL, []), value("x", 1, [2, 3])],
        [helper.make_empty_tensor_value_info("y")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    x = data(2, 3)
    for condition in (True, False):
        (ours,) = run(model, {"c": np.array(condition), "x": x}, tmp_path / "m.onnx")
        np.testing.assert_allclose(ours, np.maximum(x, 0) if condition else -x)


def test_an_input_and_a_constant_may_be_outputs(tmp_path):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g", [value("x", 1, [3])],
        [value("y", 1, [3]), value("x", 1, [3]), value("c", 1, [2])],
        [numpy_helper.from_array(np.float32([1, 2]), "c")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    x = data(3)
    outputs = run(model, {"x": x}, tmp_path / "m.onnx")
    for ours, wanted in zip(outputs, [np.maximum(x, 0), x, np.float32([1, 2])], strict=True):
        np.testing.assert_array_equal(ours, wanted)


def test_open_dimensions_are_all_listed(tmp_path):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["y"])], "g", [value("a", 1, ["N", 3]), value("b", 1, [1, None])],
        [helper.make_empty_tensor_value_info("y")],
    )  # fmt: skip
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(SourceError, match=r"a \[N, 3\], b \[1, \?\]"):
        importer.load(tmp_path / "m.onnx")


def test_the_table_is_sorted_by_opset_and_named_as_onnx_does():
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    # Of another domain, behind its name.
    assert {name for name in importer.known() if "." not in name} <= known
