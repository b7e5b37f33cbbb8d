"""A fleet that is unkind on purpose, window by window: what its devices would report under a rollout.

Devices differ in speed, traffic and errors (log-normal), their load wanders (AR(1)), an hour is slower than another
(a shared daily cycle), a new model starts cold, some devices are away by nature and come back, a bad release makes
the devices it hurts most fall silent, and one device may lie. A window is a minute.
"""

import itertools
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgekit.sketch import _LOG_GAMMA, Sketch

PAST_WINDOWS = 60
PROFILES = (0.26, 0.19, 0.15, 0.11, 0.10, 0.08, 0.06, 0.05)
BASE_MS, BASE_ERRORS = 8.0, 0.005
_SAMPLES = 12  # latencies drawn per window at most: a sketch of fewer is noisier, never better
BINS, OFFSET = 900, 300
_AWAY, _BACK = 0.0012, 0.04  # per window: three percent of devices are away at any time
_HOSTILE_REQUESTS = 10**7

Array = NDArray[np.float64]


def profiles_of(n: int) -> NDArray[np.int64]:
    """Each device's profile."""
    return np.repeat(np.arange(len(PROFILES)), np.ceil(np.array(PROFILES) * n).astype(int))[:n]


@dataclass(frozen=True)
class Release:
    """What the new release does to a device that runs it: errors added (a share), latency multiplied, and the share of
    devices that it kills within minutes (`exact_crashes`: exactly that share of those that moved, otherwise each with
    that chance). `profile`: to this one only. `hostile` is how one canary lies, if one does. `failing` is each device's
    chance to go back to the old release at once. `traffic` multiplies the requests that it gets (callers that try
    again); with `is_traffic_apart` the world's requests say nothing of its load.
    """

    errors: float = 0.0
    slower: float = 1.0
    crashing: float = 0.0
    profile: int | None = None
    hostile: str = ""
    exact_crashes: bool = False
    failing: float = 0.0
    traffic: float = 1.0
    is_traffic_apart: bool = False


