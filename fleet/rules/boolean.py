"""`and`, `or`, `not` and parentheses around whatever a small language tests: selectors and filters share them.

    or    = and ("or" and)*
    and   = unary ("and" unary)*
    unary = "not" unary | "(" or ")" | "all" | test

Pure.

Always true
 1. What is nested deeper than `MAX_DEPTH` is refused: no text brings a service to the end of its stack.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Generic, Never, TypeVar

from fleet.rules.text import Token, refuse, tokenize

T = TypeVar("T")
R = TypeVar("R")
MAX_DEPTH = 40
KEYWORDS = frozenset({"and", "or", "not", "in", "all", "*"})


@dataclass(frozen=True)
class All:
    """Everything."""


@dataclass(frozen=True)
class Leaf(Generic[T]):
    test: T


@dataclass(frozen=True)
class Not(Generic[T]):
    part: "Tree[T]"


@dataclass(frozen=True)
class Both(Generic[T]):
    left: "Tree[T]"
    right: "Tree[T]"


@dataclass(frozen=True)
class Either(Generic[T]):
    left: "Tree[T]"
    right: "Tree[T]"


Tree = All | Leaf[T] | Not[T] | Both[T] | Either[T]


def holds(tree: Tree[T], judge: Callable[[T], bool]) -> bool:
    """Whether the whole holds, where `judge` says it of a test."""
    match tree:
        case All():
            return True
        case Leaf(test):
            return judge(test)
        case Not(part):
            return not holds(part, judge)
        case Both(left, right):
            return holds(left, judge) and holds(right, judge)
        case Either(left, right):
            return holds(left, judge) or holds(right, judge)


@dataclass(frozen=True)
class Algebra(Generic[T, R]):
    """What each node means in another language, e.g. SQL."""

    everything: R
    test: Callable[[T], R]
    negate: Callable[[R], R]
    both: Callable[[R, R], R]
    either: Callable[[R, R], R]


def fold(tree: Tree[T], means: Algebra[T, R]) -> R:
    match tree:
        case All():
            return means.everything
        case Leaf(test):
            return means.test(test)
        case Not(part):
            return means.negate(fold(part, means))
        case Both(left, right):
            return means.both(fold(left, means), fold(right, means))
        case Either(left, right):
            return means.either(fold(left, means), fold(right, means))


def tests(tree: Tree[T]) -> Iterator[T]:
    """Every test in it."""
    match tree:
        case Leaf(test):
            yield test
        case Not(part):
            yield from tests(part)
        case Both(left, right) | Either(left, right):
            yield from tests(left)
            yield from tests(right)


class Parser(ABC, Generic[T]):
    """Reads one text; a language says what its tokens are, and how one test is read."""

    what: ClassVar[str]
    pattern: ClassVar[re.Pattern[str]]

    def __init__(self, text: str) -> None:
        """Raises: UsageError with a caret."""
        self.text = text
        self._tokens = tokenize(self.what, text, self.pattern)
        self._next = 0
        self._depth = 0

    @abstractmethod
    def test(self) -> Tree[T]:
        """One test, from `here` on. Raises: UsageError with a caret."""

    def parse(self) -> Tree[T]:
        """Raises: UsageError with a caret."""
        result = self._either()
        if self.here is not None:
            self.fail(f"expected 'and', 'or' or the end, found {self.here.text!r}")
        return result

    @property
    def here(self) -> Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def take(self) -> Token:
        """The token that is `here`, which there must be."""
        self._next += 1
        return self._tokens[self._next - 1]

    def took(self, text: str) -> bool:
        if self.here is None or self.here.text != text:
            return False
        self._next += 1
        return True

    def expect(self, text: str) -> None:
        if not self.took(text):
            self.fail(f"expected {text!r}")

    def fail(self, message: str, at: int | None = None) -> Never:
        """Raises: UsageError with a caret at this place, or at `here`."""
        if at is None:
            at = self.here.at if self.here else len(self.text)
        refuse(self.what, self.text, at, message)

    def _either(self) -> Tree[T]:
        left = self._both()
        while self.took("or"):
            left = Either(left, self._both())
        return left

    def _both(self) -> Tree[T]:
        left = self._unary()
        while self.took("and"):
            left = Both(left, self._unary())
        return left

    def _unary(self) -> Tree[T]:
        if self._depth >= MAX_DEPTH:
            self.fail(f"more than {MAX_DEPTH} levels of 'not' and parentheses")
        self._depth += 1
        try:
            if self.took("not"):
                return Not(self._unary())
            if self.took("("):
                inner = self._either()
                self.expect(")")
                return inner
            return All() if self.took("all") or self.took("*") else self.test()
        finally:
            self._depth -= 1
