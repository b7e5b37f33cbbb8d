"""Open Inference Protocol v2 requests and answers: JSON, and the binary tensor data extension.

A body is JSON, or, with the header `Inference-Header-Content-Length`, that many bytes of JSON and then the raw
little-endian tensors whose `binary_data_size` the JSON gives, in order.
Source: Open Inference Protocol v2, "Inference Request JSON Object"; Triton's "Binary Tensor Data Extension".
"""

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from device_agent.serve.http import Request, Response
from device_agent.serve.model import Sequence
from edgekit.decode import exactly
from edgekit.errors import InputError
from edgekit.manifest import Manifest
from edgekit.tensors import V2_DTYPES, Array

HEADER_LENGTH = "inference-header-content-length"
_NUMPY = {v2: name for name, v2 in V2_DTYPES.items()}


class TensorIn(msgspec.Struct, frozen=True):
    name: str
    shape: list[int]
    datatype: str
    data: Any = None
    parameters: dict[str, Any] = {}


class RequestedOutput(msgspec.Struct, frozen=True):
    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct, frozen=True):
    inputs: list[TensorIn]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[RequestedOutput] = []


def read_request(request: Request) -> tuple[InferRequest, dict[str, Array]]:
    """The request object and its tensors by name. Raises: InputError."""
    body = memoryview(request.body)
    split = len(body)
    if HEADER_LENGTH in request.head.headers:
        text = request.head.headers[HEADER_LENGTH]
        if not text.isdigit() or int(text) > len(body):
            raise InputError(f"{HEADER_LENGTH} is {text!r}, but the body has {len(body)} bytes")
        split = int(text)
    try:
        parsed = msgspec.json.decode(body[:split], type=InferRequest)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"not an inference request: {error}") from error
    tensors: dict[str, Array] = {}
    rest = body[split:]
    for tensor in parsed.inputs:
        if tensor.name in tensors:
            raise InputError(f"input {tensor.name!r} is given twice")
        tensors[tensor.name], rest = _read_tensor(tensor, rest)
    if len(rest):
        raise InputError(f"{len(rest)} bytes after the last binary tensor")
    return parsed, tensors


def _read_tensor(tensor: TensorIn, rest: memoryview) -> tuple[Array, memoryview]:
    where = f"input {tensor.name!r}"
    if tensor.datatype not in _NUMPY:
        raise InputError(f"{where}: datatype {tensor.datatype!r} is not one of {', '.join(_NUMPY)}")
    dtype = np.dtype(_NUMPY[tensor.datatype])
    if any(dim < 0 for dim in tensor.shape):
        raise InputError(f"{where}: shape {tensor.shape} has a negative dimension")
    size = tensor.parameters.get("binary_data_size")
    if size is not None:
        if not isinstance(size, int) or not 0 <= size <= len(rest):
            raise InputError(f"{where}: binary_data_size {size!r}, but {len(rest)} bytes are left")
        flat: Array = np.frombuffer(rest[:size], _byte_type(dtype, size, where))
        rest = rest[size:]
    else:
        flat = exactly(tensor.data, dtype, tensor.name).ravel()
    if flat.size != int(np.prod(tensor.shape, dtype=object)):
        raise InputError(f"{where}: {flat.size} values for shape {tensor.shape}")
    return flat.reshape(tensor.shape), rest


def _byte_type(dtype: "np.dtype[Any]", size: int, where: str) -> "np.dtype[Any]":
    if size % dtype.itemsize:
        raise InputError(f"{where}: {size} bytes are no whole number of {dtype} values")
    return dtype.newbyteorder("<")


def sequence_of(parameters: Mapping[str, Any]) -> Sequence:
    """The sequence that request parameters name. Raises: InputError."""
    key = parameters.get("sequence_id")
    if key is not None and (isinstance(key, bool) or not isinstance(key, int | str) or len(str(key)) > 128):
        raise InputError("sequence_id is a whole number or a text of at most 128 characters")
    return Sequence(
        key=None if key is None else str(key),
        is_start=parameters.get("sequence_start") is True,
        is_end=parameters.get("sequence_end") is True,
    )


def check_outputs(parsed: InferRequest, manifest: Manifest) -> None:
    """Raises: InputError for a requested output that the model has not."""
    known = [spec.name for spec in manifest.outputs]
    for output in parsed.outputs:
        if output.name not in known:
            raise InputError(f"there is no output {output.name!r}; the model has {', '.join(known)}")


def write_answer(parsed: InferRequest, outputs: Mapping[str, Array], *, model: str, version: str) -> Response:
    """The answer, each output as JSON or binary as the request asked."""
    all_binary = parsed.parameters.get("binary_data_output") is True
    wanted = parsed.outputs or [RequestedOutput(name) for name in outputs]
    described: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for output in wanted:
        array = outputs[output.name]
        entry: dict[str, Any] = {
            "name": output.name,
            "shape": list(array.shape),
            "datatype": V2_DTYPES[array.dtype.name],
        }
        if output.parameters.get("binary_data", all_binary) is True:
            data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
            entry["parameters"] = {"binary_data_size": len(data)}
            tail.append(data)
        else:
            entry["data"] = array.ravel().tolist()
        described.append(entry)
    answer: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": described}
    if parsed.id:
        answer["id"] = parsed.id
    head = msgspec.json.encode(answer)
    if not tail:
        return Response(200, head)
    return Response(200, b"".join((head, *tail)), "application/octet-stream", {HEADER_LENGTH: str(len(head))})
