"""STFT spelled out: a signal of shape (batch, length, 1) rather than (batch, length), a frame's length, `onesided`.

All may be left out (ONNX operators, STFT-17). But without the first two OpenVINO 2026.4 refuses the node, and without
the last onnx 1.23 infers the shape of two sides, on which quantizers stumble.
"""

from collections.abc import Mapping

import numpy as np
import onnx

_SIGNAL, _WINDOW, _FRAME = 0, 2, 3


def spelled_out(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every STFT of the main graph; the model itself where there is nothing to do."""
    ranks = _ranks(model)
    windows = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if len(tensor.dims) == 1}
    if not any(
        _is_flat(node, ranks) or _lacks_frame(node, windows) or _lacks_sides(node)
        for node in model.graph.node
    ):
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.value_info[:]
    nodes = list(made.graph.node)
    del made.graph.node[:]
    for node in nodes:
        if _is_flat(node, ranks):
            deeper = f"{node.output[0]}.signal"
            last = _constant(made.graph, f"{deeper}.axes", np.array([-1], np.int64))
            made.graph.node.append(onnx.helper.make_node("Unsqueeze", [node.input[_SIGNAL], last], [deeper]))
            node.input[_SIGNAL] = deeper
        if _lacks_frame(node, windows):
            length = np.array(windows[node.input[_WINDOW]], np.int64)
            node.input[_FRAME:] = [_constant(made.graph, f"{node.output[0]}.frame-length", length)]
        if _lacks_sides(node):
            node.attribute.append(onnx.helper.make_attribute("onesided", 1))
        made.graph.node.append(node)
    return made


def _constant(graph: onnx.GraphProto, name: str, value: np.ndarray) -> str:
    graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return name


def _is_stft(node: onnx.NodeProto) -> bool:
    return node.op_type == "STFT" and node.domain in ("", "ai.onnx")


def _is_flat(node: onnx.NodeProto, ranks: Mapping[str, int]) -> bool:
    return _is_stft(node) and ranks.get(node.input[_SIGNAL]) == 2


def _lacks_frame(node: onnx.NodeProto, windows: Mapping[str, int]) -> bool:
    inputs = [*node.input, "", "", ""][: _FRAME + 1]
    return _is_stft(node) and inputs[_WINDOW] in windows and not inputs[_FRAME]


def _lacks_sides(node: onnx.NodeProto) -> bool:
    return _is_stft(node) and not any(attribute.name == "onesided" for attribute in node.attribute)


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info)
        if value.type.tensor_type.HasField("shape")
    }
