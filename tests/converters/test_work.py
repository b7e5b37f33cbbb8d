"""Counting what one inference takes."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.source import onnx_source
from edgekit.manifest import TensorSpec


def test_the_work_of_a_quantized_recurrent_operator_is_counted_behind_another(tmp_path):
    """onnx infers no shape of com.microsoft's operators; the file's own open ones have the names of its inputs'."""
    steps, width, hidden = 5, 3, 4
    names = {1: ("x", "w1", "r1"), 2: ("y1", "w2", "r2")}
    nodes = [
        helper.make_node(
            "DynamicQuantizeLSTM",
            [*names[number], "", "", "", "", "", *(f"{each}{number}" for each in ("ws", "wz", "rs", "rz"))],
            [f"h{number}"],
            domain="com.microsoft",
            hidden_size=hidden,
        )
        for number in names
    ]
    nodes.insert(1, helper.make_node("Squeeze", ["h1", "axes"], ["y1"]))
    fixed = {
        "axes": np.array([1], np.int64),
        **{
            f"w{number}": np.ones((1, size, 4 * hidden), np.int8)
            for number, size in ((1, width), (2, hidden))
        },
        **{f"r{number}": np.ones((1, hidden, 4 * hidden), np.int8) for number in names},
        **{f"{each}{number}": np.ones(1, np.float32) for each in ("ws", "rs") for number in names},
        **{f"{each}{number}": np.zeros(1, np.int8) for each in ("wz", "rz") for number in names},
    }
    real = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("x", real, [steps, "batch", width])],
        [helper.make_tensor_value_info("h2", real, [steps, 1, "batch", hidden])],
        [numpy_helper.from_array(array, name) for name, array in fixed.items()],
        value_info=[helper.make_tensor_value_info("y1", real, [steps, "batch", hidden])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    found = onnx_source.quantized_work(
        helper.make_model(graph, opset_imports=opsets), (TensorSpec("x", "float32", (steps, 1, width)),)
    )
    assert found.macs == steps * 4 * hidden * (width + hidden + hidden + hidden)
