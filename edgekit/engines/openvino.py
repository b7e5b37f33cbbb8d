"""OpenVINO.

Options: `device` (default `CPU`; an NPU profile's bundle says `NPU`); any other key is an OpenVINO property such as
`INFERENCE_PRECISION_HINT`, without which a CPU with bf16 computes float models in bf16 on its own.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache as once
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from edgekit.buckets import SHARED_WEIGHTS
from edgekit.errors import EngineError
from edgekit.manifest import EngineSpec, TensorSpec
from edgekit.tensors import Array

# Bytes from which an output is written straight into the caller's array: setting that up costs some microseconds, and copying
# the 3 MB of a text recogniser's output a tenth of its time.
LARGE = 1_000_000


class OpenVinoModel:
    def __init__(
        self,
        compiled: ov.CompiledModel,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        is_host: bool,
    ) -> None:
        """`is_host`: the device computes in the host's memory."""
        self._request = compiled.create_infer_request()
        self._inputs = {spec.name: compiled.input(spec.engine_name) for spec in inputs}
        self._outputs = {spec.name: compiled.output(spec.engine_name) for spec in outputs}
        self._large = {
            name: (port, tuple(port.shape), port.element_type.to_dtype())
            for name, port in self._outputs.items()
            if is_host and _size_bytes(port) >= LARGE
        }

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            own: dict[str, Array] = {}
            for name, (port, shape, dtype) in self._large.items():
                own[name] = np.empty(shape, dtype)
                self._request.set_tensor(port, ov.Tensor(own[name], shared_memory=True))
            results = self._request.infer(
                {self._inputs[name]: array for name, array in inputs.items()},
                share_inputs=True,
                share_outputs=True,
            )
        except Exception as error:  # OpenVINO raises RuntimeError for everything
            raise EngineError(f"openvino failed: {error}") from error
        # A copy of the others: OpenVINO reuses its output buffers in the next call.
        return {
            name: own[name] if name in own else np.array(results[port])
            for name, port in self._outputs.items()
        }

    def close(self) -> None:
        del self._request


def _size_bytes(port: ov.ConstOutput) -> int:
    """0 where the shape follows from the data."""
    is_static = bool(port.get_partial_shape().is_static)
    return math.prod(port.shape) * int(port.element_type.size) if is_static else 0


@once
def core() -> ov.Core:
    """The process's only core, made when it is first needed and never given back.

    A core gives its thread a stack for signal handlers, and restores the one before it when it goes. Of two cores that go
    in the order in which they came, the second restores the first one's, which is freed by then (`SigAltStackSetup` in
    OpenVINO 2026.4's CPU plugin): the next Ctrl-C or SIGTERM then ends the process with SIGSEGV.
    """
    return ov.Core()


def read(path: Path) -> ov.Model:
    """An IR with its weights: in a file of its own name, or in the one that the models of several buckets share."""
    shared = path.with_name(SHARED_WEIGHTS)
    return core().read_model(path, shared) if shared.is_file() else core().read_model(path)


class OpenVinoEngine:
    name = "openvino"

    def version(self) -> str:
        return str(ov.__version__).split("-", maxsplit=1)[0]

    def load(
        self,
        path: Path,
        spec: EngineSpec,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        cache: Path | None,
    ) -> OpenVinoModel:
        options = dict(spec.options)
        device = str(options.pop("device", "CPU"))
        properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", **options}
        if spec.threads:
            properties["INFERENCE_NUM_THREADS"] = spec.threads
        if cache is not None:
            properties["CACHE_DIR"] = str(cache)
        try:
            compiled = core().compile_model(read(path), device, properties)
        except Exception as error:
            raise EngineError(f"openvino cannot load {path.name} on {device}: {error}") from error
        return OpenVinoModel(compiled, inputs, outputs, is_host=device == "CPU")


ENGINE = OpenVinoEngine()
