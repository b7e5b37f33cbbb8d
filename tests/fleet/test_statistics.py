"""What the comparison with control finds and what it leaves alone, on a fleet that is simulated unkindly: devices of
different speeds and traffic, load that wanders, an hour that slows everyone, and looks at every window.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.sketch import _LOG_GAMMA, Sketch, merge
from fleet.rules import gates, statistics
from fleet.rules.cohorts import Cohorts, DeviceData, Past
from fleet.rules.gates import Outcome

LATENCY = gates.parse("latency_p95 <= 1.1 * control")
ERRORS = gates.parse("error_rate <= 1.1 * control")
PAST_WINDOWS = 60
WINDOWS = 30
RUNS = 25


def sketch_of(values: NDArray[np.float64]) -> Sketch:
    index, counts = np.unique(np.ceil(np.log(values) / _LOG_GAMMA).astype(int), return_counts=True)
    bins = dict(zip(index.tolist(), counts.tolist(), strict=True))
    return Sketch(bins, 0, float(values.sum()), float(values.max()))


@dataclass(frozen=True)
class World:
    """`slower` and `more_errors` are what the release does to a canary."""

    slower: float = 1.0
    more_errors: float = 0.0
    devices: int = 24
    base_errors: float = 0.005


class Simulated:
    """One device over time: its own level, traffic and AR(1) load; windows on the old and on the new release."""

    def __init__(
        self, world: World, chance: np.random.Generator, hour: NDArray[np.float64], is_canary: bool
    ) -> None:
        level = math.log(8) + 0.5 * chance.normal()
        rate = int(np.clip(chance.lognormal(math.log(8), 0.7), 2, 60))
        load = np.zeros(len(hour))
        for at in range(1, len(load)):
            load[at] = 0.9 * load[at - 1] + 0.05 * chance.normal()
        self.windows: list[tuple[int, int, Sketch]] = []
        own_errors = world.base_errors * chance.lognormal(0, 0.5)
        for at in range(len(hour)):
            is_new = is_canary and at >= PAST_WINDOWS
            times = np.exp(level + hour[at] + load[at] + 0.25 * chance.normal(size=rate))
            times *= world.slower if is_new else 1.0
            errors = int(chance.binomial(rate, min(1.0, own_errors + (world.more_errors if is_new else 0.0))))
            self.windows.append((rate, errors, sketch_of(times)))

    def data(self, name: str, until: int) -> DeviceData:
        before, after = self.windows[:PAST_WINDOWS], self.windows[PAST_WINDOWS : PAST_WINDOWS + until]
        past = Past(
            len(before), sum(w[0] for w in before), sum(w[1] for w in before), merge(w[2] for w in before)
        )
        sums = sum(w[0] for w in after), sum(w[1] for w in after)
        return DeviceData(name, "p", len(after), len(after), *sums, merge(w[2] for w in after), past)


def verdicts(world: World, gate: gates.Gate, seed: int) -> list[Outcome]:
    """The gate's verdicts at every window of a stage."""
    chance = np.random.default_rng(seed)
    span = PAST_WINDOWS + WINDOWS
    hour = 0.2 * np.sin(2 * math.pi * (np.arange(span) / 90 + chance.random()))
    canaries = [Simulated(world, chance, hour, is_canary=True) for _ in range(world.devices)]
    controls = [Simulated(world, chance, hour, is_canary=False) for _ in range(world.devices)]
    looks = []
    for until in range(2, WINDOWS + 1, 4):
        data = Cohorts(
            canary=tuple(d.data(f"n{i}", until) for i, d in enumerate(canaries)),
            control=tuple(d.data(f"c{i}", until) for i, d in enumerate(controls)),
        )
        looks.append(statistics.compare(gate, data, stage=0, gates=2).outcome)
    return looks


def outcomes(world: World, gate: gates.Gate) -> tuple[float, float]:
    """The shares of rollouts that were stopped at some look, and that would pass at the last."""
    seen = [verdicts(world, gate, seed) for seed in range(RUNS)]
    stopped = sum(Outcome.VIOLATED in looks for looks in seen)
    return stopped / RUNS, sum(looks[-1] is Outcome.SATISFIED for looks in seen) / RUNS


def test_a_good_release_is_not_stopped_and_mostly_passes() -> None:
    stopped, passed = outcomes(World(), LATENCY)
    assert stopped == 0
    assert passed >= 0.7


def test_a_good_release_is_not_stopped_by_the_errors_it_always_had() -> None:
    assert outcomes(World(), ERRORS)[0] == 0


def test_a_release_exactly_at_the_limit_is_seldom_stopped_and_seldom_passed() -> None:
    stopped, passed = outcomes(World(slower=1.1), LATENCY)
    assert stopped <= 0.08
    assert passed <= 0.16


def test_thirty_percent_more_latency_is_stopped_with_24_devices_a_side_and_never_passes() -> None:
    stopped, passed = outcomes(World(slower=1.3), LATENCY)
    assert stopped >= 0.84
    assert passed == 0


def test_two_points_more_errors_are_stopped_with_24_devices_a_side_and_never_pass() -> None:
    stopped, passed = outcomes(World(more_errors=0.02), ERRORS)
    assert stopped >= 0.84
    assert passed == 0


def test_five_devices_a_side_are_needed_and_the_verdict_says_so() -> None:
    verdict = statistics.compare(LATENCY, Cohorts(), stage=0, gates=1)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "5 of each are needed" in verdict.words


def test_no_errors_anywhere_pass_only_after_enough_requests() -> None:
    past = Past(60, 10_000, 0, Sketch())

    def verdict(requests: int) -> Outcome:
        arm = tuple(DeviceData(str(i), "p", 9, 9, requests, 0, Sketch(), past) for i in range(6))
        return statistics.compare(ERRORS, Cohorts(arm, arm), stage=0, gates=1).outcome

    assert verdict(10) is Outcome.INCONCLUSIVE
    assert verdict(1000) is Outcome.SATISFIED


def test_one_broken_device_does_not_decide() -> None:
    def device(name: str, slower: float) -> DeviceData:
        chance = np.random.default_rng(sum(name.encode()))
        before, after = (sketch_of(np.exp(0.2 * chance.normal(size=400))) for _ in range(2))
        now = Sketch(
            {i + round(math.log(slower) / _LOG_GAMMA): n for i, n in after.bins.items()}, 0, 1.0, 1e9
        )
        return DeviceData(name, "p", 9, 9, 400, 0, now, Past(60, 400, 0, before))

    canary = (*(device(f"n{i}", 1.0) for i in range(11)), device("broken", 50.0))
    control = tuple(device(f"c{i}", 1.0) for i in range(12))
    verdict = statistics.compare(LATENCY, Cohorts(canary, control), stage=0, gates=1)
    assert verdict.outcome is not Outcome.VIOLATED
