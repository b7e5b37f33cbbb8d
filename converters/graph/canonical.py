"""The source as canonical ONNX: fixed shapes, a recent opset, slim, nothing in it that names a machine or a time.

Always true
 1. What is returned was run beside the source on real samples and agreed; a step that broke parity was left out and
    is named in the notes.
 2. The same source gives the same bytes: producer, documentation strings, traces and metadata are dropped.
"""

import importlib.metadata
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from onnx import version_converter

from converters.graph import einsum, stft, tidy
from converters.source import onnx_source, onnx_weights, quantized
from converters.source.source import Source, closed, refuse_nan
from edgekit import rows
from edgekit.errors import SourceError, ToolFailedError
from edgekit.gaps import largest, largest_gap
from edgekit.manifest import TensorSpec
from edgekit.quiet import first_line, quietly
from edgekit.tensors import Array

# Per-channel DequantizeLinear came with 13; 17 is what all three engines read and quantizers are tested with.
OPSET = 17
# Largest |difference| over largest |source output|: float32 reassociation stays far below, a wrong operator above.
PARITY = 1e-3
# Outputs that are all smaller count as zeros: a map of probabilities on an image that has nothing to be found.
LEAST_SCALE = 1e-4

Feed = Mapping[str, Array]


@dataclass(frozen=True)
class Canonical:
    """`parity` is the largest relative difference to the source over the samples tried."""

    path: Path
    parity: float
    notes: tuple[str, ...]

    @property
    def weights(self) -> Path | None:
        """The file of its large weights, where they are kept apart."""
        beside = self.path.with_name(onnx_weights.WEIGHTS)
        return beside if beside.is_file() else None


def tools(source: Source) -> dict[str, str]:
    """Versions of what makes ONNX of a torch program; nothing where the source is ONNX already."""
    return {
        name: importlib.metadata.version(name)
        for name in ("onnxscript", "torch")
        if source.module is not None
    }


def canonicalize(
    source: Source, feeds: Sequence[Feed], folder: Path, *, exporters: Sequence[str] | None = None
) -> Canonical:
    """Write the canonical form into `folder`; a torch program goes through the first exporter that works.

    Raises: ToolFailedError if no exporter, or no form of the file, agrees with the source; SourceError where it is NaN.
    """
    wanted = [source.reference.run(feed) for feed in feeds]
    for index, outputs in enumerate(wanted):
        # With buckets these are the first of each.
        is_first = source.buckets is None
        refuse_nan(
            outputs, f"evaluation sample {index} (counted from 0)" if is_first else "an evaluation sample"
        )
    if source.onnx_path is not None:
        model, _ = onnx_source.read_mended(source.onnx_path, is_apart=source.is_apart)
        if source.is_apart:
            # A weight in a `Constant` node would be held by every tool.
            model = onnx_weights.placed(_hoisted(model), source.onnx_path, folder)
        if source.quantized is not None and source.quantized.is_widened:
            if source.is_apart:
                raise ToolFailedError("a model as large as this is not widened to float")
            try:
                model = quantized.widened(model)
            except ValueError as error:
                raise ToolFailedError(f"its weights have no float form here: {error}") from error
        return _settle(source, model, feeds, wanted, folder=folder, notes=source.notes)
    notes = list(source.notes)
    for name in exporters or EXPORTERS:
        try:
            model = quietly(partial(EXPORTERS[name], source))
            return _settle(source, model, feeds, wanted, folder=folder, notes=tuple(notes))
        except Exception as error:  # noqa: BLE001  # exporters raise anything; the next one gets its turn
            notes.append(f"{name} failed: {first_line(_root(error))}")
    raise ToolFailedError(
        f"torch could not be exported to ONNX: {'; '.join(notes)}; write what they stop at with other operators, or export an"
        " ONNX file yourself and give that"
    )


