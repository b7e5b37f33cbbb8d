"""Which devices to show: `site=lab and state=failed and last_seen < 5m`.

    test  = name ("=" | "!=") value | name "in" "(" value ("," value)* ")" | text "~" value | age
    age   = "last_seen" ("<" | "<=" | ">" | ">=") duration
    value = word | '"' anything '"'

in the frame of `fleet.rules.boolean`. A name is one of `FIELDS`, or else a label; a label that is called like a field is
written `label.NAME`. A device without a label matches neither `=` nor `in` nor `~` on it, and does match `!=`. What was
never heard of was last seen longer ago than anything.

Pure: what a test means in SQL is the store's (`fleet.server.store.finding`).
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from edgekit.errors import UsageError
from edgekit.wire.states import AgentState
from fleet.rules import boolean
from fleet.rules.boolean import All, Both, Leaf, Not, Tree
from fleet.rules.text import duration, refuse

WHAT = "filter"
_TOKEN = re.compile(r'!=|<=|>=|[=<>~(),]|"[^"\x00-\x1f]*"|[A-Za-z0-9*][A-Za-z0-9._/@:+*-]*')
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")
_ROLLOUT = re.compile(r"^r?[0-9]{1,9}$")
_LABEL = "label."
_YES, _NO = "yes", "no"


class Kind(Enum):
    """How a field may be asked for."""

    WORD = "word"
    FLAG = "flag"
    AGE = "age"
    TEXT = "text"


def _state(value: str) -> str:
    return "" if value in list(AgentState) else f"there is no such state; there are {', '.join(AgentState)}"


def _title(value: str) -> str:
    name, at, version = value.partition("@")
    return "" if name and at and version else "write NAME@VERSION; 'model' and 'version' ask for one of them"


def _rollout(value: str) -> str:
    return "" if _ROLLOUT.match(value) else "is no rollout; write r1, r2, …"


@dataclass(frozen=True)
class Field:
    """`wrong` says what is wrong with a value, or nothing."""

    kind: Kind
    words: str
    wrong: Callable[[str], str] = lambda _value: ""


# What can be asked for beside labels; `device` and `profile` are built-in labels.
FIELDS: Mapping[str, Field] = {
    "state": Field(Kind.WORD, "state of any of its deployments, as the device says", _state),
    "online": Field(Kind.FLAG, "connected now"),
    "enrolled": Field(Kind.FLAG, "has joined"),
    "last_seen": Field(Kind.AGE, "how long ago it was heard of"),
    "release": Field(Kind.WORD, "NAME@VERSION that it runs", _title),
    "model": Field(Kind.WORD, "the NAME of what it runs"),
    "version": Field(Kind.WORD, "the VERSION of what it runs"),
    "wanted": Field(Kind.WORD, "NAME@VERSION that it is ordered to run", _title),
    "behind": Field(Kind.FLAG, "does not run what it is ordered to run"),
    "deployment": Field(Kind.WORD, "has this model slot"),
    "rollout": Field(Kind.WORD, "is in this rollout", _rollout),
    "refused": Field(Kind.FLAG, "refused its newest order"),
    "condition": Field(Kind.WORD, "says that this is wrong with it; 'any' for anything"),
    "reason": Field(Kind.TEXT, "words of its refusal, reasons and conditions"),
    "duplicate": Field(Kind.FLAG, "two machines speak under its name"),
    "agent": Field(Kind.WORD, "version of its agent"),
}


@dataclass(frozen=True)
class OfLabel:
    """A label that has one of these values."""

    label: str
    values: frozenset[str]


@dataclass(frozen=True)
class LabelHas:
    """A label in whose value this stands, in capitals or not."""

    label: str
    text: str


@dataclass(frozen=True)
class OfField:
    """A word field that has one of these values, or a flag that is `yes`."""

    field: str
    values: frozenset[str]


@dataclass(frozen=True)
class FieldHas:
    """A text field in which this stands, in capitals or not."""

    field: str
    text: str


@dataclass(frozen=True)
class Seen:
    """Heard of less than `seconds` ago, or longer ago."""

    than: Literal["<", ">"]
    seconds: float


Test = OfLabel | LabelHas | OfField | FieldHas | Seen
Filter = Tree[Test]


def parse(text: str) -> Filter:
    """All devices for empty text. Raises: UsageError with a caret."""
    return _Parser(text).parse() if text.strip() else All()


def within(text: str, scope: str) -> Filter:
    """A filter, of those devices only that a selector's text (all if empty) reaches; in that every name is a label.

    Raises: UsageError with a caret.
    """
    given = parse(text)
    return Both(given, _Parser(scope, labels_only=True).parse()) if scope else given


def labels(given: Filter) -> frozenset[str]:
    """The labels that it asks for."""
    return frozenset(test.label for test in boolean.tests(given) if isinstance(test, OfLabel | LabelHas))


def check_names(given: Filter, known: Collection[str]) -> None:
    """Raises: UsageError naming the labels that no device carries."""
    unknown = sorted(labels(given) - set(known) - {"device", "profile"})
    if unknown:
        raise UsageError(
            f"{WHAT}: {', '.join(map(repr, unknown))} is neither a field nor a label of any device; fields are "
            f"{', '.join(FIELDS)}; labels are {', '.join(sorted({*known, 'device', 'profile'}))}"
        )


class _Parser(boolean.Parser[Test]):
    what = WHAT
    pattern = _TOKEN

    def __init__(self, text: str, *, labels_only: bool = False) -> None:
        super().__init__(text)
        self._labels_only = labels_only

    def test(self) -> Filter:
        at = self.here.at if self.here else len(self.text)
        name = self._name()
        if self._labels_only or name not in FIELDS:
            return self._of_label(name if self._labels_only else name.removeprefix(_LABEL))
        field = FIELDS[name]
        if field.kind is Kind.AGE:
            return self._age(name)
        if field.kind is Kind.TEXT:
            if not self.took("~"):
                self.fail(f"{name} is text; write {name} ~ word")
            return Leaf(FieldHas(name, self._value()))
        if self.here is not None and self.here.text in ("~", "<", "<=", ">", ">="):
            self.fail(f"{name!r} can be asked for with =, != and in")
        return self._equal(name, lambda values: self._of_field(name, field, values, at))

    def _of_label(self, label: str) -> Filter:
        if self.took("~"):
            return Leaf(LabelHas(label, self._value()))
        return self._equal(label, lambda values: Leaf(OfLabel(label, frozenset(values))))

    def _equal(self, name: str, made: Callable[[Mapping[str, int]], Filter]) -> Filter:
        if self.took("="):
            return made(dict([self._placed()]))
        if self.took("!="):
            return Not(made(dict([self._placed()])))
        if not self.took("in"):
            self.fail(f"expected '=', '!=', '~' or 'in' after {name!r}")
        self.expect("(")
        values = [self._placed()]
        while self.took(","):
            values.append(self._placed())
        self.expect(")")
        return made(dict(values))

    def _of_field(self, name: str, field: Field, values: Mapping[str, int], at: int) -> Filter:
        if field.kind is Kind.FLAG:
            if len(values) != 1 or next(iter(values)) not in (_YES, _NO):
                self.fail(f"{name!r} is yes or no", next(iter(values.values()), at))
            yes: Filter = Leaf(OfField(name, frozenset({_YES})))
            return yes if _YES in values else Not(yes)
        for value, place in values.items():
            if wrong := field.wrong(value):
                self.fail(f"{name} {value!r}: {wrong}", place)
        return Leaf(OfField(name, frozenset(values)))

    def _age(self, name: str) -> Filter:
        if self.here is None or self.here.text not in ("<", "<=", ">", ">="):
            self.fail(f"{name} is how long ago: write {name} < 5m or {name} > 1d")
        sign = self.take().text
        value, at = self._placed()
        try:
            seconds = duration(value, name)
        except UsageError:
            self.fail(f"{value!r} is no duration; write a number and ms, s, m, h, d or w, e.g. 5m", at)
        return Leaf(Seen("<" if sign[0] == "<" else ">", seconds))

    def _name(self) -> str:
        token = self.here
        if token is None or not _NAME.match(token.text) or token.text in boolean.KEYWORDS:
            self.fail("expected a field or a label")
        return self.take().text

    def _placed(self) -> tuple[str, int]:
        """A value and where it stands."""
        at = self.here.at if self.here else len(self.text)
        return self._value(), at

    def _value(self) -> str:
        token = self.here
        if token is None or token.text[0] in "=!<>~()," or token.text in boolean.KEYWORDS:
            self.fail("expected a value")
        text = self.take().text
        return text[1:-1] if text.startswith('"') else text


SORTS: Mapping[str, str] = {
    "device": "by name",
    "profile": "by hardware profile",
    "online": "those that are away first",
    "last_seen": "the longest silent first",
    "state": "the worst off first",
    "agent": "by the version of the agent",
}


@dataclass(frozen=True)
class Sort:
    """`by` is one of `SORTS`, or with `is_label` a label; devices that are alike in it follow each other by name."""

    by: str = "device"
    is_label: bool = False
    is_descending: bool = False

    @property
    def text(self) -> str:
        return f"{'-' * self.is_descending}{_LABEL if self.by in SORTS and self.is_label else ''}{self.by}"


def sort(text: str) -> Sort:
    """`last_seen`, `-last_seen`, `site`; by name for empty text. Raises: UsageError with a caret."""
    name = text.strip().removeprefix("-")
    if not name:
        return Sort()
    if not _NAME.match(name):
        refuse(
            "sort", text, 0, f"write one of {', '.join(SORTS)} or a label, with - before it to turn it round"
        )
    is_descending = text.strip().startswith("-")
    if name in SORTS:
        return Sort(name, is_descending=is_descending)
    if name in FIELDS:
        refuse("sort", text, 0, f"there is no order by {name!r}; there are {', '.join(SORTS)}, and labels")
    return Sort(name.removeprefix(_LABEL), is_label=True, is_descending=is_descending)
