"""Open Inference Protocol v2 requests and answers: JSON, and the binary tensor data extension.

A body is JSON, or, with the header `Inference-Header-Content-Length`, that many bytes of JSON and then the raw
little-endian tensors whose `binary_data_size` the JSON gives, in order.
Source: Open Inference Protocol v2, "Inference Request JSON Object"; Triton's "Binary Tensor Data Extension".
"""

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from device_agent.serve.http import Request, Response
from edgekit import jsonarray
from edgekit.decode import check_json, exactly
from edgekit.errors import InputError
from edgekit.manifest import Manifest
from edgekit.tensors import V2_DTYPES, Array

HEADER_LENGTH = "inference-header-content-length"
BINARY = "application/octet-stream"
_NUMPY = {v2: name for name, v2 in V2_DTYPES.items()}
# Values of the request object beside the tensors' own: names, shapes, parameters.
_OTHER_VALUES = 16 * 1024
_LARGEST_DIMENSION = 2**31 - 1


class TensorIn(msgspec.Struct, frozen=True):
    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw | UnsetType = UNSET
    parameters: dict[str, Any] = {}


class RequestedOutput(msgspec.Struct, frozen=True):
    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct, frozen=True):
    inputs: list[TensorIn]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[RequestedOutput] = []


def read_request(request: Request, most_values: int) -> tuple[InferRequest, dict[str, Array]]:
    """The request object and its tensors by name, which have at most `most_values` values together.

    Raises: InputError; inside `parsing.read` only.
    """
    body = memoryview(request.body)
    split = len(body)
    if HEADER_LENGTH in request.head.headers:
        text = request.head.headers[HEADER_LENGTH].strip()
        if not (text.isascii() and text.isdigit()) or len(text) > 12 or int(text) > len(body):
            raise InputError(f"{HEADER_LENGTH} is {text[:40]!r}, but the body has {len(body)} bytes")
        split = int(text)
    # A row's bracket for each value at most, as for a column of single values.
    check_json(body[:split], 2 * most_values + _OTHER_VALUES)
    try:
        parsed = msgspec.json.decode(body[:split], type=InferRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"not an inference request: {error}") from error
    tensors: dict[str, Array] = {}
    rest = body[split:]
    for tensor in parsed.inputs:
        if tensor.name in tensors:
            raise InputError(f"input {tensor.name!r} is given twice")
        tensors[tensor.name], rest = _read_tensor(tensor, rest, most_values)
    if len(rest):
        raise InputError(f"{len(rest)} bytes after the last binary tensor")
    return parsed, tensors


def _read_tensor(tensor: TensorIn, rest: memoryview, most_values: int) -> tuple[Array, memoryview]:
    where = f"input {tensor.name!r}"
    count = _count(tensor, where, most_values)
    if tensor.datatype == "BYTES":
        raise InputError(f"{where}: models here take numbers; BYTES (text) is not taken", "wrong-dtype")
    if tensor.datatype not in (*_NUMPY, "BF16"):
        raise InputError(
            f"{where}: datatype {tensor.datatype[:40]!r} is not one of {', '.join((*_NUMPY, 'BF16'))}",
            "wrong-dtype",
        )
    size = tensor.parameters.get("binary_data_size")
    if size is not None:
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(rest):
            raise InputError(f"{where}: binary_data_size {size!r}, but {len(rest)} bytes are left")
        if tensor.data is not UNSET:
            raise InputError(f"{where}: has both data and binary_data_size")
        flat = _from_bytes(rest[:size], tensor.datatype, where)
        rest = rest[size:]
    elif isinstance(tensor.data, UnsetType):
        raise InputError(f"{where}: has neither data nor binary_data_size")
    else:
        # Exact: every bfloat16 is a float32.
        dtype = np.dtype("float32" if tensor.datatype == "BF16" else _NUMPY[tensor.datatype])
        flat = exactly(jsonarray.read(bytes(tensor.data), tensor.name), dtype, tensor.name).ravel()
    if flat.size != count:
        raise InputError(f"{where}: {flat.size} values for shape {tensor.shape}", "wrong-shape")
    return flat.reshape(tensor.shape), rest


def _count(tensor: TensorIn, where: str, most_values: int) -> int:
    """How many values the shape has."""
    shape = tensor.shape
    if len(shape) > jsonarray.MAX_DIMENSIONS:
        raise InputError(
            f"{where}: {len(shape)} dimensions; at most {jsonarray.MAX_DIMENSIONS} are taken", "wrong-shape"
        )
    if any(not 0 <= dim <= _LARGEST_DIMENSION for dim in shape):
        raise InputError(
            f"{where}: shape {shape} has a dimension that is negative or too large", "wrong-shape"
        )
    count = math.prod(shape)
    if count > most_values:
        raise InputError(
            f"{where}: shape {shape} has more than {most_values} values, the most taken here", "too-large"
        )
    return count


def _from_bytes(data: memoryview, datatype: str, where: str) -> Array:
    dtype = np.dtype(np.uint16 if datatype == "BF16" else _NUMPY[datatype])
    if len(data) % dtype.itemsize:
        raise InputError(f"{where}: {len(data)} bytes are no whole number of {datatype} values")
    flat: Array = np.frombuffer(data, dtype.newbyteorder("<"))
    if datatype == "BOOL" and flat.size and int(flat.view(np.uint8).max()) > 1:
        raise InputError(f"{where}: a BOOL is a byte of 0 or 1")
    if datatype == "BF16":
        return (flat.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return flat


def check_outputs(parsed: InferRequest, manifest: Manifest) -> None:
    """Raises: InputError for a requested output that the model has not, or one that is asked for twice."""
    known = [spec.name for spec in manifest.outputs]
    asked = [output.name for output in parsed.outputs]
    for name in asked:
        if name not in known:
            raise InputError(
                f"there is no output {name!r}; the model has {', '.join(known)}", "unknown-output"
            )
    if len(set(asked)) != len(asked):
        raise InputError("an output is asked for twice", "unknown-output")


def write_answer(
    parsed: InferRequest,
    outputs: Mapping[str, Array],
    *,
    model: str,
    version: str,
    parameters: Mapping[str, Any] = {},
) -> Response:
    """The answer, each output as JSON or binary as the request asked."""
    all_binary = parsed.parameters.get("binary_data_output") is True
    wanted = parsed.outputs or [RequestedOutput(name) for name in outputs]
    described: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for output in wanted:
        array = outputs[output.name]
        entry: dict[str, Any] = {
            "name": output.name,
            "datatype": V2_DTYPES[array.dtype.name],
            "shape": list(array.shape),
        }
        if output.parameters.get("binary_data", all_binary) is True:
            data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
            entry["parameters"] = {"binary_data_size": len(data)}
            tail.append(data)
        else:
            entry["data"] = array.ravel().tolist()
        described.append(entry)
    answer: dict[str, Any] = {"model_name": model, "model_version": version}
    if parsed.id:
        answer["id"] = parsed.id
    if parameters:
        answer["parameters"] = parameters
    answer["outputs"] = described
    head = msgspec.json.encode(answer)
    if not tail:
        return Response(200, head)
    return Response(200, b"".join((head, *tail)), BINARY, {HEADER_LENGTH: str(len(head))})
