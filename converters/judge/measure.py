"""Latency: warmed up, interleaved over all candidates, compared in pairs.

Rounds go over the candidates in turn, so that a slow moment of the machine hits all of them; a ratio is taken round
by round, and its interval says whether a difference is one.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from converters.judge.select import Ratio
from edgekit.tensors import Array

Run = Callable[[Mapping[str, Array]], dict[str, Array]]
WARM_UP_CALLS = 3
MIN_ROUNDS = 12
MAX_ROUNDS = 60
CALLS_A_ROUND = 5
# Of all candidates of a profile together; the least number of rounds may take longer.
BUDGET_S = 4.0
RESAMPLES = 1000


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds of engine calls; `rounds` are medians of each round, for pairing."""

    p50_ms: float
    p95_ms: float
    rounds: tuple[float, ...]


def interleaved(runs: Mapping[str, Run], feeds: Sequence[Mapping[str, Array]]) -> dict[str, Latency]:
    """Time every candidate on the same feeds. Raises: EngineError."""
    once = 0.0
    for run in runs.values():
        for index in range(WARM_UP_CALLS):
            began = time.perf_counter()
            run(feeds[index % len(feeds)])
        once += time.perf_counter() - began
    once /= WARM_UP_CALLS
    calls_a_round = int(np.clip(BUDGET_S / max(once * MIN_ROUNDS, 1e-9), 1, CALLS_A_ROUND))
    rounds = int(np.clip(BUDGET_S / max(once * calls_a_round, 1e-9), MIN_ROUNDS, MAX_ROUNDS))
    calls: dict[str, list[list[float]]] = {name: [] for name in runs}
    names = list(runs)
    for number in range(rounds):
        # A different one starts each round: who follows whom leaves its mark in the caches.
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            calls[name].append(_timed(runs[name], feeds, number, calls_a_round))
    return {name: _latency(np.asarray(times)) for name, times in calls.items()}


def ratio(ours: Latency, theirs: Latency, seed: int = 0) -> Ratio:
    """Our time over theirs: median over rounds with its 95 % bootstrap interval."""
    logs = np.log(np.asarray(ours.rounds)) - np.log(np.asarray(theirs.rounds))
    drawn = np.random.default_rng(seed).integers(0, len(logs), (RESAMPLES, len(logs)))
    medians = np.median(logs[drawn], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return Ratio(float(np.exp(low)), float(np.exp(np.median(logs))), float(np.exp(high)))


def ratios(latencies: Mapping[str, Latency]) -> dict[tuple[str, str], Ratio]:
    return {
        (ours, theirs): ratio(latencies[ours], latencies[theirs])
        for ours in latencies
        for theirs in latencies
        if ours != theirs
    }


def _timed(run: Run, feeds: Sequence[Mapping[str, Array]], number: int, count: int) -> list[float]:
    times: list[float] = []
    for call in range(count):
        feed = feeds[(number * count + call) % len(feeds)]
        began = time.perf_counter()
        run(feed)
        times.append((time.perf_counter() - began) * 1000)
    return times


def _latency(times: NDArray[np.float64]) -> Latency:
    p50, p95 = np.quantile(times, [0.5, 0.95])
    return Latency(float(p50), float(p95), tuple(float(value) for value in np.median(times, axis=1)))