def _root(error: Exception) -> Exception:
    """What an exporter's error was raised from; its own words only name the step."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def parity(wanted: Sequence[Feed], have: Sequence[Feed]) -> float:
    """Largest |difference| of any output relative to that output's largest magnitude (`LEAST_SCALE` at least); inf where
    not comparable. Infinities that both have at the same place agree (`edgekit.gaps`).
    """
    worst = 0.0
    for name in wanted[0]:
        scale = max(largest(outputs[name]) for outputs in wanted)
        for left, right in zip(wanted, have, strict=True):
            worst = max(worst, largest_gap(left[name], right[name]) / max(scale, LEAST_SCALE))
    return worst


def _settle(
    source: Source,
    model: onnx.ModelProto,
    feeds: Sequence[Feed],
    wanted: Sequence[Feed],
    *,
    folder: Path,
    notes: tuple[str, ...] = (),
) -> Canonical:
    """Apply each step and keep it if the result still agrees with the source."""
    current = _fixed(model, source.inputs, [spec.name for spec in source.outputs])
    path = folder / "canonical.onnx"
    seen = _try(current, source, feeds, wanted, path)
    if seen > PARITY:
        raise ToolFailedError(
            f"the ONNX form of the model differs from the source by {seen:.2g} of its largest output"
        )
    kept = list(notes)
    for name, step in _STEPS.items():
        try:
            following = quietly(partial(onnx_weights.around, step, current))
            if following is current:
                continue
            gap = _try(following, source, feeds, wanted, path)
        except Exception as error:  # noqa: BLE001  # version converter and slimmer raise anything
            kept.append(f"{name} left out: {first_line(error)}")
            continue
        if gap > PARITY:
            kept.append(f"{name} left out: the result differs by {gap:.2g}")
            continue
        current, seen = following, gap
    clean = _stripped(current)
    _tell_shapes(clean.graph, source)
    _save(clean, path)
    return Canonical(path, seen, tuple(kept))


def _tell_shapes(graph: onnx.GraphProto, source: Source) -> None:
    """Outputs whose shape nothing infers, as behind a loop, have the one that they were seen with: onnx's checker, and what
    calls it, refuses a graph without.
    """
    open_axes = {item for group in source.sets for item in group.axes.items()}
    for value, spec in zip(graph.output, source.outputs, strict=True):
        tensor = value.type.tensor_type
        if not tensor.HasField("shape"):
            tensor.shape.SetInParent()
            for axis, size in enumerate(spec.shape):
                is_open = size is None or (spec.name, axis) in open_axes
                tensor.shape.dim.add(**({} if is_open else {"dim_value": size}))


def _try(
    model: onnx.ModelProto, source: Source, feeds: Sequence[Feed], wanted: Sequence[Feed], path: Path
) -> float:
    _save(model, path)
    names = tuple(spec.name for spec in source.outputs)
    loaded = onnx_source.load_reference(path, source.inputs, names, is_apart=source.is_apart)
    run = rows.fixed(loaded.run, source.sets)
    try:
        have = [rows.aligned(source.sets, run(feed), own) for feed, own in zip(feeds, wanted, strict=True)]
        return parity(wanted, have)
    finally:
        loaded.close()


def _save(model: onnx.ModelProto, path: Path) -> None:
    path.write_bytes(model.SerializeToString(deterministic=True))


def _fixed(model: onnx.ModelProto, inputs: Sequence[TensorSpec], outputs: Sequence[str]) -> onnx.ModelProto:
    """Input shapes as decided, shape records that may contradict them gone, outputs under their public names."""
    fixed = tidy.tidied(model)
    graph = fixed.graph
    constants = {tensor.name for tensor in model.graph.initializer}
    free = [value for value in graph.input if value.name not in constants]
    del graph.value_info[:]
    del graph.input[:]
    graph.input.extend(
        onnx.helper.make_tensor_value_info(
            spec.name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), list(closed(spec))
        )
        for spec in inputs
    )
    if {value.name for value in free} != {spec.name for spec in inputs}:
        raise SourceError("the exported model has other inputs than the source")
    for value, name in zip(graph.output, outputs, strict=True):
        if value.name != name:
            raise SourceError(f"the exported model calls output {name!r} {value.name!r}")
        value.type.tensor_type.ClearField("shape")
    return fixed


def _raised(model: onnx.ModelProto) -> onnx.ModelProto:
    default = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return model if default >= OPSET else version_converter.convert_version(model, OPSET)


def _slimmed(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxslim

    slim: onnx.ModelProto = onnxslim.slim(model)
    # onnxslim 0.1.98 takes away inputs that no node reads; they are part of what a bundle takes.
    left = {value.name: value for value in slim.graph.input}
    inputs = [left.get(value.name, value) for value in model.graph.input]
    del slim.graph.input[:]
    slim.graph.input.extend(inputs)
    return slim


def _hoisted(model: onnx.ModelProto) -> onnx.ModelProto:
    """Tensors of `Constant` nodes as initializers, which is where quantizers look for weights (silero-vad's are nodes)."""
    if not any(_constant(node) for node in model.graph.node):
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    kept = []
    for node in made.graph.node:
        tensor = _constant(node)
        if tensor is None:
            kept.append(node)
        else:
            tensor.name = node.output[0]
            made.graph.initializer.append(tensor)
    del made.graph.node[:]
    made.graph.node.extend(kept)
    return made


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """A copy of the tensor that a `Constant` holds; None for other nodes and other kinds of constant."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    for attribute in node.attribute:
        if attribute.name == "value":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(attribute.t)
            return tensor
    return None


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Functions of the file's own written out where they are called: OpenVINO (2026.4) converts no call of one."""
    return onnx.inliner.inline_local_functions(model) if model.functions else model


_STEPS: Mapping[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "writing out functions": _inlined,
    f"raising the opset to {OPSET}": _raised,
    "Einsum as matrix products": einsum.spelled_out,
    # Lays constants out as they are read now.
    "onnxslim": _slimmed,
    "constants as initializers": _hoisted,
    "STFT spelled out": stft.spelled_out,
}


def _stripped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without producer, traces, metadata and other text that only a debugger reads."""
    clean = onnx.ModelProto()
    clean.CopyFrom(model)
    for field in ("producer_name", "producer_version", "doc_string", "domain"):
        clean.ClearField(field)
    del clean.metadata_props[:]
    clean.graph.name = "model"
    _strip_graph(clean.graph)
    # The slimmer takes copies away.
    tidy.outputs_computed(clean.graph)
    name_nodes(clean.graph)
    return clean


def name_nodes(graph: onnx.GraphProto) -> None:
    """Give each node that has none, or another's, a name of its own that depends on the graph alone."""
    taken: set[str] = set()
    given = {node.name for node in graph.node}
    for index, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            wanted = f"{node.op_type}.{index}"
            while wanted in given | taken:
                wanted += "'"
            node.name = wanted
        taken.add(node.name)


def _strip_graph(graph: onnx.GraphProto) -> None:
    del graph.metadata_props[:]
    graph.ClearField("doc_string")
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("doc_string")
        del part.metadata_props[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _strip_graph(attribute.g)


def _export(source: Source, *, dynamo: bool) -> onnx.ModelProto:
    import torch

    arguments = tuple(torch.from_numpy(np.zeros(closed(spec), spec.dtype)) for spec in source.inputs)
    inputs, outputs = ([spec.name for spec in specs] for specs in (source.inputs, source.outputs))
    if dynamo:
        program = torch.onnx.export(
            source.module,
            arguments,
            dynamo=True,
            verbose=False,
            input_names=list(map(_apart, inputs)),
            output_names=list(map(_apart, outputs)),
        )
        model = onnx.ModelProto.FromString(program.model_proto.SerializeToString())
        return _renamed(model, {_apart(name): name for name in (*inputs, *outputs)})
    module = source.module
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        # Tracing stops at a stored program inside a module; scripting takes the whole.
        module = torch.jit.script(module)
    buffer = io.BytesIO()
    torch.onnx.export(
        module,
        arguments,
        buffer,
        dynamo=False,
        opset_version=OPSET,
        input_names=inputs,
        output_names=outputs,
    )
    return onnx.ModelProto.FromString(buffer.getvalue())


def _apart(name: str) -> str:
    """A name that no value inside a program has: torch 2.13 gives outputs their names even where another has it."""
    return f"{name}@outside"


def _renamed(model: onnx.ModelProto, names: Mapping[str, str]) -> onnx.ModelProto:
    """Values renamed; one inside that already has a name asked for gets another."""
    inner = {name: f"{name}@inside" for name in names.values()}
    tidy.renamed(model.graph, {**inner, **names})
    return model


EXPORTERS: Mapping[str, Callable[[Source], onnx.ModelProto]] = {
    "torch.onnx (dynamo)": lambda source: _export(source, dynamo=True),
    "torch.onnx (TorchScript)": lambda source: _export(source, dynamo=False),
}
