"""LiteRT's `CompiledModel` behind the interpreter's calls that the adapter makes: packed weights are kept once.

XNNPACK packs weights anew for each operator that reads them. A recurrent layer that is unrolled over its steps reads one
matrix in every step, and 24 copies of it no longer fit a core's cache. Only this interface takes XNNPACK's weight cache, by
which operators with the same weights share what is packed.

Source: `xnnpack_weight_cache_path` of litert/python/litert_wrapper, and `kInMemoryCachePath` of
tflite/delegates/xnnpack/weight_cache.h, LiteRT 2.3.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.tensors import Array

# A cache that is never written to a file.
_IN_MEMORY = ":memory"


class AbsentError(Exception):
    """The installed LiteRT has no such interface, or none for these tensors."""


@dataclass(frozen=True)
class _Port:
    """A tensor at the model's edge, and the buffer that carries it."""

    buffer: Any
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class SharedWeights:
    """Calls of an `Interpreter` whose tensors are those of the model's edge, by the indices in `interpreter`'s details."""

    def __init__(self, interpreter: Any, path: Path, threads: int) -> None:
        """`interpreter` has the same model and is not allocated: it only tells names. Raises: AbsentError, RuntimeError."""
        try:
            from ai_edge_litert.compiled_model import CompiledModel
            from ai_edge_litert.options import CpuOptions, Options

            own = Options(cpu_options=CpuOptions(num_threads=threads, xnnpack_weight_cache_path=_IN_MEMORY))
            self._model = CompiledModel.from_file(str(path), options=own)
        except (ImportError, TypeError) as error:
            raise AbsentError(str(error)) from error
        self._interpreter = interpreter
        key = next(iter(self._model.get_signature_list()), "")
        self._inputs = _ports(
            interpreter.get_input_details(),
            self._model.get_input_tensor_details(key),
            self._model.create_input_buffers(0),
        )
        self._outputs = _ports(
            interpreter.get_output_details(),
            self._model.get_output_tensor_details(key),
            self._model.create_output_buffers(0),
        )
        # What is not written yet is whatever lies there; and LiteRT announces itself at the first.
        for port in self._inputs.values():
            port.buffer.write(np.zeros(port.shape, port.dtype))
        self._buffers = (
            [port.buffer for port in self._inputs.values()],
            [port.buffer for port in self._outputs.values()],
        )

    def get_input_details(self) -> list[dict[str, Any]]:
        details: list[dict[str, Any]] = self._interpreter.get_input_details()
        return details

    def get_output_details(self) -> list[dict[str, Any]]:
        details: list[dict[str, Any]] = self._interpreter.get_output_details()
        return details

    def set_tensor(self, index: int, array: Array) -> None:
        """Raises: ValueError for another shape or type than the model's."""
        port = self._inputs[index]
        if array.shape != port.shape or array.dtype != port.dtype:
            raise ValueError(f"{array.dtype} {array.shape} for a tensor of {port.dtype} {port.shape}")
        port.buffer.write(array)

    def invoke(self) -> None:
        """Raises: RuntimeError."""
        self._model.run_by_index(0, *self._buffers)

    def get_tensor(self, index: int) -> Array:
        port = self._outputs[index]
        array: Array = port.buffer.read(math.prod(port.shape), port.dtype).reshape(port.shape)
        return array


def _ports(
    details: list[dict[str, Any]], signature: dict[str, dict[str, Any]], buffers: list[Any]
) -> dict[int, _Port]:
    """By the interpreter's index of the tensor, in the signature's order. Raises: AbsentError."""
    by_name = {detail["name"]: detail for detail in details}
    names = [entry["name"] for entry in signature.values()]
    if len(by_name) != len(details) or sorted(names) != sorted(by_name):
        raise AbsentError("the signature's tensors are not the model's")
    return {
        by_name[name]["index"]: _Port(
            buffer, tuple(map(int, by_name[name]["shape"])), np.dtype(by_name[name]["dtype"])
        )
        for name, buffer in zip(names, buffers, strict=True)
    }
