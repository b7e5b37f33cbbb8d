"""Sequences of tensors: known at load time, they leave nothing behind but the tensors in them.

Which entry is taken has to be known then. Exporters write such where a program has lists: torch.split, EmbeddingBag.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from converters.graph.importer.registry import UnsupportedOperatorsError

if TYPE_CHECKING:
    from converters.graph.importer.graph import Builder

Attributes = Mapping[str, Any]
Keys = Sequence[str]


def empty(builder: "Builder", _attributes: Attributes, _inputs: Keys) -> list[str]:
    return [builder.add_sequence(())]


def construct(builder: "Builder", _attributes: Attributes, inputs: Keys) -> list[str]:
    return [builder.add_sequence(inputs)]


def insert(builder: "Builder", _attributes: Attributes, inputs: Keys) -> list[str]:
    entries = list(builder.entries(inputs[0]))
    entries.insert(_place(builder, inputs, 2, len(entries), len(entries)), inputs[1])
    return [builder.add_sequence(entries)]


def erase(builder: "Builder", _attributes: Attributes, inputs: Keys) -> list[str]:
    entries = list(builder.entries(inputs[0]))
    del entries[_place(builder, inputs, 1, len(entries), -1)]
    return [builder.add_sequence(entries)]


def at(builder: "Builder", _attributes: Attributes, inputs: Keys) -> list[str]:
    entries = builder.entries(inputs[0])
    return [entries[_place(builder, inputs, 1, len(entries), 0)]]


def length(builder: "Builder", _attributes: Attributes, inputs: Keys) -> list[str]:
    return [builder.add_constant(torch.tensor(len(builder.entries(inputs[0])), dtype=torch.int64))]


def split(builder: "Builder", attributes: Attributes, inputs: Keys) -> list[str]:
    """SplitToSequence: by one size, by sizes, or by single rows, whose axis may be dropped."""
    axis, whole = attributes.get("axis", 0), builder.values[inputs[0]]
    total = whole.shape[axis]
    if len(inputs) > 1 and inputs[1]:
        if inputs[1] not in builder.fixed:
            raise UnsupportedOperatorsError("SplitToSequence with sizes computed from data")
        told = builder.values[inputs[1]]
        sizes = [int(size) for size in told.reshape(-1)]
        if not told.dim():
            sizes = [min(sizes[0], total - start) for start in range(0, total, sizes[0])]
        drops = False
    else:
        sizes, drops = [1] * total, not attributes.get("keepdims", 1)
    keys: list[str] = []
    start = 0
    for size in sizes:
        keys += builder.emit(_cut(axis, start, size, drops=drops), [inputs[0]])
        start += size
    return [builder.add_sequence(keys)]


def _cut(axis: int, start: int, size: int, *, drops: bool) -> Callable[[Any], Any]:
    return lambda value: value.select(axis, start) if drops else value.narrow(axis, start, size)


def concatenate(builder: "Builder", attributes: Attributes, inputs: Keys) -> list[str]:
    entries, axis = builder.entries(inputs[0]), attributes["axis"]
    if not entries:
        raise UnsupportedOperatorsError("ConcatFromSequence of no entries")
    join = torch.stack if attributes.get("new_axis", 0) else torch.cat
    return builder.emit(lambda *values: join(values, axis), entries)


def _place(builder: "Builder", inputs: Keys, index: int, count: int, default: int) -> int:
    """A position, counted from the end where it is negative. Raises: UnsupportedOperatorsError where data says which."""
    if index >= len(inputs) or not inputs[index]:
        return default
    place = builder.number(inputs[index])
    if place is None:
        raise UnsupportedOperatorsError("a sequence's entry whose number is computed from data")
    return int(place) + count if place < 0 else int(place)


SEQUENCES: Mapping[str, Callable[["Builder", Attributes, Keys], list[str]]] = {
    "ConcatFromSequence": concatenate,
    "SequenceAt": at,
    "SequenceConstruct": construct,
    "SequenceEmpty": empty,
    "SequenceErase": erase,
    "SequenceInsert": insert,
    "SequenceLength": length,
    "SplitToSequence": split,
}
