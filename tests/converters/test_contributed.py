"""The importer's operators of com.microsoft against ONNX Runtime itself."""

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from converters.graph import importer

RANDOM = np.random.default_rng(0)
SCALES = [np.float32(0.02), np.float32(0.04), np.float32(0.03)]


def data(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def whole(*shape, kind=np.uint8):
    return RANDOM.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, shape).astype(kind)


def zero(value, kind=np.uint8):
    return np.asarray(value, kind)


def unary(shape=(1, 4, 6, 6)):
    return [whole(*shape)], [SCALES[0], zero(120), SCALES[1], zero(10)]


A, B = (SCALES[0], zero(120)), (SCALES[1], zero(131))
IMAGE, MATRIX, WEIGHTS = whole(1, 4, 6, 6), whole(3, 20), whole(20, 8, kind=np.int8)
LSTM = [whole(2, 12, 16, kind=np.int8), whole(2, 4, 16, kind=np.int8)]
CASES = [
    # operator, data inputs first, constants (None is left out) in their places, attributes, outputs, steps of tolerance
    ("QLinearSigmoid", [IMAGE, *A, SCALES[0], zero(0)], {}, 1),
    ("QLinearLeakyRelu", [IMAGE, *A, *B], {"alpha": 0.2}, 1),
    ("QLinearAveragePool", [IMAGE, *A, *B], {"kernel_shape": [2, 2], "strides": [2, 2]}, 1),
    ("QLinearGlobalAveragePool", [IMAGE, *A, *B], {}, 1),
    ("QLinearSoftmax", [MATRIX, *A, np.float32(1 / 256), zero(0)], {"axis": -1, "opset": 13}, 1),
    ("QLinearAdd", [IMAGE, *A, whole(1, 4, 6, 6), *B, np.float32(0.06), zero(125)], {}, 1),
    ("QLinearMul", [IMAGE, *A, whole(1, 4, 6, 6), *B, np.float32(0.1), zero(125)], {}, 1),
    ("QLinearConcat", [np.float32(0.05), zero(125), IMAGE, *A, whole(1, 2, 6, 6), *B], {"axis": 1}, 1),
    ("QLinearWhere", [RANDOM.random((3, 20)) > 0.5, MATRIX, *A, whole(1, 20), *B, np.float32(0.05), zero(128)], {}, 1),
    ("QGemm", [MATRIX, *A, WEIGHTS, np.float32(0.01), zero(0, np.int8), None, np.float32(0.5), zero(128)], {}, 1),
    ("QGemm", [MATRIX, *A, WEIGHTS.T.copy(), np.full(8, 0.01, np.float32), np.zeros(8, np.int8)], {"transB": 1}, 1),
    ("MatMulIntegerToFloat", [MATRIX, WEIGHTS, SCALES[0], np.float32(0.01), zero(120), zero(2, np.int8)], {}, 1),
    ("DynamicQuantizeMatMul", [data(3, 20), WEIGHTS, np.float32(0.01), zero(1, np.int8), data(8)], {}, 1),
    ("Gelu", [data(3, 5)], {}, 1),
    ("FastGelu", [data(3, 5), data(5)], {}, 1),
    ("BiasGelu", [data(3, 5), data(5)], {}, 1),
    ("QuickGelu", [data(3, 5)], {}, 1),
    ("SkipLayerNormalization", [data(1, 3, 8), data(1, 3, 8), data(8), data(8)], {"epsilon": 1e-5}, 1),
    ("SkipLayerNormalization", [data(1, 3, 8), data(1, 3, 8), data(8), None, data(8)], {}, 1),
    ("SkipSimplifiedLayerNormalization", [data(1, 3, 8), data(1, 3, 8), data(8), data(8)], {"epsilon": 1e-5}, 1),
    ("FusedMatMul", [data(2, 5, 3), data(2, 5, 4)], {"transA": 1, "alpha": 0.5}, 1),
    ("FusedConv", [data(1, 3, 6, 6), data(4, 3, 3, 3), data(4)], {"activation": "Relu", "kernel_shape": [3, 3]}, 1),
    (
        "DynamicQuantizeLSTM",
        [data(5, 1, 12), *LSTM, None, None, None, None, None, np.full(2, 0.01, np.float32), np.zeros(2, np.int8),
         np.full(2, 0.01, np.float32), np.zeros(2, np.int8)],
        {"hidden_size": 4, "direction": "bidirectional"}, 3,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "values", "attributes", "outputs"), CASES, ids=[case[0] for case in CASES])
def test_an_operator_computes_what_onnx_runtime_does(name, values, attributes, outputs):
    names = ["" if value is None else f"i{index}" for index, value in enumerate(values)]
    # Of the tensors only the first and what is as large as data comes at run time; parameters are constants.
    fed = {
        key: value
        for key, value in zip(names, values, strict=True)
        if value is not None and _is_data(name, key)
    }
    node = helper.make_node(
        name, names, [f"o{at}" for at in range(outputs)], domain="com.microsoft", **attributes
    )
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for key, value in fed.items()
        ],
        [helper.make_empty_tensor_value_info(f"o{at}") for at in range(outputs)],
        [
            numpy_helper.from_array(np.asarray(value), key)
            for key, value in zip(names, values, strict=True)
            if value is not None and key not in fed
        ],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
        ir_version=8,
    )
    wanted = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, fed
    )
    module = importer.from_model(model)
    with torch.no_grad():
        found = module(*(torch.from_numpy(value) for value in fed.values()))
    found = found if isinstance(found, tuple) else (found,)
    for left, right in zip(wanted, found, strict=True):
        if left.dtype.kind in "iu":
            # Where a value lies between two steps, float rounding decides.
            assert np.abs(left.astype(int) - right.numpy().astype(int)).max() <= 1
        else:
            # Inside a recurrence ONNX Runtime rounds activations too, which the importer does not.
            tolerance = 0.03 if name == "DynamicQuantizeLSTM" else 1e-4
            np.testing.assert_allclose(right.numpy(), left, atol=tolerance * np.abs(left).max(), rtol=1e-4)


def _is_data(name: str, key: str) -> bool:
    second = {"QLinearAdd": "i3", "QLinearMul": "i3", "QLinearConcat": "i5", "FusedMatMul": "i1"}
    first = "i2" if name == "QLinearConcat" else "i0"
    return key in (first, second.get(name))


def test_an_operator_of_a_domain_is_not_taken_for_onnxs_own_of_that_name():
    node = helper.make_node("Relu", ["x"], ["y"], domain="acme")
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    )
    with pytest.raises(importer.UnsupportedOperatorsError, match=r"acme\.Relu"):
        importer.from_model(model)
