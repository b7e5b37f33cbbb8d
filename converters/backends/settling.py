"""Finding the few layers that a quantizer cannot take: they stay in float and are named, and the candidate lives.

Always true
 1. No more than `MAX_TRIES` attempts are made, and of two ways the one that leaves fewer layers is kept.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from edgekit.errors import ToolFailedError
from edgekit.quiet import first_line

# Conversions tried before a model that does not come out right is given up.
MAX_TRIES = 16
Made = TypeVar("Made")


@dataclass(frozen=True)
class Part:
    """A layer: its operator, and the names of tensors by which an error may name it."""

    op_type: str
    tensors: tuple[str, ...]


def settle(
    attempt: Callable[[frozenset[str]], Made], layers: Mapping[str, Part], tool: str
) -> tuple[Made, tuple[str, ...]]:
    """Quantize without as few layers as it takes to get a model that runs, with a note on them.

    The layer that an error names goes first; where it names none, one kind of operator after the other is tried,
    rarest first, and the guilty kind is halved until no half suffices.

    Raises: ToolFailedError after `MAX_TRIES`, with the first error.
    """
    tries = _Tries(attempt)
    skipped: frozenset[str] = frozenset()
    while (made := tries.make(skipped)) is None and tries.count < MAX_TRIES:
        blamed = _blamed(str(tries.last), layers) - skipped
        if not blamed:
            by_kind = _by_kind(tries, skipped, layers)
            made, skipped = by_kind
            break
        skipped |= blamed
    if made is None:
        assert tries.first is not None
        raise ToolFailedError(
            f"{tool}'s int8 model does not run: {first_line(tries.first)} ({tries.count} ways tried)"
        ) from tries.first
    return made, _told(skipped, tries.first)


@dataclass
class _Tries(Generic[Made]):
    """Attempts that are counted; `make` gives None where one failed or none is left."""

    attempt: Callable[[frozenset[str]], Made]
    count: int = 0
    first: Exception | None = None
    last: Exception | None = None

    def make(self, skipped: frozenset[str]) -> Made | None:
        if self.count >= MAX_TRIES:
            return None
        self.count += 1
        try:
            return self.attempt(skipped)
        except Exception as error:  # noqa: BLE001  # quantizer, checker and engine raise anything; all mean: not so
            self.first = self.first or error
            self.last = error
            return None


def _by_kind(
    tries: _Tries[Made], skipped: frozenset[str], layers: Mapping[str, Part]
) -> tuple[Made | None, frozenset[str]]:
    kinds: dict[str, list[str]] = {}
    for name, layer in layers.items():
        kinds.setdefault(layer.op_type, []).append(name)
    for names in sorted(kinds.values(), key=len):
        made = tries.make(skipped | frozenset(names))
        if made is not None:
            return _halved(tries, skipped, names, made)
    return None, skipped


def _halved(
    tries: _Tries[Made], skipped: frozenset[str], names: Sequence[str], made: Made
) -> tuple[Made, frozenset[str]]:
    """The smallest part of `names`, by halving, without which the model runs."""
    part = list(names)
    while len(part) > 1:
        middle = len(part) // 2
        for half in (part[:middle], part[middle:]):
            smaller = tries.make(skipped | frozenset(half))
            if smaller is not None:
                part, made = half, smaller
                break
        else:
            break
    return made, skipped | frozenset(part)


def _told(skipped: frozenset[str], error: Exception | None) -> tuple[str, ...]:
    if error is None:
        return ()
    return (f"left in float, since int8 broke the model: {', '.join(sorted(skipped))} ({first_line(error)})",)


def _blamed(message: str, layers: Mapping[str, Part]) -> frozenset[str]:
    """Layers that an error names, by themselves or by a tensor of theirs; the longest names count alone."""
    found: dict[str, int] = {}
    for name, layer in layers.items():
        words = [word for word in (name, *layer.tensors) if _names(message, word)]
        if words:
            found[name] = max(map(len, words))
    longest = max(found.values(), default=0)
    return frozenset(name for name, length in found.items() if length == longest)


def _names(message: str, word: str) -> bool:
    """Whether the name stands in the message by itself, not inside a longer one; `x` and the like prove nothing."""
    return len(word) > 2 and re.search(rf"(?<![\w./]){re.escape(word)}(?![\w/])", message) is not None
