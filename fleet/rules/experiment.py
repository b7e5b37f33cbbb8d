"""Experiments: two releases side by side on a fixed split of devices, judged by a goal at any number of looks.

Pure.

Always true
 1. Which release a device gets follows from its name and the experiment alone, and never changes.
 2. The unit is the device: one with a million requests counts as one, and what a single device claims is pulled in.
 3. The interval covers the true difference with 95 % at all looks together, not at each: looking often costs nothing.
 4. Where the arms that report are not of the size that was asked for, nothing is said about the goal.

Sources: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas (2024), "Time-uniform central limit theory and asymptotic confidence
sequences" (interval and its tuning); Lindon, Malek (2022), "Anytime-valid inference for multinomial count data" (ratio).
"""

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Literal

import msgspec
import numpy as np

from edgekit.errors import UsageError
from edgekit.wire.messages import DeploymentWindow
from fleet.rules.evalues import Floats
from fleet.rules.gates import CUSTOM
from fleet.rules.text import show_percent

Arm = Literal["A", "B"]
ALPHA = 0.05
# The ratio is called wrong at odds of a hundred to one.
RATIO_ODDS = 100.0
# An arm of fewer devices than this is not judged; a device is counted for the ratio once it had so long to report.
SMALLEST_ARM = 10
GRACE_S = 1800.0
# How far the arms' sizes may be off by something that is worth finding: five points.
_RATIO_PRIOR = 100.0
_REACH_SDS = 4.0
# What was known is noted once a minute at most, and no more often than so many times in as long as it has run by then: an
# experiment of a month leaves about 300 points.
NOTE_S, NOTES = 60.0, 40
_SPLIT = re.compile(r"^([0-9]{1,2})\s*/\s*([0-9]{1,2})$")
_GOAL = re.compile(r"^(?:(max|min)\s+)?(metric:[A-Za-z0-9_.-]{1,64}|error_rate|latency_mean)$")


class Goal(msgspec.Struct, frozen=True):
    """What is compared, device by device: `metric:NAME`, `error_rate` or `latency_mean` (of the logarithm)."""

    metric: str
    is_more_better: bool

    @property
    def words(self) -> str:
        return f"{'more' if self.is_more_better else 'less'} {self.metric.removeprefix(CUSTOM)} is better"


class Outcome(StrEnum):
    WAITING = "waiting"  # too few devices, or the ratio cannot be trusted yet
    MISMATCH = "mismatch"
    OPEN = "open"
    BETTER_A = "A"
    BETTER_B = "B"


class Unit(msgspec.Struct, frozen=True):
    """A device of an experiment: what it did on its arm's release since it joined. Times are steady seconds."""

    device: str
    arm: Arm
    joined_at: float
    windows: int = 0
    requests: int = 0
    errors: int = 0
    count: float = 0.0
    total: float = 0.0


class Side(msgspec.Struct, frozen=True):
    """One arm: devices assigned, those that report, those with the goal's data, and the mean of these."""

    assigned: int
    reporting: int
    measured: int
    mean: float | None
    error_rate: float | None


class Verdict(msgspec.Struct, frozen=True):
    """`difference` is B - A in the goal's unit (of latency: the ratio of B to A, less one), with its interval."""

    outcome: Outcome
    words: str
    a: Side
    b: Side
    difference: float | None = None
    low: float | None = None
    high: float | None = None


def is_to_note(begun: float, last: float | None, now: float) -> bool:
    """Whether what is known of the difference is kept now. All of one clock, in seconds."""
    return last is None or now - last >= max(NOTE_S, (now - begun) / NOTES)


def parse_split(text: str) -> float:
    """The share of A in `50/50`. Raises: UsageError."""
    found = _SPLIT.match(text.strip())
    if found is None or int(found[1]) + int(found[2]) != 100 or 0 in (int(found[1]), int(found[2])):
        raise UsageError(
            f"split: {text!r} is none; write two shares of devices that add up to 100, e.g. 50/50"
        )
    return int(found[1]) / 100


def parse_goal(text: str) -> Goal:
    """`metric:NAME` (more is better), `error_rate`, `latency_mean` (less is better); `min` or `max` before it says
    otherwise. Raises: UsageError.
    """
    found = _GOAL.match(text.strip())
    if found is None:
        raise UsageError(
            f"goal: {text!r} is none; write metric:NAME (what the application reports), error_rate or latency_mean, "
            "with 'min' before a metric of which less is better"
        )
    metric = found[2]
    return Goal(metric, is_more_better=found[1] == "max" if found[1] else metric.startswith(CUSTOM))


def arm_of(experiment: str, device: str, share: float) -> Arm:
    """Rule 1."""
    place = int.from_bytes(hashlib.sha256(f"{experiment}\0{device}".encode()).digest()[:8]) / 2**64
    return "A" if place < share else "B"


def observed(goal: Goal, window: DeploymentWindow) -> tuple[float, float]:
    """How often a window saw the goal, and the sum of it."""
    if goal.metric == "error_rate":
        return float(window.requests), float(window.errors)
    if goal.metric == "latency_mean":
        return window.infer_ms.log_total()
    found = window.metrics.get(goal.metric)
    return (float(found.count), found.total) if found is not None else (0.0, 0.0)


