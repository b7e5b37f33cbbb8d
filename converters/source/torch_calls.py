"""How a torch program is called and what it gives, as converters want it: tensors in by place, a plain tuple out.

Programs return dicts, tuples within tuples, None where a branch is off, and numbers that training code reads; they take
arguments by name only, and others that have defaults.

Always true
 1. Only tensors come out, each under a name of its own, in the order in which the program has them. What is no tensor is
    told with where it stood.
 2. Arguments that the project does not declare stay at their defaults.
"""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from edgekit.errors import SourceError

# Keys and numbers that lead to a part of what was returned.
Place = tuple[str, ...]
# What training code returns beside tensors: of no use on a device, and the same at every call.
_PLAIN = (bool, int, float, complex, str, bytes)


class _Fixed(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A wrapper that stays in evaluation, and asks nothing of what it wraps: exported programs refuse to be asked."""

    def __init__(self) -> None:
        super().__init__()
        self.training = False

    def train(self, mode: bool = True) -> "_Fixed":  # noqa: ARG002  # torch's signature
        return self


class Called(_Fixed):
    """A module that is given tensors by place and gives a tensor, or a tuple of them.

    `names` are the parameters that the tensors go to, empty to pass them on by place.
    """

    def __init__(self, module: Any, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.module = module
        self.names = tuple(names)

    def forward(self, *arguments: Any) -> Any:
        if self.names:
            value = self.module(**dict(zip(self.names, arguments, strict=True)))
        else:
            value = self.module(*arguments)
        found = tuple(part for _, part in parts(value) if isinstance(part, torch.Tensor))
        return found[0] if len(found) == 1 else found


class Program(_Fixed):
    """An exported program that is given tensors by place: `fixed` are its flat arguments, None where a tensor goes."""

    def __init__(self, module: Any, structure: Any, fixed: Sequence[Any], places: Sequence[int]) -> None:
        super().__init__()
        self.module = module
        self._structure, self._fixed, self._places = structure, tuple(fixed), tuple(places)

    def forward(self, *arguments: Any) -> Any:
        flat = list(self._fixed)
        for place, argument in zip(self._places, arguments, strict=True):
            flat[place] = argument
        args, kwargs = torch.utils._pytree.tree_unflatten(flat, self._structure)  # noqa: SLF001  # torch's public call needs the caller's own structure
        return self.module(*args, **kwargs)


class _Scripted(torch.jit.ScriptModule):  # type: ignore[misc]  # torch is untyped here
    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module


def scripted(module: Any, parameters: Sequence[str], value: Any) -> Any:
    """A TorchScript module that gives the tensors of `value`, which `module` returned, in a tuple.

    Scripted as well: torch.onnx (2.13) cannot trace through a stored program that returns None.
    """
    found = ", ".join(
        f"torch.jit._unwrap_optional(value{path})"
        for path, part in _paths(value)
        if isinstance(part, torch.Tensor)
    )
    taken = ", ".join(parameters)
    lines = f"def forward(self, {taken}):\n    value = self.module({taken})\n    return ({found},)\n"
    made = _Scripted(module)
    made.define(lines)
    return made.eval()


def _paths(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """As `parts`, with the expression that leads there."""
    inside = _items(value)
    if inside is None:
        yield path, value
        return
    for index, (key, part) in enumerate(inside):
        yield from _paths(part, f"{path}[{key!r}]" if isinstance(value, Mapping) else f"{path}[{index}]")


def parts(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Everything that is no container, with its place: keys of dicts, names of fields, numbers in tuples."""
    inside = _items(value)
    if inside is None:
        yield place, value
        return
    for key, part in inside:
        yield from parts(part, (*place, key))


def _items(value: Any) -> list[tuple[str, Any]] | None:
    """What a container holds; None for anything else."""
    if isinstance(value, Mapping):
        return [(str(key), part) for key, part in value.items()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(item.name, getattr(value, item.name)) for item in dataclasses.fields(value)]
    if isinstance(value, (tuple, list)):
        keys = getattr(value, "_fields", range(len(value)))
        return [(str(key), part) for key, part in zip(keys, value, strict=True)]
    return None


def names_of(value: Any) -> tuple[str, ...]:
    """A name for each tensor that was returned: its key in a dict, with what leads to it inside of that where the key
    holds several; `output`, or `output_0`, `output_1` where there are no keys.
    """
    places = [place for place, part in parts(value) if isinstance(part, torch.Tensor)]
    numbered = ("output",) if len(places) == 1 else tuple(f"output_{index}" for index in range(len(places)))
    if _is_numbered(value):
        return numbered
    firsts = [place[0] for place in places]
    names = [place[0] if firsts.count(place[0]) == 1 else "_".join(place) for place in places]
    return tuple(names) if len(set(names)) == len(names) else numbered


def left_out(value: Any, what: str) -> tuple[str, ...]:
    """A sentence on each part that is no tensor. Raises: SourceError where one is of a kind that is not known, or
    nothing is left.
    """
    notes: list[str] = []
    tensors = 0
    for place, part in parts(value):
        where = f"output {'_'.join(place)!r}" if place else "the output"
        if isinstance(part, torch.Tensor):
            tensors += 1
        elif part is None:
            notes.append(f"{where} is None and left out")
        elif isinstance(part, _PLAIN):
            notes.append(
                f"{where} is a plain {type(part).__name__} ({part!r}) and left out: only tensors are kept"
            )
        else:
            raise SourceError(
                f"{what}: {where} is a {type(part).__name__}; return tensors, or tuples and dicts of them"
            )
    if not tensors:
        raise SourceError(f"{what}: the program returns no tensor ({'; '.join(notes) or 'nothing at all'})")
    return tuple(notes)


def about_weights(module: Any) -> str:
    """What a module that does not run may want, where its weights are narrower than the inputs that it was given; else
    empty.
    """
    kinds = {tensor.dtype for tensor in module.state_dict().values()} & {torch.float16, torch.bfloat16}
    if not kinds:
        return ""
    kind = str(min(kinds, key=str)).removeprefix("torch.")
    hint = " (or give its inputs dtype float16)" if kind == "float16" else ""
    return f"; its weights are {kind}: give module.float(), of the same values{hint}"


def is_plain(value: Any) -> bool:
    """Whether converters take what was returned as it is: tensors, in tuples or lists perhaps."""
    return isinstance(value, torch.Tensor) or (type(value) in (tuple, list) and all(map(is_plain, value)))


def by_name(forward: Any, declared: Sequence[str], what: str) -> tuple[str, ...]:
    """The parameters that inputs must be given to by name; empty where their places say enough.

    `declared` are the inputs in the order of the parameters. Raises: SourceError where a parameter without a default
    has no input.
    """
    parameters = inspect.signature(forward).parameters
    taken = {name: item for name, item in parameters.items() if item.kind not in _OPEN}
    if not set(declared) <= set(taken):
        return ()
    needed = [name for name, item in taken.items() if item.default is item.empty and name not in declared]
    if needed:
        raise SourceError(
            f"{what}: forward also needs {', '.join(needed)}; give --shape {needed[0]}=... for each, or a default"
        )
    placed = [name for name, item in taken.items() if item.kind is not item.KEYWORD_ONLY]
    return () if placed[: len(declared)] == list(declared) else tuple(declared)


_OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _is_numbered(value: Any) -> bool:
    """Whether what was returned has no names: a tensor, or a tuple or list without fields."""
    return isinstance(value, (torch.Tensor, list)) or (
        isinstance(value, tuple) and not hasattr(value, "_fields")
    )
