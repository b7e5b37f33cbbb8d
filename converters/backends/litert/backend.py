"""LiteRT: straight from torch where the source is a torch program, of a TFLite file the file itself made ready (`litert.ready`),
otherwise through the ONNX importer.

The graph's patterns are recognised before it is converted (`graph.patterns`), and what a CPU runs slower in int8
than in float stays in float (`litert.graph`). A model for a CPU takes and gives float; one for an Ethos-U is integer
throughout, and the engine adapter converts its inputs and outputs.
"""

import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from converters.backends import Backend, Prepared, Unsupported
from converters.backends.artifact import Artifact, passed
from converters.backends.litert import delegated, equalized, int8, layouts, ready, recurrent, tables
from converters.backends.litert import graph as litert_graph
from converters.backends.litert.layers import layer_errors
from converters.backends.litert.running import SIGNATURE
from converters.backends.parity import smallest_gap
from converters.graph import canonical, patterns
from converters.quantize.sensitivity import LayerError
from converters.recipes.knobs import Knob
from converters.recipes.recipes import Plan
from converters.source import tflite
from converters.source.source import closed
from edgekit import engines
from edgekit.errors import ToolFailedError
from edgekit.manifest import EngineSpec, Option
from edgekit.quiet import first_line, quietly

MODEL = "model.tflite"
# Seconds after which a conversion that failed twice of the same cause is not tried a third way.
PATIENCE_S = 30.0


# What `convert` imports late: with torch, jax and torchao behind it, six seconds.
_LATE = ("litert_torch", "converters.backends.litert.program", "converters.graph.importer")
_TYPE = schema.TensorType
# In `Prepared.memo`: the last float model, which all recipes of a source start from, or why there is none.
_LAST = "litert float"


@dataclass(frozen=True)
class _Float:
    """A float model already converted, or why it could not be."""

    is_for_cpu: bool
    content: bytes = b""
    notes: tuple[str, ...] = ()
    failure: str = ""


class LiteRtBackend(Backend):
    def load(self) -> None:
        quietly(lambda: list(map(import_module, _LATE)))

    def convert(self, prepared: Prepared, plan: Plan, folder: Path) -> Artifact:
        if prepared.source.is_apart:
            raise Unsupported(
                "not tried: a TFLite file holds its weights in one flatbuffer of less than 2 GB, and litert-torch makes it of the"
                " whole model in memory; this model's weights are kept apart"
            )
        target = folder / MODEL
        notes = _float_model(prepared, plan, target)
        if plan.recipe.needs_calibration:
            notes += _equalized(prepared, target)
        if plan.recipe.precision != "fp32":
            graph = litert_graph.layers(target)
            content, told = int8.quantized(prepared, plan, target, graph)
            target.write_bytes(content)
            _refuse_untouched(plan, target, graph, told)
            notes += (*told, *int8.float_weights(plan, graph))
        graph = litert_graph.layers(target)
        if plan.recipe.needs_calibration:
            notes += litert_graph.float_islands(graph)
        left = Counter[str]() if plan.is_accelerated else litert_graph.left_by_xnnpack(target)
        notes += litert_graph.off_the_fast_path(graph, left) + delegated.notes(target, plan)
        return Artifact(folder, MODEL, _bindings(prepared, target), notes, options=_options(target))

    def sensitivity(self, prepared: Prepared, plan: Plan, artifact: Artifact) -> list[LayerError]:  # noqa: ARG002  # the artifact no longer tells its layers' float names
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / MODEL
            _float_model(prepared, plan, path)
            if plan.recipe.needs_calibration:
                _equalized(prepared, path)
            return layer_errors(prepared, plan, path, time.monotonic)

    def loading(self, model: Path, plan: Plan) -> Mapping[str, Option]:
        return delegated.options(model, plan)

    def layouts(self, model: Path, plan: Plan) -> tuple[Mapping[str, Option], ...]:
        return layouts.options(model, plan)

    def knobs(self, plan: Plan) -> tuple[Knob, ...]:
        return int8.knobs(plan)

    def open_shapes(self, model: Path) -> tuple[str, ...]:
        graph = quietly(lambda: tflite.read(model))
        return tuple(tensor.name for tensor in graph.tensors if min(tensor.shape, default=0) < 0)


