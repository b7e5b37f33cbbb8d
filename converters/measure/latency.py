"""Latency: warmed up, interleaved over the candidates, compared in pairs.

Rounds go over the candidates in random order, so that a slow moment of the machine hits all of them; a ratio is taken round
by round, and its interval says whether a difference is one. Rounds come in heats: after each, clear losers are timed no
longer (their rounds so far stay, and pair with the same rounds of the others), and the last heats are for those that
cannot be told apart.

Always true
 1. What is shown, what a budget is held against and what decides between candidates come from the same calls: the ratio of
    two medians as shown is the ratio that a reason names.
 2. Who was dropped early is shown as if it had gone on: its rounds say how it does against the leader in the same rounds,
    and the leader's median is over all of them. A slow moment of the machine is nobody's time.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from converters.judge.select import Ratio
from converters.measure import heats
from edgekit import pairs
from edgekit.tensors import Array

Run = Callable[[Mapping[str, Array]], dict[str, Array]]
WARM_UP_CALLS = 3
# Short calls go on for so long: two of 30 us may both meet what another process does, hundreds of them do not.
WARM_UP_S = 0.01
HEAT_ROUNDS = 12
# Of the first heat, before who is far behind goes.
FIRST_ROUNDS = 4
# After so many a race ends as soon as nobody is in doubt, and after so many in any case.
SURE_ROUNDS, MAX_ROUNDS = 36, 60
# With the heats for those that cannot be told apart.
MOST_ROUNDS = 180
CALLS_A_ROUND = 5
# Of all candidates of a profile together, and as much again where two cannot be told apart; the first heat may take
# longer.
BUDGET_S = 4.0


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds of engine calls; `rounds` are medians of each round, for pairing. Who was dropped has fewer.

    `buckets` are the latencies that this one was put together from, by size. `held` says what held the engine to the
    profile's instruction sets; a time that is not `is_own` is another kind of machine's and only ranks (measure.footing).
    """

    p50_ms: float
    p95_ms: float
    rounds: tuple[float, ...]
    buckets: dict[int, "Latency"] = {}
    held: str = ""
    is_own: bool = True


@dataclass
class _Race:
    runs: Mapping[str, Run]
    feeds: Sequence[Mapping[str, Array]]
    calls_a_round: int
    calls: dict[str, list[list[float]]] = field(default_factory=dict)
    rounds: int = 0
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def heat(self, names: Sequence[str], rounds: int) -> None:
        for _ in range(rounds):
            # Shuffled: who follows whom leaves its mark in the caches, and in threads that still spin.
            for name in (names[index] for index in self.random.permutation(len(names))):
                times = _timed(self.runs[name], self.feeds, self.rounds, self.calls_a_round)
                self.calls.setdefault(name, []).append(times)
            self.rounds += 1

    def latencies(self) -> dict[str, Latency]:
        return beside_leader({name: np.asarray(self.calls[name]) for name in self.runs})


def interleaved(
    runs: Mapping[str, Run],
    feeds: Sequence[Mapping[str, Array]],
    rivals: Collection[str] | None = None,
    *,
    budget_s: float = BUDGET_S,
) -> dict[str, Latency]:
    """Time every candidate on the same feeds; who is no rival (all are by default) gets one heat only, and who is far behind the
    rivals a part of one.

    Raises: EngineError.
    """
    if not runs:
        return {}
    once = sum(warmed(run, feeds) for run in runs.values())
    affordable = budget_s / max(once * HEAT_ROUNDS, 1e-9) - 1
    calls_a_round = int(np.clip(affordable, 1, CALLS_A_ROUND))
    race = _Race(runs, feeds, calls_a_round)
    began = time.perf_counter()
    running = [name for name in runs if rivals is None or name in rivals]
    race.heat(list(runs), FIRST_ROUNDS)
    near = heats.near(_to_leader(race.latencies(), list(runs), running or list(runs)))
    race.heat([name for name in runs if name in near], HEAT_ROUNDS - FIRST_ROUNDS)
    running = [name for name in running if name in near]
    while running and race.rounds < MAX_ROUNDS and time.perf_counter() - began < budget_s:
        ratios = _to_leader(race.latencies(), running)
        if race.rounds >= SURE_ROUNDS and not heats.undecided(ratios):
            break
        going_on = heats.contenders(ratios)
        running = [name for name in running if name in going_on]
        race.heat(running, min(HEAT_ROUNDS, MAX_ROUNDS - race.rounds))
    while running and race.rounds < MOST_ROUNDS and time.perf_counter() - began < 2 * budget_s:
        ratios = _to_leader(race.latencies(), running)
        doubtful = heats.undecided(ratios)
        if not doubtful:
            break
        leaders = {name for name, ratio in ratios.items() if ratio.low == ratio.high == 1}
        running = [name for name in running if name in doubtful | leaders]
        race.heat(running, HEAT_ROUNDS)
    return race.latencies()


