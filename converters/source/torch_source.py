"""Torch programs as sources: a factory in the user's file, TorchScript, or an exported program.

All three run code that comes with the model, so each passes the code gate first.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from converters.source import code
from converters.source.project import Project
from converters.source.source import Source, closed, filled, hash_parts, observed_outputs, state_pairs
from edgekit.errors import ProjectError, SourceError
from edgekit.manifest import TensorSpec
from edgekit.tensors import Array


class TorchModel:
    """A torch module behind the `Model` protocol."""

    def __init__(self, module: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self._module = module
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        tensors = [torch.from_numpy(np.asarray(inputs[name], order="C")) for name in self._inputs]
        with torch.no_grad():
            results = flat_outputs(self._module(*tensors))
        names = self._outputs or default_names(len(results))
        if len(names) != len(results):
            raise ProjectError(
                f"model.outputs names {len(names)} outputs, but the program returns {len(results)}"
            )
        return {name: tensor.numpy().copy() for name, tensor in zip(names, results, strict=True)}

    def close(self) -> None:
        del self._module


class Flat(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A module whose outputs are a plain tuple: converters name the values of a dict by its keys otherwise."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments: Any) -> Any:
        found = tuple(flat_outputs(self.module(*arguments)))
        return found[0] if len(found) == 1 else found


def flattened(module: Any, specs: Sequence[TensorSpec]) -> Any:
    """The module, wrapped where it returns a dict. Raises: whatever the module raises on zeros."""
    zeros = [torch.from_numpy(np.zeros(closed(spec), spec.dtype)) for spec in specs]
    with torch.no_grad():
        return Flat(module).eval() if isinstance(module(*zeros), Mapping) else module


def flat_outputs(value: Any) -> list[Any]:
    """The tensors that a module returned, in order: one, a tuple or list (nested), or the values of a dict."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value
    return [tensor for part in parts for tensor in flat_outputs(part)]


def default_names(count: int) -> tuple[str, ...]:
    return ("output",) if count == 1 else tuple(f"output_{index}" for index in range(count))


def from_factory(project: Project, gate: code.CodeGate) -> Source:
    """Call `file.py:factory`, which returns a `torch.nn.Module`. Raises: SourceError, ProjectError."""
    text = project.model.source
    factory = code.load(text, project.folder, "the model factory", gate)
    try:
        module = factory()
    except Exception as error:
        raise SourceError(f"{text}: the factory failed: {type(error).__name__}: {error}") from error
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
    signature = program.graph_signature.user_inputs
    shapes = {
        node.name: tuple(node.meta["val"].shape)
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in signature
    }
    closed = {name: shape for name, shape in shapes.items() if all(isinstance(dim, int) for dim in shape)}
    return _source(project, module, list(signature), hash_parts([path]), closed)


def _source(
    project: Project,
    module: Any,
    parameters: Sequence[str],
    sha256: str,
    known: Mapping[str, tuple[int, ...]] | None = None,
) -> Source:
    specs = _input_specs(project, parameters, known or {})
    reference = TorchModel(module, [spec.name for spec in specs], project.model.outputs)
    outputs = observed_outputs(reference, specs, project.model.source)
    _check_repeats(reference, specs, project.model.source)
    return Source(
        inputs=specs,
        outputs=outputs,
        state=state_pairs(project),
        sha256=sha256,
        reference=reference,
        module=flattened(module, specs),
    )


def _check_repeats(reference: TorchModel, specs: Sequence[TensorSpec], what: str) -> None:
    """Raises: SourceError if the same input gives another output the second time."""
    feed = {spec.name: filled(spec) for spec in specs}
    try:
        first, second = reference.run(feed), reference.run(feed)
    except Exception:  # noqa: BLE001  # a program that refuses these values says nothing of its state
        return
    changed = [name for name in first if not np.array_equal(first[name], second[name], equal_nan=True)]
    if changed:
        raise SourceError(
            f"{what}: {', '.join(changed)} differs when the same input comes a second time: the program keeps state"
            " inside, or draws random numbers. Make the state an input and an output, and pair them under [state]"
        )


def _input_specs(
    project: Project, parameters: Sequence[str], known: Mapping[str, tuple[int, ...]]
) -> tuple[TensorSpec, ...]:
    """Declared inputs in the order of the program's parameters; names that differ are taken by position."""
    declared = project.file.inputs
    if not declared and known:
        return tuple(TensorSpec(name=name, dtype="float32", shape=known[name]) for name in parameters)
    if not declared:
        told = ", ".join(parameters) or "x"
        raise SourceError(
            f"{project.model.source}: a torch program does not say its input shapes (parameters: {told});"
            f" give --shape {told.split(', ')[0]}=1,3,224,224 or [inputs.NAME] shape = [...] in edgekit.toml"
        )
    order = list(declared)
    if set(declared) <= set(parameters):
        order = [name for name in parameters if name in declared]
    return tuple(
        TensorSpec(name=name, dtype=declared[name].dtype, shape=declared[name].largest) for name in order
    )


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
