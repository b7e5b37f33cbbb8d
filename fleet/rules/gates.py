"""The gate language: `error_rate < 1% min 50 requests`, `latency_p95 <= 1.1 * control`, `install_failures < 5%`.

    gate  = metric ("<" | "<=") limit ["min" number unit]
    limit = number ("%" | "ms") | number "*" "control"

Always true
 1. What cannot be parsed is refused with a caret; nothing is guessed.
 2. Too little data is inconclusive, never satisfied.
 3. A gate says in words what it judges and on how much data.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import msgspec

from fleet.rules.text import Token, refuse, show_percent, tokenize

WHAT = "gate"
Unit = Literal["requests", "windows", "devices"]
_TOKEN = re.compile(r"<=|>=|==|<|>|=|\*|%|[0-9]+(?:\.[0-9]+)?|[A-Za-z_][A-Za-z0-9_]*")
_NEEDS_ROOM = "two equal releases can never be shown equal; give control some room, e.g. 1.1 * control"
_NUMBER = re.compile(r"^[0-9]")


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
    """What a gate says now, for a person: the figure, the limit, and on how much data."""

    gate: str
    outcome: Outcome
    words: str


@dataclass(frozen=True)
class Metric:
    """What can be gated: its unit, whether it can be compared with control, and the data it asks for at least."""

    words: str
    unit: Literal["%", "ms"]
    comparable: bool
    minimum: int
    minimum_unit: Unit
    quantile: float | None = None


METRICS = {
    "error_rate": Metric("errors per accepted request", "%", True, 100, "requests"),  # a table
    "latency_p50": Metric("the median engine time", "ms", False, 100, "requests", 0.50),
    "latency_p95": Metric("the 95th percentile of engine time", "ms", True, 100, "requests", 0.95),
    "latency_p99": Metric("the 99th percentile of engine time", "ms", False, 500, "requests", 0.99),
    "install_failures": Metric("devices that failed to install", "%", False, 1, "devices"),
    "lost": Metric("devices lost to the move", "%", False, 1, "devices"),
}


class Gate(msgspec.Struct, frozen=True):
    """`limit` is a share (0…1), milliseconds, or a factor where `is_relative`."""

    text: str
    metric: str
    is_strict: bool
    limit: float
    is_relative: bool
    minimum: int
    minimum_unit: Unit

    @property
    def words(self) -> str:
        metric = METRICS[self.metric]
        relation = "below" if self.is_strict else "at most"
        if self.is_relative:
            return (
                f"{metric.words} at most {self.limit:g} times that of devices still on the old release, device by "
                "device, each against its own past"
            )
        data = f"judged on at least {self.minimum} {self.minimum_unit}"
        return f"{metric.words} {relation} {show(self.limit, metric)}, {data}"

    def holds(self, value: float) -> bool:
        return value < self.limit if self.is_strict else value <= self.limit


def show(value: float, metric: Metric) -> str:
    return show_percent(value) if metric.unit == "%" else f"{value:.3g} ms"


def parse(text: str) -> Gate:
    """Raises: UsageError with a caret."""
    return _Parser(text).gate()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = tokenize(WHAT, text, _TOKEN)
        self._next = 0

    def gate(self) -> Gate:
        name_at = self._at
        name = self._take("a metric")
        metric = METRICS.get(name)
        if metric is None:
            refuse(WHAT, self._text, name_at, f"unknown metric {name!r}; known are {', '.join(METRICS)}")
        operator_at = self._at
        operator = self._take("'<' or '<='")
        if operator not in ("<", "<="):
            refuse(WHAT, self._text, operator_at, f"expected '<' or '<=', found {operator!r}")
        limit_at = self._at
        limit, is_relative = self._limit(metric)
        if is_relative and not metric.comparable:
            refuse(WHAT, self._text, limit_at, f"{name} cannot be compared with control; give a number")
        minimum, unit = self._minimum(metric, is_relative=is_relative)
        if self._next < len(self._tokens):
            refuse(WHAT, self._text, self._at, "expected the end")
        return Gate(self._text, name, operator == "<", limit, is_relative, minimum, unit)

    def _limit(self, metric: Metric) -> tuple[float, bool]:
        at = self._at
        if self._took("control"):
            refuse(WHAT, self._text, at, _NEEDS_ROOM)
        number = self._number("a number or 'control'")
        if self._took("*"):
            if not self._took("control"):
                refuse(WHAT, self._text, self._at, "expected 'control' after '*'")
            if number <= 1:
                refuse(WHAT, self._text, at, _NEEDS_ROOM)
            return number, True
        if metric.unit == "%":
            if not self._took("%"):
                refuse(WHAT, self._text, self._at, f"expected '%' (write e.g. {number:g}%)")
            if number > 100:
                refuse(WHAT, self._text, at, "a share is at most 100%")
            return number / 100, False
        if not self._took("ms"):
            refuse(WHAT, self._text, self._at, f"expected 'ms' (write e.g. {number:g}ms)")
        return number, False

    def _minimum(self, metric: Metric, *, is_relative: bool) -> tuple[int, Unit]:
        if not self._took("min"):
            return metric.minimum, metric.minimum_unit
        at = self._at
        if is_relative:
            refuse(WHAT, self._text, at, "a comparison with control decides itself how much data it needs")
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
