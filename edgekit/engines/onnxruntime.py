"""ONNX Runtime.

Options: `graph_optimization_level` (`all`, `extended`, `basic`, `disabled`); any other key is a session
configuration entry, passed as text.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnxruntime as ort

from edgekit.errors import EngineError
from edgekit.manifest import EngineSpec, TensorSpec
from edgekit.tensors import Array

_LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


class OnnxRuntimeModel:
    def __init__(
        self, session: ort.InferenceSession, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        self._session = session
        self._inputs = {spec.name: spec.engine_name for spec in inputs}
        self._outputs = [spec.name for spec in outputs]
        self._engine_outputs = [spec.engine_name for spec in outputs]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        feed = {self._inputs[name]: array for name, array in inputs.items()}
        try:
            results = self._session.run(self._engine_outputs, feed)
        except Exception as error:  # ONNX Runtime raises its own unrelated classes
            raise EngineError(f"onnxruntime failed: {error}") from error
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        del self._session


class OnnxRuntimeEngine:
    name = "onnxruntime"

    def version(self) -> str:
        return str(ort.__version__)

    def load(
        self,
        path: Path,
        spec: EngineSpec,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        cache: Path | None,  # noqa: ARG002  # ONNX Runtime's CPU provider compiles nothing worth keeping
    ) -> OnnxRuntimeModel:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if spec.threads:
            options.intra_op_num_threads = spec.threads
            options.inter_op_num_threads = 1
        for key, value in spec.options.items():
            if key == "graph_optimization_level":
                if value not in _LEVELS:
                    raise EngineError(
                        f"graph_optimization_level {value!r} is not one of {', '.join(_LEVELS)}"
                    )
                options.graph_optimization_level = _LEVELS[str(value)]
            else:
                options.add_session_config_entry(key, str(value))
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise EngineError(f"onnxruntime cannot load {path.name}: {error}") from error
        return OnnxRuntimeModel(session, inputs, outputs)


ENGINE = OnnxRuntimeEngine()
