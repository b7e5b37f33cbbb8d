"""The files of an ONNX model: its own, and those that hold its weights where they lie outside of it."""

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # comes with onnx, without stubs
from onnx.external_data_helper import ExternalDataInfo, uses_external_data


def of_model(path: Path) -> list[Path]:
    """The model's file first. A file that is no ONNX model stands alone: reading it properly says what is wrong."""
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except DecodeError:
        return [path]
    outside = {ExternalDataInfo(tensor).location for tensor in _tensors(graph) if uses_external_data(tensor)}
    return [path, *(path.parent / name for name in sorted(outside))]


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor stored in a graph, those of its branches too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
