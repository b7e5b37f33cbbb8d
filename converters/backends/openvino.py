"""OpenVINO IR: the canonical model as it is (weights in f32 or f16), or quantized by NNCF.

A build tells nobody that it ran: `Core.read_model` is used rather than `openvino.convert_model`, and NNCF is imported
with its CI switch on, since both otherwise report to an analytics service (openvino 2026.4, nncf 3.4).
"""

import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openvino as ov

from converters.backends import Artifact, Prepared, Unsupported
from converters.prepare.quiet import first_line, quietly
from converters.quantize.recipes import Plan
from edgekit.errors import ToolFailedError

MODEL = "model.xml"
# NNCF looks at no more samples than this; the stream ends there.
SUBSET = 300


class OpenVinoBackend:
    def tools(self) -> dict[str, str]:
        return {name: importlib.metadata.version(name) for name in ("openvino", "nncf", "onnx", "onnxslim")}

    def convert(self, prepared: Prepared, plan: Plan, folder: Path) -> Artifact:
        try:
            model = ov.Core().read_model(prepared.canonical.path)
        except RuntimeError as error:
            raise Unsupported(f"OpenVINO cannot read the model: {error}") from error
        if plan.recipe.precision == "int8":
            model = _quantized(model, prepared, plan)
        # What these record (the file's path, the quantizer's settings) would differ from machine to machine.
        for key in list(model.rt_info):
            del model.rt_info[key]
        model.set_friendly_name("model")
        ov.save_model(model, folder / MODEL, compress_to_fp16=plan.recipe.precision == "fp16")
        return Artifact(folder, MODEL, {})


def _quantized(model: Any, prepared: Prepared, plan: Plan) -> Any:
    assert prepared.calibration is not None
    names = [set(port.get_names()) for port in model.inputs]

    def feeds() -> Iterator[dict[int, Any]]:
        assert prepared.calibration is not None
        for feed in prepared.calibration():
            yield {
                index: next(array for name, array in feed.items() if name in known)
                for index, known in enumerate(names)
            }

    def quantize() -> Any:
        os.environ.setdefault("NNCF_CI", "1")
        import nncf
        from nncf.quantization import advanced_parameters

        symmetric = plan.constraints.symmetric_activations
        return nncf.quantize(
            model,
            nncf.Dataset(feeds()),
            subset_size=SUBSET,
            preset=nncf.QuantizationPreset.PERFORMANCE if symmetric else nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.NPU if plan.constraints.accelerator else nncf.TargetDevice.CPU,
            advanced_parameters=_advanced(plan, advanced_parameters),
        )

    try:
        return quietly(quantize)
    except Exception as error:
        raise ToolFailedError(f"NNCF failed: {first_line(error)}") from error


def _advanced(plan: Plan, parameters: Any) -> Any:
    """Weights in seven bits where 8-bit products saturate; one scale a tensor where the target wants that."""
    fix = parameters.OverflowFix
    overflow = fix.ENABLE if plan.constraints.reduce_range else fix.DISABLE
    weights = parameters.QuantizationParameters(per_channel=plan.constraints.per_channel)
    return parameters.AdvancedQuantizationParameters(
        overflow_fix=overflow, weights_quantization_params=weights
    )


BACKEND = OpenVinoBackend()