@dataclass
class Fleet:
    """`n` devices; `step` plays one window in which `on_new` devices run the new release."""

    n: int
    release: Release
    chance: np.random.Generator
    now: int = 0
    log: list[tuple[Array, Array, NDArray[np.int16]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        c, n = self.chance, self.n
        self.profile = profiles_of(n)
        self.level = (
            np.log(BASE_MS) + 0.5 * c.normal(size=n) + 0.3 * c.normal(size=len(PROFILES))[self.profile]
        )
        self.traffic = np.clip(c.lognormal(np.log(8), 0.8, size=n), 1, 150)
        self.error_rate = BASE_ERRORS * c.lognormal(-0.25, 0.7, size=n)
        self.cycle = 0.2 * c.lognormal(0, 0.3, size=n)
        self.start = c.integers(1440)
        self.load = 0.115 * c.normal(size=n)
        self.is_away = c.random(n) < _AWAY / (_AWAY + _BACK)
        self.is_dead = c.random(n) < 0.02  # long ago, and for good
        self.moved_at = np.full(n, -1)
        self.crash_at = np.full(n, -1)
        self.touched = (
            np.ones(n, bool) if self.release.profile is None else self.profile == self.release.profile
        )
        self.susceptible = np.zeros(n, bool)
        self.hostile = -1

    def is_up(self) -> NDArray[np.bool_]:
        return ~(self.is_away | self.is_dead)

    def move(self, devices: NDArray[np.int64]) -> None:
        """These devices run the new release from now on."""
        self.moved_at[devices] = self.now
        own = devices[self.touched[devices]]
        if self.release.exact_crashes:
            # Of all that have moved so far, whatever the batches.
            moved = self.touched & (self.moved_at >= 0)
            due = round(self.release.crashing * int(moved.sum())) - int((self.crash_at >= 0).sum())
            doomed = self.chance.permutation(own)[: max(0, due)]
        else:
            doomed = own[self.chance.random(len(own)) < self.release.crashing]
        self.crash_at[doomed] = self.now + self.chance.integers(1, 8, size=len(doomed))
        if self.release.hostile and self.hostile < 0 and len(devices):
            self.hostile = int(devices[0])

    def revert(self, devices: NDArray[np.int64]) -> None:
        self.moved_at[devices] = -1

    def step(self) -> None:
        """One window: requests, errors and latency bins (n x samples, -1 where there is none) go to `log`."""
        c, n = self.chance, self.n
        hour = np.sin(2 * np.pi * (self.start + self.now) / 1440)
        self.load = 0.9 * self.load + 0.05 * c.normal(size=n)
        is_new = (self.moved_at >= 0) & self.touched
        age = np.where(self.moved_at >= 0, self.now - self.moved_at, 10**6)
        self._come_and_go(is_new)
        busy = np.ones(n) if self.release.is_traffic_apart else np.exp(self.load)
        busy *= np.where(is_new, self.release.traffic, 1.0)
        requests = c.poisson(self.traffic * (1 + 0.5 * hour) * busy).astype(float)
        rate = np.minimum(1.0, self.error_rate * np.exp(2 * self.load) + self.release.errors * is_new)
        errors = c.binomial(requests.astype(int), rate).astype(float)
        cold = 0.4 * np.exp(-age / 1.5)
        centre = self.level + self.cycle * hour + self.load + cold + np.log(self.release.slower) * is_new
        times = centre[:, None] + 0.25 * c.normal(size=(n, _SAMPLES))
        bins = np.clip(np.ceil(times / _LOG_GAMMA), 1 - OFFSET, BINS - OFFSET - 1).astype(np.int16)
        bins[np.arange(_SAMPLES)[None, :] >= requests[:, None]] = -OFFSET
        self._lie(requests, errors, bins)
        up = self.is_up()
        requests[~up], errors[~up] = -1, 0
        bins[~up] = -OFFSET
        self.log.append((requests, errors, bins))
        self.now += 1

    def _come_and_go(self, is_new: NDArray[np.bool_]) -> None:
        c, n = self.chance, self.n
        harm = (8 * self.release.errors + max(0.0, np.log(self.release.slower))) * is_new
        leaving = c.random(n) < _AWAY * (1 + 10 * harm * np.exp(2 * self.load))
        returning = c.random(n) < _BACK
        self.is_away = np.where(self.is_away, ~returning, leaving)
        if self.hostile >= 0:
            self.is_away[self.hostile] = False
        self.is_dead |= (self.crash_at >= 0) & (self.now >= self.crash_at) & (self.moved_at >= 0)

    def _lie(self, requests: Array, errors: Array, bins: NDArray[np.int16]) -> None:
        if self.hostile < 0:
            return
        at = self.hostile
        # One that knows the rules stays within what it may claim.
        claim = 20 * requests[at] if self.release.hostile == "accuses modestly" else _HOSTILE_REQUESTS
        accuses = self.release.hostile != "hides"
        requests[at] = claim
        errors[at] = claim if accuses else 0
        bins[at] = 500 if accuses else -250


class Tally:
    """Running sums of devices over windows, as ingest keeps them."""

    def __init__(self, n: int) -> None:
        self.windows = np.zeros(n, int)
        self.requests = np.zeros(n)
        self.errors = np.zeros(n)
        self.warm = np.zeros(n, int)
        self.bins = np.zeros((n, BINS), np.int32)

    def add(
        self,
        window: tuple[Array, Array, NDArray[np.int16]],
        counted: NDArray[np.bool_],
        warm: NDArray[np.bool_],
    ) -> None:
        requests, errors, bins = window
        counted = counted & (requests >= 0)
        warm = warm & (requests >= 0)
        self.windows += counted
        self.requests += np.where(counted, requests, 0)
        self.errors += np.where(counted, errors, 0)
        self.warm += warm
        rows, columns = np.nonzero((bins > -OFFSET) & warm[:, None])
        np.add.at(self.bins, (rows, bins[rows, columns] + OFFSET), 1)

    def forget(self, device: int) -> None:
        """Its sums begin anew."""
        for sums in (self.windows, self.requests, self.errors, self.warm):
            sums[device] = 0
        self.bins[device] = 0

    def sketches(self) -> list[Sketch]:
        """One per device."""
        rows, columns = np.nonzero(self.bins)
        counts = self.bins[rows, columns].tolist()
        ends = np.searchsorted(rows, np.arange(len(self.bins) + 1)).tolist()
        indices = (columns - OFFSET).tolist()
        return [
            Sketch(dict(zip(indices[a:b], counts[a:b], strict=True)), 0, 1.0, 1e12)
            for a, b in itertools.pairwise(ends)
        ]
