"""Where a build's time goes: what each of its processes did, and for how long.

Always true
 1. A process does one thing at a time, from when it says so until it says something else; a remark in between ends nothing.
 2. Seconds of processes side by side add up, and may be more than the clock's.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

# The building process; workers have names of their own.
HERE = "build"
# What it does beside waiting for them.
AHEAD = "ahead"
IDLE = ""
# How what is told begins, and the step that this is.
_STEPS: Mapping[str, str] = {
    "reading": "reading",
    "starting": "worker start",
    "loading the converter of": "worker start",
    "preparing": "preparation",
    "bringing the source": "preparation",
    "converting": "conversion",
    "compiling": "compilation",
    "looking into the layers of": "layer analysis",
    "evaluating a little": "evaluation",
    "evaluating": "evaluation",
    "searching with": "evaluation",
    "measuring latency": "timing",
    "measuring memory": "memory",
    "judging": "judging",
    "writing": "writing",
    "self-test on an emulated": "emulation",
}


class Spent(msgspec.Struct, frozen=True, order=True):
    """Seconds of one step, for the candidate `what` where it is one's."""

    seconds: float
    step: str
    what: str = ""


class Account(msgspec.Struct, frozen=True):
    """`clock_s` is what the build took; the steps' seconds are of all its processes, the longest first."""

    clock_s: float
    steps: tuple[Spent, ...]

    def words(self, most: int = 4) -> str:
        """`26 s: conversion 14 s (litert/static-int8 6.0 s), evaluation 5.1 s, …`."""
        sums: Counter[str] = Counter()
        for one in self.steps:
            sums[one.step] += one.seconds  # type: ignore[assignment]  # seconds, not counts
        told = [
            f"{step} {_seconds(spent)}{self._worst(step, spent)}" for step, spent in sums.most_common(most)
        ]
        return f"{_seconds(self.clock_s)}: {', '.join(told)}" if told else _seconds(self.clock_s)

    def _worst(self, step: str, whole: float) -> str:
        """The candidate that took most of a step, where it took a fifth of it or more."""
        own = [one for one in self.steps if one.step == step and one.what]
        if not own or own[0].seconds < whole / 5:
            return ""
        return f" ({own[0].what} {_seconds(own[0].seconds)})"


@dataclass
class Stopwatch:
    """`does` is told what a process does from now on."""

    clock: Callable[[], float] = time.monotonic
    _began: float = field(init=False)
    _sums: Counter[tuple[str, str]] = field(default_factory=Counter)
    _doing: dict[str, tuple[tuple[str, str], float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._began = self.clock()

    def does(self, who: str, told: str, at: float | None = None) -> None:
        """A line of progress of `who`, or `IDLE`; now, or `at` by the clock."""
        step = step_of(told)
        if step is None:
            return
        now = self.clock() if at is None else at
        if who in self._doing:
            before, since = self._doing.pop(who)
            self._sums[before] += now - since  # type: ignore[assignment]  # seconds, not counts
        if step != (IDLE, ""):
            self._doing[who] = step, now

    def account(self) -> Account:
        """Up to now."""
        now, sums = self.clock(), Counter(self._sums)
        for step, since in self._doing.values():
            sums[step] += now - since  # type: ignore[assignment]  # seconds, not counts
        found = (Spent(round(spent, 3), *step) for step, spent in sums.items())
        return Account(round(now - self._began, 3), tuple(sorted(found, reverse=True)))


def step_of(told: str) -> tuple[str, str] | None:
    """Step and candidate of a line of progress (`raspberry-pi-5: writing litert/fp32`); None of a remark."""
    if told == IDLE:
        return IDLE, ""
    text = told.rpartition(": ")[2]
    for start, step in _STEPS.items():
        if text.startswith(start):
            words = text.removeprefix(start).split()
            return step, words[0] if words and "/" in words[0] else ""
    return None


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"
