"""The gate language: `error_rate < 1% min 50 requests`, `latency_p95 <= 1.1 * control`, `metric:sold >= 0.95 * before`.

    gate  = [deployment ":"] metric relation limit ["min" number unit]
    limit = number ["%" | "ms"] | number "*" past | past "+" number "%"
    past  = "control" | "before"

`control` are devices still on the old release over the same time; `before` is each device's own past, which is weaker
(the hour and the weekday confound it) and may pause a rollout, never roll it back. Where several deployments move
together a gate names the one that it is about, or holds for each.

Always true
 1. What cannot be parsed is refused with a caret; nothing is guessed.
 2. Too little data is inconclusive, never satisfied.
 3. A gate says in words what it judges and on how much data.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import msgspec

from fleet.rules.text import Token, refuse, show_percent, tokenize

WHAT = "gate"
Unit = Literal["requests", "windows", "devices"]
Reference = Literal["", "control", "before"]
_TOKEN = re.compile(
    r"<=|>=|==|<|>|=|\*|\+|%|metric:[A-Za-z0-9_.-]+|(?!metric\b)[A-Za-z0-9][A-Za-z0-9_.-]*\s*:|[0-9]+(?:\.[0-9]+)?"
    r"|[A-Za-z_][A-Za-z0-9_]*"
)
_NEEDS_ROOM = "two equal releases can never be shown equal; give control some room, e.g. 1.1 * control"
_NUMBER = re.compile(r"^[0-9]")
CUSTOM = "metric:"

_UNITS: dict[str, Unit] = {
    "requests": "requests",
    "request": "requests",
    "windows": "windows",
    "window": "windows",
    "devices": "devices",
    "device": "devices",
}


class Outcome(StrEnum):
    SATISFIED = "satisfied"
    VIOLATED = "violated"
    INCONCLUSIVE = "inconclusive"


class Verdict(msgspec.Struct, frozen=True):
    """What a gate says now, for a person: the figure, the limit, and on how much data.

    `is_weak`: it may pause a rollout, and never turns one back by itself.
    """

    gate: str
    outcome: Outcome
    words: str
    is_weak: bool = False


@dataclass(frozen=True)
class Metric:
    """What can be gated, and the data it asks for at least.

    `kind` says how devices are scored: a `share` of their requests, a `level` as it is or as its `ratio` to what it
    was, or a `count` of devices. A latency is a share (of requests above the limit) where its limit is a number.
    """

    words: str
    unit: Literal["%", "ms", ""]
    kind: Literal["share", "level", "ratio", "count"]
    minimum: int
    minimum_unit: Unit
    quantile: float | None = None


METRICS = {
    "error_rate": Metric("errors per accepted request", "%", "share", 100, "requests"),  # a table
    "latency_p50": Metric("the median engine time", "ms", "ratio", 100, "requests", 0.50),
    "latency_p95": Metric("the 95th percentile of engine time", "ms", "ratio", 100, "requests", 0.95),
    "latency_p99": Metric("the 99th percentile of engine time", "ms", "ratio", 500, "requests", 0.99),
    "latency_mean": Metric("the mean of the logarithm of engine time", "ms", "ratio", 100, "requests"),
    "drift_psi": Metric("the drift of inputs (PSI against the reference)", "", "level", 3, "windows"),
    "install_failures": Metric("devices that failed to install", "%", "count", 1, "devices"),
    "lost": Metric("devices lost to the move", "%", "count", 1, "devices"),
}


def metric_of(name: str) -> Metric | None:
    """The metric of this name; `metric:NAME` is one that the application on the device reports."""
    if name.startswith(CUSTOM):
        return Metric(name.removeprefix(CUSTOM), "", "level", 3, "windows")
    return METRICS.get(name)


class Gate(msgspec.Struct, frozen=True):
    """`limit` is a share (0…1), milliseconds, a plain number, or what `reference` is multiplied by (or, where
    `is_added`, has added to it). `at_least`: more is better. `deployment` is empty where a rollout moves only one.
    """

    text: str
    metric: str
    is_strict: bool
    limit: float
    reference: Reference = ""
    minimum: int = 1
    minimum_unit: Unit = "devices"
    is_added: bool = False
    at_least: bool = False
    deployment: str = ""

    @property
    def is_relative(self) -> bool:
        """Judged against control."""
        return self.reference == "control"

    @property
    def about(self) -> Metric:
        found = metric_of(self.metric)
        assert found is not None, "parsed gates name known metrics"
        return found

    @property
    def words(self) -> str:
        metric = self.about
        where = f"{self.deployment}: " if self.deployment else ""
        relation = _RELATIONS[self.at_least, self.is_strict]
        if self.reference:
            than = f"{relation} {self.limit:g} times"
            if self.is_added:
                than = f"{relation} {show(self.limit, metric).replace(' %', ' points')} above"
            whose = _REFERENCES[self.reference]
            return f"{where}{metric.words} {than} {whose}"
        data = f"judged on at least {self.minimum} {self.minimum_unit}"
        return f"{where}{metric.words} {relation} {show(self.limit, metric)}, {data}"

    def holds(self, value: float) -> bool:
        if self.at_least:
            return value > self.limit if self.is_strict else value >= self.limit
        return value < self.limit if self.is_strict else value <= self.limit


_RELATIONS = {
    (False, True): "below",
    (False, False): "at most",
    (True, True): "above",
    (True, False): "at least",
}
_REFERENCES = {
    "control": "that of devices still on the old release, device by device, each against its own past",
    "before": "what the same devices had before (the hour may confound this: it pauses, and never rolls back)",
}


def show(value: float, metric: Metric) -> str:
    if metric.unit == "%":
        return show_percent(value)
    return f"{value:.3g} {metric.unit}".rstrip()


def parse(text: str) -> Gate:
    """Raises: UsageError with a caret."""
    return _Parser(text).gate()


def of_each(parsed: Sequence[Gate], deployments: Sequence[str]) -> tuple[Gate, ...]:
    """The gates of a rollout of these deployments: where there are several, one that names none becomes one of each that
    has no such gate of its own. Gates that count devices are about all of it.

    Raises: UsageError for a name that the rollout does not move.
    """
    for gate in parsed:
        if gate.deployment and gate.deployment not in deployments:
            known = ", ".join(deployments)
            refuse(WHAT, gate.text, 0, f"this rollout does not move {gate.deployment!r}, but {known}")
        if gate.deployment and gate.about.kind == "count":
            refuse(
                WHAT, gate.text, 0, f"{gate.metric} counts devices, whichever deployment it was; name none"
            )
    if len(deployments) == 1:
        return tuple(parsed)
    own = {_about_what(gate) for gate in parsed if gate.deployment}
    found: list[Gate] = []
    for gate in parsed:
        if gate.deployment or gate.about.kind == "count":
            found.append(gate)
            continue
        each = [
            msgspec.structs.replace(gate, text=f"{one}: {gate.text}", deployment=one) for one in deployments
        ]
        found += [gate for gate in each if _about_what(gate) not in own]
    return tuple(found)


def _about_what(gate: Gate) -> tuple[str, str, str, bool]:
    return gate.deployment, gate.metric, gate.reference, gate.at_least


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = tokenize(WHAT, text, _TOKEN)
        self._next = 0

    def gate(self) -> Gate:
        deployment = self._deployment()
        name_at = self._at
        name = self._take("a metric")
        metric = metric_of(name)
        if metric is None:
            refuse(
                WHAT,
                self._text,
                name_at,
                f"unknown metric {name!r}; known are {', '.join(METRICS)} and metric:NAME",
            )
        operator_at = self._at
        operator = self._take("'<' or '<='")
        allowed = ("<", "<=", ">", ">=") if name.startswith(CUSTOM) else ("<", "<=")
        if operator not in allowed:
            known = " or ".join(f"'{o}'" for o in allowed)
            refuse(WHAT, self._text, operator_at, f"expected {known}, found {operator!r}")
        at_least = operator.startswith(">")
        limit, reference, is_added = self._limit(name, metric, at_least=at_least)
        minimum, unit = self._minimum(metric, is_relative=bool(reference))
        if self._next < len(self._tokens):
            refuse(WHAT, self._text, self._at, "expected the end")
        is_strict = operator in ("<", ">")
        return Gate(
            self._text, name, is_strict, limit, reference, minimum, unit, is_added, at_least, deployment
        )

    def _deployment(self) -> str:
        if not self._tokens or not self._tokens[0].text.endswith(":"):
            return ""
        return self._take("a deployment").removesuffix(":").rstrip()

    def _limit(self, name: str, metric: Metric, *, at_least: bool) -> tuple[float, Reference, bool]:
        at = self._at
        if (reference := self._reference()) is not None:
            self._check_comparable(name, metric, at)
            if not self._took("+") or metric.kind != "share" or at_least:
                refuse(WHAT, self._text, at, _NEEDS_ROOM)
            number_at = self._at
            number = self._number("a number")
            if not self._took("%") or not 0 < number <= 100:
                refuse(WHAT, self._text, number_at, "expected points of a share above 0, e.g. control + 0.5%")
            return number / 100, reference, True
        number = self._number("a number or 'control'")
        if self._took("*"):
            reference_at = self._at
            if (reference := self._reference()) is None:
                refuse(WHAT, self._text, reference_at, "expected 'control' or 'before' after '*'")
            self._check_comparable(name, metric, at)
            if number >= 1 if at_least else number <= 1:
                refuse(WHAT, self._text, at, _NEEDS_ROOM)
            return number, reference, False
        if name == "latency_mean":
            refuse(WHAT, self._text, at, f"{name} can only be compared with control or before")
        if metric.unit and not self._took(metric.unit):
            refuse(
                WHAT, self._text, self._at, f"expected '{metric.unit}' (write e.g. {number:g}{metric.unit})"
            )
        if metric.unit == "%" and number > 100:
            refuse(WHAT, self._text, at, "a share is at most 100%")
        return number / 100 if metric.unit == "%" else number, "", False

    def _reference(self) -> Reference | None:
        if self._took("control"):
            return "control"
        return "before" if self._took("before") else None

    def _check_comparable(self, name: str, metric: Metric, at: int) -> None:
        if metric.kind == "count":
            refuse(WHAT, self._text, at, f"{name} cannot be compared with control; give a number")

    def _minimum(self, metric: Metric, *, is_relative: bool) -> tuple[int, Unit]:
        if not self._took("min"):
            return metric.minimum, metric.minimum_unit
        at = self._at
        if is_relative:
            refuse(WHAT, self._text, at, "a comparison decides itself how much data it needs")
        number = self._number("a number")
        if number < 1 or number != int(number):
            refuse(WHAT, self._text, at, "expected a whole number of at least 1")
        unit_at = self._at
        word = self._take("'requests', 'windows' or 'devices'")
        unit = _UNITS.get(word)
        if unit is None:
            refuse(WHAT, self._text, unit_at, f"expected 'requests', 'windows' or 'devices', found {word!r}")
        self._check_unit(metric, unit, unit_at)
        return int(number), unit

    def _check_unit(self, metric: Metric, unit: str, at: int) -> None:
        if metric.minimum_unit == "devices" and unit != "devices":
            refuse(WHAT, self._text, at, "this metric counts devices; write 'min N devices'")

    @property
    def _at(self) -> int:
        return self._tokens[self._next].at if self._next < len(self._tokens) else len(self._text)

    def _took(self, text: str) -> bool:
        if self._next < len(self._tokens) and self._tokens[self._next].text == text:
            self._next += 1
            return True
        return False

    def _take(self, what: str) -> str:
        token = self._token(what)
        self._next += 1
        return token.text

    def _number(self, what: str) -> float:
        token = self._token(what)
        if not _NUMBER.match(token.text):
            refuse(WHAT, self._text, token.at, f"expected {what}, found {token.text!r}")
        self._next += 1
        return float(token.text)

    def _token(self, what: str) -> Token:
        if self._next >= len(self._tokens):
            refuse(WHAT, self._text, len(self._text), f"expected {what}")
        return self._tokens[self._next]
