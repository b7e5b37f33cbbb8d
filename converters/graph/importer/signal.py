"""Spectra: transforms as products with tables of cosines and sines; windows and filter banks are constants."""

from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from converters.graph.importer.registry import Call, operator


@operator("DFT", since=20, fixed=(1, 2))
def dft(call: Call, value: Tensor, *_: Any) -> Tensor:
    return _transformed(call, value, _first(call.ints(1)), (call.ints(2) or [-2])[0])


@operator("DFT", since=17, fixed=(1,))
def dft_attribute(call: Call, value: Tensor, *_: Any) -> Tensor:
    return _transformed(call, value, _first(call.ints(1)), call.get("axis", 1))


def _first(values: list[int] | None) -> int | None:
    return values[0] if values else None


def _transformed(call: Call, value: Tensor, length: int | None, axis: int) -> Tensor:
    """The last axis is real, or real and imaginary."""
    inverse, onesided = bool(call.get("inverse", 0)), bool(call.get("onesided", 0))
    rows = value.movedim(axis % value.dim(), -2)
    if inverse and onesided:
        return _real_inverse(rows, length).movedim(-2, axis % value.dim())
    size = rows.shape[-2] if length is None else length
    have = min(rows.shape[-2], size)
    count = size // 2 + 1 if onesided else size
    angle = 2 * np.pi * np.outer(np.arange(count), np.arange(have)) / size
    share = 1 / size if inverse else 1.0
    cosine = torch.from_numpy(np.cos(angle).T * share).to(value.dtype)
    sine = torch.from_numpy(np.sin(angle).T * (share if inverse else -share)).to(value.dtype)
    real = rows[..., :have, 0]
    parts = [torch.matmul(real, cosine), torch.matmul(real, sine)]
    if rows.shape[-1] == 2:
        other = rows[..., :have, 1]
        parts = [parts[0] - torch.matmul(other, sine), parts[1] + torch.matmul(other, cosine)]
    return torch.stack(parts, -1).movedim(-2, axis % value.dim())


def _real_inverse(rows: Tensor, length: int | None) -> Tensor:
    """A real signal from the first half of its spectrum; each of the others stands for its mirror image too."""
    size = 2 * (rows.shape[-2] - 1) if length is None else length
    count = min(rows.shape[-2], size // 2 + 1)
    angle = 2 * np.pi * np.outer(np.arange(count), np.arange(size)) / size
    share = np.where((np.arange(count) == 0) | (2 * np.arange(count) == size), 1.0, 2.0)[:, None] / size
    cosine = torch.from_numpy(np.cos(angle) * share).to(rows.dtype)
    sine = torch.from_numpy(np.sin(angle) * share).to(rows.dtype)
    result = torch.matmul(rows[..., :count, 0], cosine) - torch.matmul(rows[..., :count, 1], sine)
    return result.unsqueeze(-1)


@operator("STFT", since=17, fixed=(1, 3))
def stft(call: Call, signal: Tensor, _step: Tensor, window: Tensor | None = None, *_: Any) -> Tensor:
    step = call.needed_ints(1)[0]
    length = (call.ints(3) or [0 if window is None else window.shape[0]])[0]
    frames = (signal.shape[1] - length) // step + 1
    places = torch.from_numpy((np.arange(frames)[:, None] * step + np.arange(length)).reshape(-1))
    taken = torch.index_select(signal, 1, places).reshape(signal.shape[0], frames, length, -1)
    if window is not None:
        taken = taken * window.reshape(1, 1, -1, 1)
    attributes = {"onesided": call.get("onesided", 1)}
    return _transformed(Call("STFT", attributes, (), 1, call.opset), taken, None, 2)


@operator("HannWindow", "HammingWindow", "BlackmanWindow", since=17, fixed=(0,))
@operator("MelWeightMatrix", since=17, fixed=(0, 1, 2, 3, 4))
def of_constants(call: Call, *_: Any) -> Tensor:
    """What only numbers go into: ONNX's own implementation says what it is."""
    from onnx.reference import ReferenceEvaluator

    feeds = {f"x{index}": array for index, array in enumerate(call.constants) if array is not None}
    node = onnx.helper.make_node(call.op_type, list(feeds), ["y"], **call.attributes)
    inputs = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in feeds.items()
    ]
    graph = onnx.helper.make_graph(
        [node], "constant", inputs, [onnx.helper.make_empty_tensor_value_info("y")]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", call.opset)])
    return torch.from_numpy(np.asarray(ReferenceEvaluator(model).run(None, feeds)[0]))