def over_buckets(found: Mapping[int, Latency], shares: Mapping[int, float]) -> Latency:
    """One latency for all buckets: medians weighted by the share of samples in each, which is what candidates are compared
    by, and the largest 95th percentile, since a budget holds in every bucket.
    """
    rounds = zip(
        *(np.multiply(found[size].rounds[: _shortest(found)], share) for size, share in shares.items()),
        strict=True,
    )
    return Latency(
        p50_ms=sum(found[size].p50_ms * share for size, share in shares.items()),
        p95_ms=max(each.p95_ms for each in found.values()),
        rounds=tuple(float(sum(each)) for each in rounds),
        buckets=dict(found),
    )


def _shortest(found: Mapping[int, Latency]) -> int:
    return min(len(each.rounds) for each in found.values())


def beside_leader(calls: Mapping[str, NDArray[np.float64]]) -> dict[str, Latency]:
    """Latencies of calls (rounds, calls a round) in milliseconds, each by its rounds beside the leader's: the one with the
    smallest median of those that were timed longest.
    """
    rounds = {name: np.median(times, axis=1) for name, times in calls.items()}
    most = max(map(len, rounds.values()))
    longest = [name for name, medians in rounds.items() if len(medians) == most]
    leader = rounds[min(longest, key=lambda name: float(np.median(rounds[name])))]
    overall = float(np.median(leader))
    found: dict[str, Latency] = {}
    for name, times in calls.items():
        medians = rounds[name]
        p50 = overall * float(np.exp(np.median(np.log(medians) - np.log(leader[: len(medians)]))))
        # How much longer than its median the slow calls take is its own affair, told by its own calls.
        tail = float(np.quantile(times, 0.95) / np.median(times))
        found[name] = Latency(p50, p50 * max(tail, 1.0), tuple(map(float, medians)))
    return found


def _to_leader(
    latencies: Mapping[str, Latency], running: Sequence[str], rivals: Sequence[str] = ()
) -> dict[str, Ratio]:
    """Ratios to the one with the smallest median of the rivals (all that run by default), itself included (exactly 1)."""
    leader = min(rivals or running, key=lambda name: float(np.median(latencies[name].rounds)))
    return {name: ratio(latencies[name], latencies[leader]) for name in running}


def warmed(run: Run, feeds: Sequence[Mapping[str, Array]]) -> float:
    """Seconds of one call: the fastest after the first."""
    found: list[float] = []
    while len(found) < WARM_UP_CALLS or sum(found[1:]) < WARM_UP_S:
        began = time.perf_counter()
        run(feeds[len(found) % len(feeds)])
        found.append(time.perf_counter() - began)
    return min(found[1:])


def ratio(ours: Latency, theirs: Latency, seed: int = 0) -> Ratio:
    """Our time over theirs: median over the rounds that both ran, with its 95 % bootstrap interval."""
    found = pairs.ratio(ours.rounds, theirs.rounds, seed)
    return Ratio(found.low, found.median, found.high)


def shown_ratio(ours: Latency, theirs: Latency) -> Ratio:
    """The ratio of the medians as they are shown, with the interval of the paired rounds."""
    paired = ratio(ours, theirs)
    return Ratio(
        paired.low, float(np.clip(ours.p50_ms / theirs.p50_ms, paired.low, paired.high)), paired.high
    )


def ratios(latencies: Mapping[str, Latency]) -> dict[tuple[str, str], Ratio]:
    return {
        (ours, theirs): shown_ratio(latencies[ours], latencies[theirs])
        for ours in latencies
        for theirs in latencies
        if ours != theirs
    }


def _timed(run: Run, feeds: Sequence[Mapping[str, Array]], number: int, count: int) -> list[float]:
    times: list[float] = []
    # Untimed: brings the model's own data back into the caches, as on a device that runs nothing else.
    run(feeds[number % len(feeds)])
    for call in range(count):
        feed = feeds[(number * count + call) % len(feeds)]
        began = time.perf_counter()
        run(feed)
        times.append((time.perf_counter() - began) * 1000)
    return times