def judge(goal: Goal, units: Sequence[Unit], share: float, planned: int, now: float) -> Verdict:
    """What can be said now. `share` is that of A; `planned` how many devices the experiment was started with."""
    a, b = ([u for u in units if u.arm == arm] for arm in ("A", "B"))
    sides = _side(a), _side(b)
    settled = [[u for u in arm if now - u.joined_at >= GRACE_S and u.windows] for arm in (a, b)]
    counts = len(settled[0]), len(settled[1])
    if ratio_odds(*counts, share) >= RATIO_ODDS:
        return Verdict(Outcome.MISMATCH, _mismatch(counts, share), *sides)
    if min(side.measured for side in sides) < SMALLEST_ARM:
        words = (
            f"too early: {sides[0].measured} and {sides[1].measured} devices have reported {goal.metric}; "
            f"{SMALLEST_ARM} of each are needed"
        )
        return Verdict(Outcome.WAITING, words, *sides)
    values = [np.array([u.total / u.count for u in arm if u.count > 0]) for arm in (a, b)]
    left, right = tamed(values[0], values[1])
    difference = float(right.mean() - left.mean())
    half = half_width(left, right, planned)
    found = _in_words(goal, difference, half, (float(left.mean()), float(right.mean())), sides)
    show = math.expm1 if goal.metric == "latency_mean" else float
    return msgspec.structs.replace(
        found, difference=show(difference), low=show(difference - half), high=show(difference + half)
    )


def half_width(left: Floats, right: Floats, planned: int) -> float:
    """Half of a two-sided 95 % confidence sequence of the difference of means, tightest when `planned` devices are in.

    With variance V of the difference and a normal mixture of variance T over harms:
    sqrt(V * (V + T) / T * log((V + T) / V / alpha^2)).
    """
    n, m = len(left), len(right)
    variance = float(left.var(ddof=1)) / n + float(right.var(ddof=1)) / m
    planned = max(planned, n + m)
    # v = T / V where all are in; by the paper's equation 11, about 8 at 5 %.
    best = -2 * math.log(ALPHA) + math.log(-2 * math.log(ALPHA) + 1)
    v = best * (4 / planned) / (1 / n + 1 / m)
    small = 1 + 2.5 / (min(n, m) - 1)  # Student's t of so few
    return small * math.sqrt(variance * (1 + v) / v * (math.log(1 + v) - 2 * math.log(ALPHA)))


def tamed(left: Floats, right: Floats) -> tuple[Floats, Floats]:
    """Both arms' values pulled in around their common median (rule 2)."""
    centre = float(np.median(np.concatenate([left, right])))
    # The outermost device of each arm has no say in how far.
    usual = np.concatenate([_without_outermost(arm, centre) for arm in (left, right)]) - centre
    reach = _REACH_SDS * math.sqrt(float((usual**2).mean()))
    return np.clip(left, centre - reach, centre + reach), np.clip(right, centre - reach, centre + reach)


def _without_outermost(values: Floats, centre: float) -> Floats:
    return np.delete(values, int(np.abs(values - centre).argmax()))


def ratio_odds(a: int, b: int, share: float) -> float:
    """The e-value of another ratio than the one asked for: a beta mixture around `share`, over the ratio itself."""
    k = _RATIO_PRIOR
    left, right = k * share, k * (1 - share)
    log = (
        _log_beta(a + left, b + right)
        - _log_beta(left, right)
        - a * math.log(share)
        - b * math.log(1 - share)
    )
    return math.exp(min(log, 500.0))


def _log_beta(x: float, y: float) -> float:
    return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)


def _side(units: Sequence[Unit]) -> Side:
    means = [u.total / u.count for u in units if u.count > 0]
    requests = sum(u.requests for u in units)
    return Side(
        assigned=len(units),
        reporting=sum(u.windows > 0 for u in units),
        measured=len(means),
        mean=math.fsum(means) / len(means) if means else None,
        error_rate=sum(u.errors for u in units) / requests if requests else None,
    )


def _mismatch(counts: tuple[int, int], share: float) -> str:
    whole = sum(counts)
    return (
        f"the arms cannot be compared: {counts[0]} and {counts[1]} devices report, of {whole} there should be about "
        f"{whole * share:.0f} and {whole * (1 - share):.0f}; find out what keeps devices of the smaller arm away (a "
        "release that crashes, or does not fit some devices) before anything else"
    )


def _in_words(
    goal: Goal, difference: float, half: float, means: tuple[float, float], sides: tuple[Side, Side]
) -> Verdict:
    low, high = difference - half, difference + half
    if goal.metric == "latency_mean":
        ratio, least, most = (f"{math.exp(value):.3g}" for value in (difference, low, high))
        range_words = f"B takes {ratio} times as long as A (between {least} and {most})"
    else:
        show: Callable[[float], str] = show_percent if goal.metric == "error_rate" else "{:.4g}".format
        range_words = (
            f"{goal.metric} is {show(means[1])} with B and {show(means[0])} with A, a difference of "
            f"{_signed(difference, show)} (between {_signed(low, show)} and {_signed(high, show)})"
        )
    data = f"; {sides[0].measured} and {sides[1].measured} devices; {goal.words}"
    if low <= 0 <= high:
        return Verdict(Outcome.OPEN, f"not decided yet: {range_words}{data}", *sides)
    is_b = (difference > 0) == goal.is_more_better
    winner = "B" if is_b else "A"
    return Verdict(
        Outcome.BETTER_B if is_b else Outcome.BETTER_A,
        f"{winner} is better, with 95 % certainty at any number of looks: {range_words}{data}",
        *sides,
    )


def _signed(value: float, show: Callable[[float], str]) -> str:
    return f"{'+' if value >= 0 else '-'}{show(abs(value))}"
