"""Files that hold weights in few bits."""

import numpy as np
import onnx
from onnx import helper, numpy_helper


def with_small_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights of every layer in eight bits, widened before use."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in list(model.graph.node):
        if node.op_type in ("Conv", "Gemm"):
            tensor = stored[node.input[1]]
            values = numpy_helper.to_array(tensor)
            scale = np.float32(np.abs(values).max() / 127)
            model.graph.initializer.remove(tensor)
            for suffix, array in (
                ("q", np.round(values / scale).astype(np.int8)),
                ("s", scale),
                ("z", np.int8(0)),
            ):
                model.graph.initializer.append(
                    numpy_helper.from_array(np.asarray(array), f"{tensor.name}_{suffix}")
                )
            parts = [f"{tensor.name}_{suffix}" for suffix in "qsz"]
            model.graph.node.insert(0, helper.make_node("DequantizeLinear", parts, [tensor.name]))
    return model
