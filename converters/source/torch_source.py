"""Torch programs as sources: a factory in the user's file, TorchScript, or an exported program.

All three run code that comes with the model, so each passes the code gate first.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from converters.source import code, torch_calls
from converters.source.project import Project
from converters.source.source import (
    Source,
    changing,
    closed,
    hash_parts,
    observed_outputs,
    open_shapes_error,
    state_pairs,
)
from edgekit.errors import ProjectError, SourceError
from edgekit.manifest import TensorSpec
from edgekit.tensors import Array, fits


class TorchModel:
    """A torch module behind the `Model` protocol."""

    def __init__(self, module: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self._module = module
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        value = self.called(inputs)
        results = [part for _, part in torch_calls.parts(value) if isinstance(part, torch.Tensor)]
        names = self._outputs or torch_calls.names_of(value)
        if len(names) != len(results):
            raise ProjectError(
                f"model.outputs names {len(names)} outputs, but the program returns {len(results)}"
            )
        return {name: tensor.numpy().copy() for name, tensor in zip(names, results, strict=True)}

    def called(self, inputs: Mapping[str, Array]) -> Any:
        """What the program returns, as it returns it."""
        tensors = [torch.from_numpy(np.array(inputs[name], order="C")) for name in self._inputs]
        with torch.no_grad():
            return self._module(*tensors)

    def close(self) -> None:
        del self._module


def from_factory(project: Project, gate: code.CodeGate) -> Source:
    """Call `file.py:factory`, which returns a `torch.nn.Module`. Raises: SourceError, ProjectError."""
    text = project.model.source
    factory = code.load(text, project.folder, "the model factory", gate)
    try:
        module = factory()
    except Exception as error:
        raise SourceError(f"{text}: the factory failed: {code.told(error)}") from error
    if not isinstance(module, torch.nn.Module):
        raise SourceError(f"{text}: the factory returned {type(module).__name__}; expected torch.nn.Module")
    module.eval().requires_grad_(requires_grad=False)
    path, _ = code.split(text, project.folder)
    files = {path, *code.files_of({type(part) for part in module.modules()})}
    weights = [
        part
        for name, tensor in sorted(module.state_dict().items())
        for part in (f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode(), _bytes(tensor))
    ]
    sha256 = hash_parts([*sorted(files), repr(module).encode(), *weights])
    return _source(project, module, _parameters(module), sha256)


def from_torchscript(project: Project, path: Path, gate: code.CodeGate) -> Source:
    """Raises: SourceError, in particular for a `.pt` that holds weights and no program."""
    gate.admit(path, "a TorchScript program")
    try:
        module = torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise SourceError(f"{path}: {_why_not_torchscript(path)}") from error
    arguments = module.forward.schema.arguments[1:]
    other = [item for item in arguments if str(item.type) != "Tensor" and not item.has_default_value()]
    if other:
        told = ", ".join(f"{item.name} ({item.type})" for item in other)
        raise SourceError(
            f"{path}: the program takes {told} beside tensors; give file.py:factory that loads it and returns a module"
            " of tensors alone, with such values fixed inside"
        )
    names = [item.name for item in arguments if str(item.type) == "Tensor"]
    return _source(project, module, names, hash_parts([path]))


def from_exported(project: Project, path: Path, gate: code.CodeGate) -> Source:
    """Raises: SourceError."""
    gate.admit(path, "a torch.export program")
    try:
        program = torch.export.load(str(path))
        module = program.module()
    except Exception as error:
        raise SourceError(f"{path}: not a torch.export program (.pt2), or damaged ({error})") from error
    found = _inputs_of(program)
    return _source(project, _by_place(program, module), list(found), hash_parts([path]), found)


def _inputs_of(program: Any) -> dict[str, TensorSpec]:
    """The tensors that an exported program takes; an axis that may have several sizes is open."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    return {
        name: TensorSpec(
            name,
            str(values[name].dtype).removeprefix("torch."),
            tuple(dim if isinstance(dim, int) else None for dim in values[name].shape),
        )
        for name in program.graph_signature.user_inputs
        if isinstance(values.get(name), torch.Tensor)
    }


def _by_place(program: Any, module: Any) -> Any:
    """The program's module as one that is given its tensors in a row."""
    given = program.graph_signature.user_inputs
    tensors = _inputs_of(program)
    positions, keywords = program.call_spec.in_spec.children()
    is_flat = all(part.is_leaf() for part in positions.children()) and not keywords.children()
    if len(tensors) == len(given) and is_flat:
        return module
    places = [place for place, name in enumerate(given) if name in tensors]
    fixed = [None if place in places else name for place, name in enumerate(given)]
    return torch_calls.Program(module, program.call_spec.in_spec, fixed, places)


