"""A large ONNX model's weights, which stay in files: the graph is read without them, and they are linked, not copied.

A protobuf message holds less than 2 GB, and each tool that reads one holds it twice. So from a size on (`[model]
weights_apart_mb`) every step of a build sees the graph with places of weights (ONNX's external data), and the engines map
the file.

Always true
 1. A tensor of `LEAST_BYTES` or more is a place in a file. Smaller ones, which tools look at (shapes, scales, biases), are
    in the graph.
 2. No more of a weight file is held than a piece.
 3. Whatever is written has all its weights in one file beside it, `WEIGHTS`.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from converters.source import linking, onnx_files
from converters.source.onnx_files import Place
from edgekit.buckets import SHARED_WEIGHTS

WEIGHTS = SHARED_WEIGHTS
LEAST_BYTES = 1 << 16
# A file of which less is used is written anew without the rest.
MOST_USED = 0.95
_PIECE = 1 << 22
_ALIGNMENT = 64


class Writer:
    """The weight file of a model that is being made, piece by piece."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / WEIGHTS).open("xb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, tensor: onnx.TensorProto, pieces: Iterable[bytes]) -> None:
        """The tensor's bytes are these from now on. Raises: OSError."""
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        start = self._file.tell()
        for piece in pieces:
            self._file.write(piece)
        refer(tensor, start, self._file.tell() - start)


def load(path: Path, *, is_apart: bool) -> onnx.ModelProto:
    """The model, whole; if `is_apart`, its large weights are the places in files that it came with.

    Raises: SourceError for a place that is none; OSError, DecodeError.
    """
    model = onnx.load(str(path), load_external_data=False)
    for tensor in onnx_files.tensors(model.graph):
        if not uses_external_data(tensor):
            continue
        found = onnx_files.place(path, tensor)
        if not is_apart or found.length < LEAST_BYTES:
            tensor.raw_data = b"".join(pieces(found))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    return model


def refer(tensor: onnx.TensorProto, offset: int, length: int) -> None:
    """Let the tensor be a place in `WEIGHTS`."""
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", WEIGHTS), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def pieces(found: Place) -> Iterator[bytes]:
    with found.file.open("rb") as file:
        file.seek(found.offset)
        left = found.length
        while left and (piece := file.read(min(left, _PIECE))):
            left -= len(piece)
            yield piece


def placed(model: onnx.ModelProto, beside: Path, folder: Path) -> onnx.ModelProto:
    """A copy whose large weights are in the empty `folder`; `beside` is the file that its places are beside.

    The user's own file is linked where it is the only one and the model uses nearly all of it. Raises: OSError.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    outside = [tensor for tensor in onnx_files.tensors(made.graph) if uses_external_data(tensor)]
    inside = [tensor for tensor in onnx_files.tensors(made.graph) if len(tensor.raw_data) >= LEAST_BYTES]
    places = [onnx_files.place(beside, tensor) for tensor in outside]
    files = {found.file for found in places}
    used = sum({(found.offset, found.length): found.length for found in places}.values())
    if not inside and len(files) == 1 and used >= MOST_USED * (own := next(iter(files))).stat().st_size:
        linking.put(own, folder / WEIGHTS)
        for tensor, found in zip(outside, places, strict=True):
            refer(tensor, found.offset, found.length)
        return made
    with Writer(folder) as writer:
        for tensor, found in zip(outside, places, strict=True):
            writer.add(tensor, pieces(found))
        for tensor in inside:
            writer.add(tensor, [tensor.raw_data])
    return made


def around(step: Callable[[onnx.ModelProto], onnx.ModelProto], model: onnx.ModelProto) -> onnx.ModelProto:
    """A step of a tool that has to hold what it looks at, on the graph with its large weights as inputs; the model itself
    where the step changes nothing.
    """
    light = onnx.ModelProto()
    light.CopyFrom(model)
    large = {tensor.name: tensor for tensor in model.graph.initializer if uses_external_data(tensor)}
    if not large:
        return step(model)
    kept = [tensor for tensor in light.graph.initializer if tensor.name not in large]
    del light.graph.initializer[:]
    light.graph.initializer.extend(kept)
    light.graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in large.values()
    )
    found = step(light)
    if found is light:
        return model
    made = onnx.ModelProto()
    made.CopyFrom(found)
    inputs = [value for value in found.graph.input if value.name not in large]
    del made.graph.input[:]
    made.graph.input.extend(inputs)
    made.graph.initializer.extend(large[name] for name in _read(found.graph) if name in large)
    return made


def _read(graph: onnx.GraphProto) -> Iterator[str]:
    """Names that the graph reads, branches included, each once."""
    seen: dict[str, None] = {}
    graphs = [graph]
    while graphs:
        one = graphs.pop()
        for node in one.node:
            seen |= dict.fromkeys(node.input)
            for attribute in node.attribute:
                graphs += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
        seen |= dict.fromkeys(value.name for value in one.output)
    yield from seen


def place_of(model: Path, tensor: onnx.TensorProto) -> Place:
    """Of a weight of a model that `placed` or a `Writer` made."""
    told = ExternalDataInfo(tensor)
    return Place(model.parent / WEIGHTS, told.offset or 0, told.length or 0)
