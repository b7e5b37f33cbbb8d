"""The files of an ONNX model: its own, and those that hold its weights where they lie outside of it.

Always true
 1. A place of weights lies inside of its file, and the file below the model's folder; what does not is refused before any
    tool reads it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # comes with onnx, without stubs
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from edgekit.errors import SourceError

# Bits of an element of the types that are packed.
_PACKED = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes are."""

    file: Path
    offset: int
    length: int


def of_model(path: Path) -> list[Path]:
    """The model's file first. A file that is no ONNX model stands alone: reading it properly says what is wrong."""
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except DecodeError:
        return [path]
    outside = {ExternalDataInfo(tensor).location for tensor in tensors(graph) if uses_external_data(tensor)}
    return [path, *(path.parent / name for name in sorted(outside))]


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor stored in a graph, those of its branches too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for branch in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from tensors(branch)


def place(path: Path, tensor: onnx.TensorProto) -> Place:
    """Of a tensor of the model `path` that lies outside of it. Raises: SourceError."""
    told = ExternalDataInfo(tensor)
    where = f"{path}: tensor {tensor.name!r} has its weights in {told.location!r}"
    if _leaves(told.location):
        raise SourceError(
            f"{where}, which is outside of the model's folder; put that file beside the model and export or save it again, so"
            " that the file's name alone stands there"
        )
    file = path.parent / told.location
    if not file.is_file():
        raise SourceError(f"{where}, and there is no such file; copy it into the model's folder")
    size, offset = file.stat().st_size, told.offset or 0
    length = size_of(tensor) if told.length is None else told.length
    if offset + length > size:
        raise SourceError(
            f"{where}, bytes {offset} to {offset + length}, and that file has {size}: it is cut short, or of another export;"
            " copy it again"
        )
    if length != size_of(tensor):
        raise SourceError(
            f"{where}, {length} bytes of them, and its shape {list(tensor.dims)} takes {size_of(tensor)}; export the model again"
        )
    return Place(file, offset, length)


def size_of(tensor: onnx.TensorProto) -> int:
    """Bytes that its elements take."""
    count = prod(tensor.dims)
    packed = _PACKED.get(onnx.TensorProto.DataType.Name(tensor.data_type))
    if packed:
        return int(-(-count * packed // 8))
    return int(count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _leaves(location: str) -> bool:
    """Whether a relative path, or an absolute one of any system, goes out of its folder."""
    is_absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor != ""
    return is_absolute or ".." in {*PurePosixPath(location).parts, *PureWindowsPath(location).parts}