def _source(
    project: Project,
    module: Any,
    parameters: Sequence[str],
    sha256: str,
    known: Mapping[str, TensorSpec] | None = None,
) -> Source:
    what = project.model.source
    specs = _input_specs(project, parameters, known or {})
    names = [spec.name for spec in specs]
    called = module
    if known is None and not isinstance(module, torch.jit.ScriptModule):
        by_name = torch_calls.by_name(module.forward, names, what)
        called = torch_calls.Called(module, by_name) if by_name else module
    reference = TorchModel(called, names, project.model.outputs)
    try:
        outputs = observed_outputs(reference, specs, what)
    except SourceError as error:
        raise SourceError(f"{error}{torch_calls.about_weights(module)}") from error
    value = reference.called({spec.name: np.zeros(closed(spec), spec.dtype) for spec in specs})
    notes = torch_calls.left_out(value, what)
    _check_repeats(reference, specs, what)
    if not torch_calls.is_plain(value) and isinstance(module, torch.jit.ScriptModule):
        called = torch_calls.scripted(module, names, value)
    elif called is not module or not torch_calls.is_plain(value):
        called = torch_calls.Called(called)
    return Source(
        inputs=specs,
        outputs=outputs,
        state=state_pairs(project),
        sha256=sha256,
        reference=reference,
        module=called,
        notes=notes,
    )


def _check_repeats(reference: TorchModel, specs: Sequence[TensorSpec], what: str) -> None:
    """Raises: SourceError if the same input gives another output the second time."""
    changed = changing(reference, specs)
    if changed:
        raise SourceError(
            f"{what}: {', '.join(changed)} differs when the same input comes a second time: the program keeps state"
            " inside, or draws random numbers. Make the state an input and an output, and pair them under [state]"
        )


def _input_specs(
    project: Project, parameters: Sequence[str], known: Mapping[str, TensorSpec]
) -> tuple[TensorSpec, ...]:
    """Declared inputs in the order of the program's parameters; names that differ are taken by position.

    `known` is what an exported program says of its own: types, and the axes that are fixed. Raises: SourceError for
    what is still open; ProjectError where the two contradict each other.
    """
    declared = project.file.inputs
    if not declared and not known:
        told = ", ".join(parameters) or "x"
        raise SourceError(
            f"{project.model.source}: a torch program does not say its input shapes (parameters: {told});"
            f" give --shape {told.split(', ')[0]}=1,3,224,224 or [inputs.NAME] shape = [...] in edgekit.toml"
        )
    if known:
        return _closed_by(project, known)
    order = list(declared)
    if set(declared) <= set(parameters):
        order = [name for name in parameters if name in declared]
    return tuple(
        TensorSpec(name=name, dtype=declared[name].dtype, shape=declared[name].largest) for name in order
    )


def _closed_by(project: Project, known: Mapping[str, TensorSpec]) -> tuple[TensorSpec, ...]:
    """An exported program's inputs, as the project calls and closes them."""
    declared = project.file.inputs
    names = dict(zip(known, known, strict=True))
    if not set(declared) <= set(known) and len(declared) == len(known):
        names = dict(zip(known, declared, strict=True))
    if not set(declared) <= set(names.values()):
        raise ProjectError(
            f"{project.where}: {project.model.source} takes {', '.join(known)}; it has no input"
            f" {', '.join(sorted(set(declared) - set(known)))}"
        )
    found = []
    for own, name in names.items():
        spec = TensorSpec(name, known[own].dtype, known[own].shape)
        table = declared.get(name)
        if table is not None:
            # float32 is what a table without a type says.
            is_other_type = table.dtype not in (spec.dtype, "float32")
            if is_other_type or not fits(spec, table.largest):
                raise ProjectError(
                    f"{project.where}: inputs.{name} = {table.dtype} {list(table.largest)} contradicts the model, which"
                    f" has {spec.describe()}"
                )
            spec = TensorSpec(name, spec.dtype, table.largest)
        found.append(spec)
    still_open = [spec for spec in found if not spec.is_static]
    if still_open:
        raise open_shapes_error(project.model.source, still_open)
    return tuple(found)


def _parameters(module: Any) -> list[str]:
    if isinstance(module, torch.jit.ScriptModule):
        return [item.name for item in module.forward.schema.arguments[1:]]
    return list(inspect.signature(module.forward).parameters)


def _bytes(tensor: Any) -> bytes:
    data: bytes = (
        tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        if tensor.dim()
        else (tensor.detach().cpu().reshape(1).view(torch.uint8).numpy().tobytes())
    )
    return data


def _why_not_torchscript(path: Path) -> str:
    """Tell a file of weights from a file that is nothing of the kind; nothing in it is executed."""
    try:
        torch.load(str(path), map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001  # reading what is no pickle raises anything
        return "not TorchScript, or damaged; save the model with torch.jit.save or torch.export.save"
    return "holds weights but no program; give file.py:factory that builds the model and loads them"
