"""Which devices: `site=lab and profile=raspberry-pi-5`, `not (site in (roof, attic))`, `all`.

    or    = and ("or" and)*
    and   = unary ("and" unary)*
    unary = "not" unary | "(" or ")" | "all" | label ("=" | "!=") value | label "in" "(" value ("," value)* ")"

A device without a label matches neither `=` nor `in` on it, and does match `!=`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Never

from edgekit.errors import NotPossibleError
from fleet.rules.text import Token, refuse, tokenize

Labels = Mapping[str, str]
_TOKEN = re.compile(r"!=|=|\(|\)|,|[A-Za-z0-9*][A-Za-z0-9._/*-]*")
_WORD = re.compile(r"^[A-Za-z0-9]")
_KEYWORDS = {"and", "or", "not", "in", "all", "*"}
WHAT = "selector"


@dataclass(frozen=True)
class All:
    def matches(self, labels: Labels) -> bool:  # noqa: ARG002  # one interface for every node
        return True

    @property
    def names(self) -> frozenset[str]:
        return frozenset()


@dataclass(frozen=True)
class OneOf:
    label: str
    values: frozenset[str]

    def matches(self, labels: Labels) -> bool:
        return labels.get(self.label) in self.values

    @property
    def names(self) -> frozenset[str]:
        return frozenset({self.label})


@dataclass(frozen=True)
class Not:
    part: "Selector"

    def matches(self, labels: Labels) -> bool:
        return not self.part.matches(labels)

    @property
    def names(self) -> frozenset[str]:
        return self.part.names


@dataclass(frozen=True)
class Both:
    left: "Selector"
    right: "Selector"

    def matches(self, labels: Labels) -> bool:
        return self.left.matches(labels) and self.right.matches(labels)

    @property
    def names(self) -> frozenset[str]:
        return self.left.names | self.right.names


@dataclass(frozen=True)
class Either:
    left: "Selector"
    right: "Selector"

    def matches(self, labels: Labels) -> bool:
        return self.left.matches(labels) or self.right.matches(labels)

    @property
    def names(self) -> frozenset[str]:
        return self.left.names | self.right.names


Selector = All | OneOf | Not | Both | Either


def parse(text: str) -> Selector:
    """Raises: UsageError with a caret."""
    parser = _Parser(text)
    result = parser.either()
    if parser.here is not None:
        refuse(WHAT, text, parser.here.at, f"expected 'and', 'or' or the end, found {parser.here.text!r}")
    return result


def check_names(selector: Selector, known: Iterable[str]) -> None:
    """Raises: NotPossibleError naming the labels that no device carries, and those that exist."""
    have = sorted(set(known))
    unknown = sorted(selector.names - set(have))
    if unknown:
        raise NotPossibleError(
            f"selector: no device has the label {', '.join(map(repr, unknown))}; known labels are {', '.join(have)}"
        )


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = tokenize(WHAT, text, _TOKEN)
        self._next = 0

    @property
    def here(self) -> Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def either(self) -> Selector:
        left = self._both()
        while self._took("or"):
            left = Either(left, self._both())
        return left

    def _both(self) -> Selector:
        left = self._unary()
        while self._took("and"):
            left = Both(left, self._unary())
        return left

    def _unary(self) -> Selector:
        if self._took("not"):
            return Not(self._unary())
        if self._took("("):
            inner = self.either()
            self._expect(")")
            return inner
        if self._took("all") or self._took("*"):
            return All()
        label = self._word("a label")
        if self._took("="):
            return OneOf(label, frozenset({self._word("a value")}))
        if self._took("!="):
            return Not(OneOf(label, frozenset({self._word("a value")})))
        if not self._took("in"):
            self._fail(f"expected '=', '!=' or 'in' after {label!r}")
        self._expect("(")
        values = {self._word("a value")}
        while self._took(","):
            values.add(self._word("a value"))
        self._expect(")")
        return OneOf(label, frozenset(values))

    def _took(self, text: str) -> bool:
        if self.here is None or self.here.text != text:
            return False
        self._next += 1
        return True

    def _expect(self, text: str) -> None:
        if not self._took(text):
            self._fail(f"expected {text!r}")

    def _word(self, what: str) -> str:
        token = self.here
        if token is None or not _WORD.match(token.text) or token.text in _KEYWORDS:
            self._fail(f"expected {what}")
        self._next += 1
        return token.text

    def _fail(self, message: str) -> Never:
        at = self.here.at if self.here else len(self._text)
        refuse(WHAT, self._text, at, message)
