"""OpenVINO IR: the canonical model as it is (weights in f32 or f16), or made int8 by NNCF,
whole or in its weights only.

A build tells nobody that it ran (`edgekit.analytics`).
"""

import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openvino as ov

from converters.backends import Backend, Prepared, Unsupported
from converters.backends.artifact import Artifact
from converters.backends.openvino import edges, execution, files, graph, npu, pads, quantizer, reading
from converters.backends.openvino import sensitivity as analysis
from converters.backends.openvino.nncf_alone import nncf_loaded
from converters.backends.sharing import Store
from converters.quantize.sensitivity import LayerError
from converters.recipes.knobs import Knob
from converters.recipes.recipe import KEPT, NPU
from converters.recipes.recipes import Plan
from converters.source import onnx_source
from converters.source.source import closed
from edgekit.engines.openvino import core
from edgekit.errors import ToolFailedError
from edgekit.manifest import Option
from edgekit.quiet import quietly

MODEL = "model.xml"


class OpenVinoBackend(Backend):
    def convert(self, prepared: Prepared, plan: Plan, folder: Path) -> Artifact:
        model = (
            _kept(prepared)
            if plan.recipe.scheme == KEPT and prepared.source.native is None
            else _read(prepared)
        )
        notes: tuple[str, ...] = ()
        if plan.recipe.needs_calibration:
            model, notes = quantizer.quantized(model, prepared, plan)
        elif plan.tuning.float_layers or plan.tuning.settings:
            raise ToolFailedError(f"{plan.recipe.name} quantizes no activation, so nothing can be tuned")
        elif plan.recipe.scheme == "weights":
            model = quantizer.with_small_weights(model)
        if not (plan.recipe.needs_calibration or plan.recipe.scheme == KEPT or plan.constraints.accelerator):
            pads.joined(model)
        # What these record (the file's path, the quantizer's settings) would differ from machine to machine.
        for key in list(model.rt_info):
            del model.rt_info[key]
        model.set_friendly_name("model")
        graph.name_nodes(model)
        ov.save_model(model, folder / MODEL, compress_to_fp16=plan.recipe.precision == "fp16")
        # What follows loads what was written: a large model is not held twice.
        del model
        if plan.constraints.accelerator == NPU:
            notes = (*notes, npu.note())
        return Artifact(folder, MODEL, {}, (*notes, *execution.notes(folder / MODEL, plan)))

    def load(self) -> None:
        quietly(nncf_loaded)

    def sensitivity(self, prepared: Prepared, plan: Plan, artifact: Artifact) -> list[LayerError]:
        if not plan.recipe.needs_calibration or prepared.calibration is None:
            raise Unsupported(f"{plan.recipe.name} has no calibrated quantizers to tell apart")
        return analysis.ranked(artifact.folder / artifact.model, prepared, time.monotonic)

    def knobs(self, plan: Plan) -> tuple[Knob, ...]:
        return quantizer.knobs(plan) if plan.recipe.needs_calibration else ()

    def wide(self, plan: Plan) -> Mapping[str, Option]:
        return quantizer.WIDE if plan.recipe.needs_calibration else {}

    def open_shapes(self, model: Path) -> tuple[str, ...]:
        return files.open_shapes(model)

    def move_weights(self, model: Path, store: Store) -> None:
        files.move_weights(model, store)


def _kept(prepared: Prepared) -> Any:
    """The source's own file with its integers and scales, of the shapes that the build decided."""
    source = prepared.source
    assert source.onnx_path is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "source.onnx"
        onnx_source.written_as_it_came(source.onnx_path, path, is_apart=source.is_apart)
        try:
            model = _opened(path)
        except Unsupported as error:
            raise Unsupported(
                f"{error}; for openvino, build from the float model that it was made of"
            ) from error
    model.reshape({spec.name: list(closed(spec)) for spec in source.inputs})
    graph.name_nodes(model)
    return model


def _read(prepared: Prepared) -> Any:
    native = prepared.source.native
    if native is None:
        with reading.readable(prepared.canonical.path) as path:
            model = _opened(path)
    else:
        model = edges.public(_opened(native.files[0]), prepared.source, native)
    graph.name_nodes(model, is_tflite=native is not None and native.suffix == ".tflite")
    return model


def _opened(path: Path) -> Any:
    try:
        return core().read_model(path)
    except RuntimeError as error:
        raise Unsupported(f"OpenVINO cannot read the model: {_cause(error)}") from error


def _cause(error: RuntimeError) -> str:
    """What the front end could not convert, and why where it has a rule for it; otherwise the last of its many lines."""
    lacking = re.search(r"(?:failed for|No conversion rule found for operations): (.+)", str(error))
    if lacking:
        why = re.search(r"with a message:\n(?:.*\n)*?(.+)\n\s*\nSummary", str(error))
        return f"it does not convert {lacking[1].strip()}{f' ({why[1].strip()})' if why else ''}"
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it does not say why"


BACKEND = OpenVinoBackend()
