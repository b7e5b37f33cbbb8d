"""LiteRT: straight from torch where the source is a torch program, otherwise through the ONNX importer.

int8 by ai-edge-quantizer, whose calibration updates a running range with each sample. It quantizes per channel and
with symmetric weights; a profile that wants otherwise gets no int8 candidate from here, and the reason.
"""

import importlib.metadata
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from converters.backends import Artifact, Prepared, Unsupported
from converters.prepare import canonical
from converters.prepare.quiet import first_line, quietly
from converters.prepare.source import closed
from converters.quantize.recipes import Plan
from edgekit import engines
from edgekit.errors import ToolFailedError
from edgekit.manifest import EngineSpec, TensorSpec

MODEL = "model.tflite"
SIGNATURE = "serving_default"
# Calibration samples in memory at a time.
BATCH = 32


class LiteRtBackend:
    def tools(self) -> dict[str, str]:
        names = ("ai-edge-litert", "ai-edge-quantizer", "litert-torch", "torch", "onnx", "onnxslim")
        return {name: importlib.metadata.version(name) for name in names}

    def convert(self, prepared: Prepared, plan: Plan, folder: Path) -> Artifact:
        target = folder / MODEL
        notes = _float_model(prepared, target)
        if plan.recipe.scheme != "float":
            _quantize(prepared, plan, target)
        return Artifact(folder, MODEL, _bindings(prepared, target), notes)


def _float_model(prepared: Prepared, target: Path) -> tuple[str, ...]:
    """Convert from torch, or else through the importer. Raises: Unsupported."""
    notes: tuple[str, ...] = ()
    if prepared.source.module is not None:
        try:
            _convert_torch(prepared, prepared.source.module, target)
            return ()
        except Exception as error:  # noqa: BLE001  # litert-torch raises anything; the importer gets its turn
            notes = (f"litert-torch failed on the torch program ({first_line(error)}); went through ONNX",)
    # Loads torch, which candidates of other engines do without.
    from converters.prepare.importer import UnsupportedOperatorsError, load, traced

    try:
        module = load(prepared.canonical.path)
    except UnsupportedOperatorsError as error:
        raise Unsupported(f"LiteRT: {error}") from error
    try:
        _convert_torch(prepared, traced(module, _zeros(prepared)), target)
    except Exception as error:
        raise Unsupported(f"LiteRT cannot take the model: {first_line(error)}") from error
    return notes


def _convert_torch(prepared: Prepared, module: Any, target: Path) -> None:
    """Raises: whatever litert-torch raises; ToolFailedError if the result differs from the source."""
    import litert_torch

    arguments = _zeros(prepared)

    def convert() -> None:
        litert_torch.convert(module, arguments).export(str(target))

    quietly(convert)
    spec = EngineSpec("litert", "", target.name)
    bindings = _bindings(prepared, target)
    source = prepared.source
    model = engines.get("litert").load(
        target, spec, _bound(source.inputs, bindings), _bound(source.outputs, bindings), None
    )
    feed = {spec.name: _ramp(spec) for spec in source.inputs}
    gap = canonical.parity([source.reference.run(feed)], [model.run(feed)])
    model.close()
    if gap > canonical.PARITY:
        raise ToolFailedError(f"the LiteRT model differs from the source by {gap:.2g} of its largest output")


def _bound(specs: tuple[TensorSpec, ...], bindings: dict[str, str]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(spec.name, spec.dtype, spec.shape, bindings[spec.name]) for spec in specs)


def _ramp(spec: TensorSpec) -> Any:
    """Deterministic values in 0..1 of the spec's type."""
    count = int(np.prod(closed(spec)))
    return (np.arange(count) * 0.37 % 1).reshape(closed(spec)).astype(spec.dtype)


def _zeros(prepared: Prepared) -> tuple[Any, ...]:
    import torch

    return tuple(torch.from_numpy(np.zeros(closed(spec), spec.dtype)) for spec in prepared.source.inputs)


def _bindings(prepared: Prepared, target: Path) -> dict[str, str]:
    """Public name → tensor name, by the position in the signature (litert-torch: args_0…, output_0…)."""
    interpreter = Interpreter(model_path=str(target))
    inputs = {detail["name"]: detail for detail in interpreter.get_input_details()}
    outputs = {detail["name"]: detail for detail in interpreter.get_output_details()}
    source = prepared.source
    found: dict[str, str] = {}
    for index, spec in enumerate(source.inputs):
        found[spec.name] = _only(inputs, f"{SIGNATURE}_args_{index}")
    for index, spec in enumerate(source.outputs):
        found[spec.name] = _only(outputs, f"{SIGNATURE}_output_{index}_output")
    return found


def _only(details: dict[str, Any], name: str) -> str:
    if name not in details:
        raise ToolFailedError(f"the LiteRT model has no tensor {name}; it has {', '.join(details)}")
    return name


def _quantize(prepared: Prepared, plan: Plan, target: Path) -> None:
    """Quantize the float model in place. Raises: Unsupported, ToolFailedError."""
    from ai_edge_quantizer import quantizer, recipe

    if not plan.constraints.per_channel:
        raise Unsupported("ai-edge-quantizer quantizes per channel, which this profile rules out")
    chosen = recipe.dynamic_wi8_afp32() if plan.recipe.scheme == "dynamic" else recipe.static_wi8_ai8()

    def run() -> bytes:
        tool = quantizer.Quantizer(str(target), chosen)
        ranges = _ranges(prepared, target, chosen) if tool.need_calibration else None
        return bytes(tool.quantize(ranges).quantized_model)

    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        data = quietly(run)
    except Exception as error:
        raise ToolFailedError(f"ai-edge-quantizer failed: {first_line(error)}") from error
    target.write_bytes(data)


def _ranges(prepared: Prepared, target: Path, chosen: Any) -> dict[str, Any]:
    """Smallest and largest value of each tensor over all samples.

    ai-edge-quantizer's default is a moving average, which cuts off what only some samples reach.
    """
    from ai_edge_quantizer import calibrator, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(chosen)
    tool = calibrator.Calibrator(target.read_bytes(), num_threads=2, qsv_update_func=qsv_utils.min_max_update)
    # ai-edge-quantizer 0.10 makes a list of whatever it is given, so it gets a few samples at a time.
    for batch in _batches(_feeds(prepared)):
        tool.calibrate({SIGNATURE: batch}, manager)
    found: dict[str, Any] = tool.get_model_qsvs()
    return found


def _batches(feeds: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while batch := list(itertools.islice(feeds, BATCH)):
        yield batch


def _feeds(prepared: Prepared) -> Iterator[dict[str, Any]]:
    assert prepared.calibration is not None
    order = {spec.name: f"args_{index}" for index, spec in enumerate(prepared.source.inputs)}
    for feed in prepared.calibration():
        yield {order[name]: array for name, array in feed.items()}


BACKEND = LiteRtBackend()