def _float_model(prepared: Prepared, plan: Plan, target: Path) -> tuple[str, ...]:
    """Write the float model; gives its notes. Raises: Unsupported."""
    last: _Float | None = prepared.memo.get(_LAST)
    if last is None or last.is_for_cpu == plan.is_accelerated:
        last = prepared.memo[_LAST] = _made(prepared, plan)
    if last.failure:
        raise Unsupported(last.failure)
    target.write_bytes(last.content)
    return last.notes


def _equalized(prepared: Prepared, path: Path) -> tuple[str, ...]:
    """Equalize the float model at `path` for static integers; gives notes. Done once for all tries of a process."""
    content = path.read_bytes()
    key = f"litert equalized {hashlib.sha256(content).hexdigest()}"
    if key not in prepared.memo:
        pairs = equalized.equalized(path, int8.feeds(prepared, equalized.SAMPLES))
        told = (
            f"channels that reach far beyond their neighbours brought nearer (between {pairs} pairs of convolutions)",
        )
        prepared.memo[key] = path.read_bytes(), told if pairs else ()
    made, notes = prepared.memo[key]
    path.write_bytes(made)
    found: tuple[str, ...] = notes
    return found


def _made(prepared: Prepared, plan: Plan) -> _Float:
    """Converted once for all processes, and for later builds: workers that each convert it take most of a build."""
    is_for_cpu = not plan.is_accelerated

    def make(folder: Path) -> dict[str, object]:
        return {"notes": list(_converted(prepared, plan, folder / MODEL))}

    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        try:
            kept = prepared.keep(f"litert/float {'cpu' if is_for_cpu else 'accelerator'}", folder, make)
        except Unsupported as error:
            # Found once: a large graph takes minutes to fail.
            return _Float(is_for_cpu, failure=str(error))
        notes = msgspec.convert(kept["notes"], tuple[str, ...])
        return _Float(is_for_cpu, (folder / MODEL).read_bytes(), notes)


def _converted(prepared: Prepared, plan: Plan, target: Path) -> tuple[str, ...]:
    """From the source's own TFLite file, from torch, or else through the importer. Raises: Unsupported."""
    native = prepared.source.native
    if native is not None:
        notes_of_file = ready.made_ready(native.files[0], target)
        _check(prepared, target)
        return (*notes_of_file, native.note) if native.note else notes_of_file
    notes: list[str] = []
    may_fuse = not plan.is_accelerated
    if prepared.source.module is not None:
        try:
            return _convert_torch(
                prepared, prepared.source.module, _zeros(prepared), target, may_fuse=may_fuse
            )
        except Exception as error:  # noqa: BLE001  # litert-torch raises anything; the importer gets its turn
            notes.append(f"litert-torch failed on the torch program ({first_line(error)}); went through ONNX")
    # Loads torch, which candidates of other engines do without.
    from converters.graph.importer import UnsupportedOperatorsError, load, traced
    from converters.graph.importer.types import at_edge

    zeros = tuple(zero.to(at_edge(zero.dtype)) for zero in _zeros(prepared))

    model = onnx.load(str(prepared.canonical.path))
    rewritten, found = patterns.recognised(model, for_xnnpack=not plan.is_accelerated)
    # torch.export keeps operators whole (a resize, a pool) that tracing takes apart; tracing copes with more programs.
    ways: tuple[tuple[str, Any, Callable[[Any], Any]], ...] = (
        ("with its patterns recognised", rewritten, lambda module: module),
        # The same graph where no pattern was recognised.
        *((("as it is", model, lambda module: module),) if found else ()),
        ("traced", model, lambda module: traced(module, zeros)),
    )
    failures: list[str] = []
    began = time.monotonic()
    for way, graph, prepare in ways:
        if _is_settled(failures, time.monotonic() - began):
            failures.append("not tried further, since it failed twice of the same")
            break
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "graph.onnx"
                path.write_bytes(graph.SerializeToString(deterministic=True))
                module: Any = load(path)
            told = _convert_torch(prepared, prepare(module.eval()), zeros, target, may_fuse=may_fuse)
        except UnsupportedOperatorsError as error:
            raise Unsupported(f"LiteRT: {error}") from error
        except Exception as error:  # noqa: BLE001  # litert-torch raises anything; the next way gets its turn
            failures.append(f"{way}: {first_line(error)}")
            continue
        notes.extend(f"the graph could not be converted {failure}" for failure in failures)
        if graph is rewritten and found:
            notes.append("recognised " + ", ".join(f"{name} ({count})" for name, count in found.items()))
        return (*notes, *told)
    raise Unsupported(f"LiteRT cannot take the model: {'; '.join(failures)}")


