"""ONNX Runtime: the canonical model as it is, or with QDQ pairs by ONNX Runtime's own quantizer."""

import importlib.metadata
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry
from onnxruntime.quantization.shape_inference import quant_pre_process

from converters.backends import Artifact, Prepared
from converters.quantize import calibration
from converters.quantize.recipes import Constraints, Plan, Recipe
from edgekit.errors import ToolFailedError

MODEL = "model.onnx"
# Quantizing these alone buys nothing and costs range: data movement follows the tensors that it moves.
_LEFT_FLOAT = frozenset({"Softmax", "LayerNormalization", "Resize"})


class OnnxRuntimeBackend:
    def tools(self) -> dict[str, str]:
        return {name: importlib.metadata.version(name) for name in ("onnx", "onnxruntime", "onnxslim")}

    def convert(self, prepared: Prepared, plan: Plan, folder: Path) -> Artifact:
        target = folder / MODEL
        if plan.recipe.scheme == "float":
            target.write_bytes(prepared.canonical.path.read_bytes())
        else:
            model = _quantized(prepared, plan.recipe, plan.constraints, folder)
            target.write_bytes(model.SerializeToString(deterministic=True))
        return Artifact(folder, MODEL, {})


def _quantized(prepared: Prepared, recipe: Recipe, constraints: Constraints, folder: Path) -> onnx.ModelProto:
    assert prepared.calibration is not None
    fused = folder / "fused.onnx"
    try:
        # Folds BatchNormalization and fuses what the quantizer knows as one operator.
        quant_pre_process(str(prepared.canonical.path), str(fused), skip_symbolic_shape=True)
        model = onnx.load(str(fused))
    finally:
        fused.unlink(missing_ok=True)
    spreads = calibration.spreads(model, prepared.calibration())
    ranges = {
        name: spread.percentile() if recipe.scheme == "percentile" else spread.extremes()
        for name, spread in spreads.items()
    }
    data = TensorsData(
        CalibrationMethod.MinMax,
        {
            name: TensorData(lowest=np.float32(low), highest=np.float32(high))
            for name, (low, high) in ranges.items()
        },
    )
    quantizer = QDQQuantizer(
        model,
        constraints.per_channel,
        constraints.reduce_range,
        QuantType.QInt8,
        QuantType.QInt8 if constraints.symmetric_activations else QuantType.QUInt8,
        data,
        [],
        [],
        sorted(set(QDQRegistry) - _LEFT_FLOAT),
        {"ActivationSymmetric": constraints.symmetric_activations, "WeightSymmetric": True},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    result: onnx.ModelProto = quantizer.model.model
    for field in ("producer_name", "producer_version", "doc_string"):
        result.ClearField(field)
    del result.metadata_props[:]
    try:
        onnx.checker.check_model(result)
    except onnx.checker.ValidationError as error:
        raise ToolFailedError(f"ONNX Runtime's quantizer made an invalid model: {error}") from error
    return result


BACKEND = OnnxRuntimeBackend()
