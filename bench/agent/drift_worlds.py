"""Traffic of which is known whether it drifts, and what the agent says of it: the devices of `bench/agent/drift.py`.

Every request is a picture of a few values: a level of its own, and noise around it. The reference is built, as a build
does it, from 256 pictures taken at any time of any day. Kinds of traffic without drift:

- iid: each request a picture of its own,
- day: levels follow the sun, and wander (an autoregression of an hour's memory); the reference has all hours of the day,
- bursts: a camera looks at one scene for ten minutes on average, then at another: nearly the same picture again and again,
- few: a request every third minute.

What a device says is computed by the agent's own functions (`device_agent.drift`) over blocks that are cut with numpy; the
first device of each play is also played window by window by the agent's own `Track`, and the bench stops if both differ.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from converters.bundle.reference import histogram
from device_agent import drift as device
from device_agent.drift import Block, Level, Track
from edgekit.manifest import Histogram

Values = NDArray[np.float32]
Counts = NDArray[np.int64]
REQUESTS, PIXELS, SAMPLES = 10, 12, 256
# Of a level's variance (1), what the day and the hour bring; of a pixel, what the level does not.
DAY, WANDER, NOISE = 0.6, 0.2, 0.7
HOUR, DAY_WINDOWS, WINDOW_S = 60, 1440, 60.0
SCENE = 10
KINDS = ("iid", "day", "bursts", "few")
LEVELS = device.levels_of(WINDOW_S)
# Devices with one bundle, that are made at once.
AT_ONCE = 25
# Of each play so many devices are played by the agent's own code too.
CHECKED = 1


@dataclass(frozen=True)
class Shift:
    """What happens to values from window `begins` on: `mean` moves them and `spread` stretches them, both in standard
    deviations of all values.
    """

    mean: float = 0.0
    spread: float = 0.0
    begins: int = 0

    def __call__(self, values: Values) -> None:
        part = values[:, self.begins :]
        part *= 1 + self.spread
        part += self.mean * math.sqrt(1 + NOISE**2)

    def __str__(self) -> str:
        return f"mean {self.mean:g}" if self.mean else f"spread {self.spread:g}" if self.spread else "none"


NONE = Shift()


@dataclass(frozen=True)
class World:
    """One distribution of pictures."""

    rng: np.random.Generator

    def levels(self, kind: str, windows: int, devices: int) -> Values:
        """(devices, windows, requests)."""
        rng = self.rng
        shape = (devices, windows, 1 if kind == "few" else REQUESTS)
        if kind in ("iid", "few"):
            return rng.standard_normal(shape, np.float32)
        if kind == "bursts":
            is_new = rng.random((devices, windows)) < 1 / SCENE
            is_new[:, 0] = True
            scenes = rng.standard_normal((devices, windows), np.float32)
            at = np.maximum.accumulate(np.where(is_new, np.arange(windows), 0), axis=1)
            held = np.take_along_axis(scenes, at, axis=1)
            return held[..., None] + np.float32(0.05) * rng.standard_normal(shape, np.float32)
        own = np.float32(math.sqrt(1 - DAY - WANDER)) * rng.standard_normal(shape, np.float32)
        return self._sun(windows, devices)[..., None] + own

    def _sun(self, windows: int, devices: int) -> Values:
        rng = self.rng
        phase = rng.random((devices, 1))
        cycle = math.sqrt(2 * DAY) * np.sin(2 * np.pi * (np.arange(windows) / DAY_WINDOWS + phase))
        keeps = math.exp(-1 / HOUR)
        wander = rng.normal(size=(devices, windows))
        wander[:, 1:] *= math.sqrt(1 - keeps**2)
        for at in range(1, windows):
            wander[:, at] += keeps * wander[:, at - 1]
        return (cycle + math.sqrt(WANDER) * wander).astype(np.float32)

    def values(self, levels: Values) -> Values:
        """(..., pixels)."""
        values = self.rng.standard_normal((*levels.shape, PIXELS), np.float32)
        values *= np.float32(NOISE)
        values += levels[..., None]
        return values

    def reference(self, kind: str) -> tuple[Histogram, Values]:
        """As a build makes it, of pictures from any time; and their values."""
        if kind == "day":
            times = self.rng.random(SAMPLES)
            levels = math.sqrt(2 * DAY) * np.sin(2 * np.pi * times)
            levels = levels + self.rng.normal(scale=math.sqrt(1 - DAY), size=SAMPLES)
        else:
            levels = self.rng.normal(size=SAMPLES)
        values = self.values(levels.astype(np.float32))
        return histogram(list(values), np.arange(SAMPLES)), values


@dataclass(frozen=True)
class Played:
    """One device: its reference and that one's values; when its windows with traffic were, and their counts and values."""

    reference: Histogram
    known: Values
    at: NDArray[np.int64]
    counts: Counts
    values: Values
    worths: dict[tuple[int, int], float | None] = field(default_factory=dict)

    def level(self, window: int) -> Level:
        """What it says after so many windows."""
        seen = int(np.searchsorted(self.at, window))
        ended_s = window * WINDOW_S
        now = None
        for at in range(LEVELS):
            if seen >> at < device.LEAST_BLOCKS:
                break
            found = device.newest(self.reference, self._blocks(seen, at), self._usual(seen, at))
            if found is not None and found.is_known:
                now = found.index
                break
        # The agent looks at a day when a block of it is full.
        at = device.coarsest(seen, LEVELS)
        full = seen >> at << at
        looked_s = (int(self.at[full - 1]) + 1) * WINDOW_S if full else 0.0
        day = device.whole(self.reference, self._blocks(seen, at), looked_s)
        return Level(now, day, seen, ended_s)

    def _usual(self, seen: int, level: int) -> list[float]:
        """What a value was worth in the last whole spans before the newest block."""
        each = device.MOST_BLOCKS << level
        spans = range(1, ((seen >> level) - 1) // device.MOST_BLOCKS + 1)
        worths = []
        for number in reversed(spans):
            if (number, level) not in self.worths:
                # What it is worth by itself is asked for: whatever was usual.
                found = device.newest(self.reference, self._blocks(number * each, level), ())
                self.worths[number, level] = None if found is None else found.each
            if (worth := self.worths[number, level]) is not None:
                worths.append(worth)
            if len(worths) == device.USUAL:
                break
        return worths

    def _blocks(self, seen: int, level: int) -> list[Block]:
        each = 1 << level
        last = seen >> level
        first = max(0, last - device.MOST_BLOCKS)
        cut = self.counts[first * each : last * each].reshape(last - first, each, -1).sum(axis=1)
        began = self.at[first * each : last * each : each] * WINDOW_S
        return [Block(s, tuple(row)) for s, row in zip(began.tolist(), cut.tolist(), strict=True)]

    def check(self) -> None:
        """That the agent's own code says the same after each whole hour. Raises: SystemExit."""
        track = Track()
        rows = self.counts.tolist()
        for number, at in enumerate(self.at.tolist()):
            track = track.grown(
                self.reference,
                tuple(rows[number]),
                began_s=at * WINDOW_S,
                ended_s=(at + 1) * WINDOW_S,
                levels=LEVELS,
            )
            if (number + 1) % HOUR == 0 and track.level != self.level(at + 1):
                raise SystemExit(f"the agent says {track.level}, the bench {self.level(at + 1)}")


def play(kind: str, shift: Shift, *, devices: int, windows: int, seed: int) -> Iterator[Played]:
    """Devices, each few of them with a bundle of their own: no table hangs on one lucky reference."""
    world = World(np.random.default_rng([seed, KINDS.index(kind)]))
    for begin in range(0, devices, AT_ONCE):
        count = min(AT_ONCE, devices - begin)
        reference, known = world.reference(kind)
        values = world.values(world.levels(kind, windows, count))
        shift(values)
        flat = values.reshape(count, windows, -1)
        counts = counted(flat, reference)
        has_request = world.rng.random((count, windows)) < (1 / 3 if kind == "few" else 1)
        for number in range(count):
            at = np.flatnonzero(has_request[number])
            one = Played(reference, known, at, counts[number, at], flat[number, at])
            if begin + number < CHECKED and shift == NONE:
                one.check()
            yield one


def counted(values: Values, reference: Histogram) -> Counts:
    """(devices, windows, bins) of (devices, windows, values)."""
    assert values.shape[2] < 256, "a byte holds what is counted"
    above = [
        (values >= edge).sum(axis=-1, dtype=np.uint8)
        for edge in np.asarray(reference.edges[1:-1], np.float32)
    ]
    whole = np.full(values.shape[:2], values.shape[2])
    return -np.diff(np.stack([whole, *above, np.zeros_like(whole)], axis=-1).astype(np.int64), axis=-1)