def _is_settled(failures: list[str], seconds: float) -> bool:
    """Whether two ways, tried for long (a recurrence that is unrolled takes minutes), failed for one reason."""
    causes = [failure.partition(": ")[2] for failure in failures]
    return len(causes) > 1 and len(set(causes)) == 1 and seconds > PATIENCE_S


def _convert_torch(
    prepared: Prepared, module: Any, zeros: tuple[Any, ...], target: Path, *, may_fuse: bool
) -> tuple[str, ...]:
    """Gives notes. Raises: whatever litert-torch raises; ToolFailedError if the result differs from the source."""

    def convert() -> int:
        # Loads torch, which candidates of other engines do without.
        from converters.backends.litert import program

        return program.written(module, zeros, target, may_fuse=may_fuse)

    fused = quietly(convert)
    _check(prepared, target)
    return recurrent.notes(fused)


def _refuse_untouched(
    plan: Plan, target: Path, graph: Sequence[litert_graph.Layer], told: Sequence[str]
) -> None:
    """Raises: Unsupported, with what was told, where nothing was quantized: it would be the float model by another name."""
    wanted = {_TYPE.FLOAT16} if plan.recipe.precision == "fp16" else {_TYPE.INT8, _TYPE.INT16, _TYPE.INT4}
    if tables.types(tables.read(target.read_bytes())) & wanted:
        return
    parts = (
        litert_graph.listed(Counter(layer.op_type for layer in graph)) or "there is nothing in it to compute"
    )
    raise Unsupported(
        "; ".join((f"nothing of the model becomes {plan.recipe.precision} in LiteRT: {parts}", *told))
    )


def _check(prepared: Prepared, target: Path) -> None:
    """Raises: ToolFailedError if the float model computes something else than the source."""
    source = prepared.source
    spec = EngineSpec("litert", "", target.name, _options(target))
    bindings = _bindings(prepared, target)
    artifact = Artifact(target.parent, target.name, bindings)
    bound = artifact.bound(source.inputs), artifact.bound(source.outputs, are_outputs=True)
    model = quietly(lambda: engines.get("litert").load(target, spec, *bound, None))
    gap = smallest_gap(prepared, model)
    model.close()
    if gap > canonical.PARITY:
        raise ToolFailedError(f"the LiteRT model differs from the source by {gap:.2g} of its largest output")


def _options(target: Path) -> dict[str, Option]:
    """What LiteRT must be told of a file wherever it loads it: to start from zeros where operators keep a state."""
    return dict(tflite.RESET) if quietly(lambda: tflite.read(target)).keeps_state else {}


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
        key = passed(spec.name) if spec.name in found else spec.name
        found[key] = _only(outputs, f"{SIGNATURE}_output_{index}_output")
    return found


def _only(details: dict[str, Any], name: str) -> str:
    """The tensor's name, to which ai-edge-quantizer 0.10 adds a word where it converts at the model's edge, or stores
    what another operator reads too.
    """
    known = {name, f"{name}_dequant", f"{name}_quant", f"{name}_quantized"}
    found = [have for have in details if have in known]
    if len(found) != 1:
        raise ToolFailedError(f"the LiteRT model has no tensor {name}; it has {', '.join(details)}")
    return found[0]


BACKEND = LiteRtBackend()
