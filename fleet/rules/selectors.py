"""Which devices: `site=lab and profile=raspberry-pi-5`, `not (site in (roof, attic))`, `all`.

    test = label ("=" | "!=") value | label "in" "(" value ("," value)* ")"

in the frame of `fleet.rules.boolean`. A device without a label matches neither `=` nor `in` on it, and does match `!=`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgekit.errors import NotPossibleError
from fleet.rules import boolean
from fleet.rules.boolean import Leaf, Not, Tree

Labels = Mapping[str, str]
_TOKEN = re.compile(r"!=|=|\(|\)|,|[A-Za-z0-9*][A-Za-z0-9._/*-]*")
_WORD = re.compile(r"^[A-Za-z0-9]")


@dataclass(frozen=True)
class OneOf:
    """A label that has one of these values."""

    label: str
    values: frozenset[str]


@dataclass(frozen=True)
class Selector:
    tree: Tree[OneOf]

    def matches(self, labels: Labels) -> bool:
        return boolean.holds(self.tree, lambda test: labels.get(test.label) in test.values)

    @property
    def names(self) -> frozenset[str]:
        """The labels that it asks for."""
        return frozenset(test.label for test in boolean.tests(self.tree))


def parse(text: str) -> Selector:
    """Raises: UsageError with a caret."""
    return Selector(_Parser(text).parse())


def check_names(selector: Selector, known: Iterable[str]) -> None:
    """Raises: NotPossibleError naming the labels that no device carries, and those that exist."""
    have = sorted(set(known))
    unknown = sorted(selector.names - set(have))
    if unknown:
        raise NotPossibleError(
            f"selector: no device has the label {', '.join(map(repr, unknown))}; known labels are {', '.join(have)}"
        )


class _Parser(boolean.Parser[OneOf]):
    what = "selector"
    pattern = _TOKEN

    def test(self) -> Tree[OneOf]:
        label = self._word("a label")
        if self.took("="):
            return Leaf(OneOf(label, frozenset({self._word("a value")})))
        if self.took("!="):
            return Not(Leaf(OneOf(label, frozenset({self._word("a value")}))))
        if not self.took("in"):
            self.fail(f"expected '=', '!=' or 'in' after {label!r}")
        self.expect("(")
        values = {self._word("a value")}
        while self.took(","):
            values.add(self._word("a value"))
        self.expect(")")
        return Leaf(OneOf(label, frozenset(values)))

    def _word(self, what: str) -> str:
        if self.here is None or not _WORD.match(self.here.text) or self.here.text in boolean.KEYWORDS:
            self.fail(f"expected {what}")
        return self.take().text
