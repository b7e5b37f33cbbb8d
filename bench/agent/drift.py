"""False alarms and misses of what a device says of drift, over traffic that is and is not as it was; and the fleet's rule over it.

Every request is a picture of a few values: a level of its own, and noise around it. The reference is built, as a build
does it, from 256 pictures taken at any time of any day. Kinds of traffic without drift:

- iid: each request a picture of its own,
- day: levels follow the sun, and wander (an autoregression of an hour's memory); the reference has all hours of the day,
- bursts: a camera looks at one scene for ten minutes on average, then at another: nearly the same picture again and again,
- few: a request every third minute.

Ours is what the agent computes (`device_agent.drift`), peers get the same values of the newest hour: the plain index above
0.2, as it is usually computed, and the two-sample Kolmogorov-Smirnov test at 1 %.  Run:  python bench/agent/drift.py
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from converters.bundle.reference import histogram
from device_agent.drift import Track
from edgekit import drift as maths
from edgekit.manifest import Histogram
from fleet.rules import drift as fleet_rules

Values = NDArray[np.float64]
REQUESTS, PIXELS, SAMPLES = 10, 12, 256
# Of a level's variance (1), what the day and the hour bring; of a pixel, what the level does not.
DAY, WANDER, NOISE = 0.6, 0.2, 0.7
HOUR, DAY_WINDOWS = 60, 1440
SCENE = 10
KINDS = ("iid", "day", "bursts", "few")
# What a shift does to values: `size` is in standard deviations of all values.
SHIFTS: dict[str, Callable[[Values, float], Values]] = {
    "mean": lambda values, size: values + size * math.sqrt(1 + NOISE**2),
    "spread": lambda values, size: values * (1 + size),
    "inverted": lambda values, size: np.where(
        values.mean(axis=-1, keepdims=True) > 1 - size, -values, values
    ),
}


@dataclass(frozen=True)
class World:
    """One distribution of pictures; skewed, as pixels are."""

    rng: np.random.Generator

    def levels(self, kind: str, windows: int, devices: int) -> Values:
        """(devices, windows, requests)."""
        rng = self.rng
        if kind in ("iid", "few"):
            return rng.normal(size=(devices, windows, REQUESTS))
        if kind == "bursts":
            is_new = rng.random((devices, windows)) < 1 / SCENE
            is_new[:, 0] = True
            scenes = rng.normal(size=(devices, windows))
            at = np.maximum.accumulate(np.where(is_new, np.arange(windows), 0), axis=1)
            held = np.take_along_axis(scenes, at, axis=1)
            return held[..., None] + rng.normal(scale=0.05, size=(devices, windows, REQUESTS))
        return self._sun(windows, devices)[..., None] + rng.normal(
            scale=math.sqrt(1 - DAY - WANDER), size=(devices, windows, REQUESTS)
        )

    def _sun(self, windows: int, devices: int) -> Values:
        rng = self.rng
        phase = rng.random((devices, 1))
        cycle = math.sqrt(2 * DAY) * np.sin(2 * np.pi * (np.arange(windows) / DAY_WINDOWS + phase))
        keeps = math.exp(-1 / HOUR)
        wander = np.empty((devices, windows))
        wander[:, 0] = rng.normal(size=devices)
        for at in range(1, windows):
            wander[:, at] = keeps * wander[:, at - 1] + math.sqrt(1 - keeps**2) * rng.normal(size=devices)
        return cycle + math.sqrt(WANDER) * wander

    def values(self, levels: Values) -> Values:
        """(..., pixels)."""
        noise = self.rng.normal(scale=NOISE, size=(*levels.shape, PIXELS))
        return levels[..., None] + noise

    def reference(self, kind: str) -> tuple[Histogram, Values]:
        """As a build makes it, of pictures from any time; and their values."""
        if kind == "day":
            times = self.rng.random(SAMPLES)
            levels = math.sqrt(2 * DAY) * np.sin(2 * np.pi * times)
            levels = levels + self.rng.normal(scale=math.sqrt(1 - DAY), size=SAMPLES)
        else:
            levels = self.rng.normal(size=SAMPLES)
        values = self.values(levels)
        return histogram(list(values), np.arange(SAMPLES)), values


@dataclass(frozen=True)
class Look:
    """One device at a moment: what each method says; ours None for unknown."""

    ours: float | None
    now: float | None
    plain: float
    ks: float


def play(
    kind: str, shift: str, size: float, *, devices: int, hours: tuple[int, ...], seed: int, at_once: int = 50
) -> dict[int, list[Look]]:
    """What is said of each device after so many hours; and hourly of what a fleet gets, under 0."""
    world = World(np.random.default_rng(seed))
    found: dict[int, list[Look]] = {hour: [] for hour in hours}
    for begin in range(0, devices, at_once):
        count = min(at_once, devices - begin)
        # Each few devices have a bundle of their own: no table hangs on one lucky reference.
        reference, known = world.reference(kind)
        windows = max(hours) * HOUR
        values = world.values(world.levels(kind, windows, count))
        if shift != "none":
            values = SHIFTS[shift](values, size)
        has_request = np.ones((count, windows), bool)
        if kind == "few":
            values = values[:, :, :1]
            has_request = world.rng.random((count, windows)) < 1 / 3
        counts = _counted(values, reference)
        for device in range(count):
            for hour, look in _looks(
                counts[device], has_request[device], values[device], reference, known, hours
            ):
                found[hour].append(look)
    return found


def _counted(values: Values, reference: Histogram) -> NDArray[np.int64]:
    """(devices, windows, bins)."""
    devices, windows = values.shape[:2]
    bins = len(reference.counts)
    sorted_in = np.searchsorted(
        np.asarray(reference.edges)[1:-1], values.reshape(devices, windows, -1), side="right"
    )
    place = (np.arange(devices * windows).reshape(devices, windows, 1) * bins + sorted_in).ravel()
    return np.bincount(place, minlength=devices * windows * bins).reshape(devices, windows, bins)


def _looks(  # noqa: PLR0917  # one device's, in the order of the others
    counts: NDArray[np.int64],
    has_request: NDArray[np.bool_],
    values: Values,
    reference: Histogram,
    known: Values,
    hours: tuple[int, ...],
) -> list[tuple[int, Look]]:
    track, found = Track(), []
    rows = counts.tolist()
    for window in range(len(rows)):
        if has_request[window]:
            track = track.grown(reference, tuple(rows[window]))
        if (window + 1) % HOUR == 0 and (window + 1) // HOUR in hours:
            level = track.level(reference)
            newest = slice(window + 1 - HOUR, window + 1)
            is_there = has_request[newest]
            plain = _plain(counts[newest][is_there].sum(axis=0), reference)
            ks = _ks(values[newest][is_there].ravel(), known.ravel())
            found.append(((window + 1) // HOUR, Look(level.lasting, level.now, plain, ks)))
    return found


def _plain(counts: NDArray[np.int64], reference: Histogram) -> float:
    """As tutorials have it: each value counts as one, empty bins get half a value."""
    p, q = ((row + 0.5) / (row + 0.5).sum() for row in (counts, np.asarray(reference.counts)))
    return maths.index(p.tolist(), q.tolist())


def _ks(one: Values, other: Values) -> float:
    """The chance of such a distance between two samples (Smirnov's limit)."""
    both = np.concatenate([one, other])
    gap = np.abs(
        np.searchsorted(np.sort(one), both, side="right") / one.size
        - np.searchsorted(np.sort(other), both, side="right") / other.size
    ).max()
    scaled = float(gap) * math.sqrt(one.size * other.size / (one.size + other.size))
    terms = (2 * (-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, math.fsum(terms))) if scaled > 0.2 else 1.0


def shares(looks: list[Look]) -> tuple[float, float, float, float]:
    """Alarms of ours, what ours does not know, alarms of the plain index, of Kolmogorov-Smirnov at 1 %."""
    n = len(looks)
    return (
        sum(look.ours is not None and look.ours > maths.LIMIT for look in looks) / n,
        sum(look.ours is None for look in looks) / n,
        sum(look.plain > maths.LIMIT for look in looks) / n,
        sum(look.ks < 0.01 for look in looks) / n,
    )


def fleet(
    kind: str, shift: str, size: float, *, drifted: int, devices: int, hours: int, seed: int
) -> tuple[int, int]:
    """How many of those that drifted the fleet's rule names, and how many others, when it has had so many hours."""
    every = tuple(range(1, hours + 1))
    well = play(kind, "none", 0.0, devices=devices - drifted, hours=every, seed=seed)
    moved = play(kind, shift, size, devices=drifted, hours=every, seed=seed + 1)
    chances: dict[tuple[str, int], float] = {}
    for name, looks in (("well", well), ("moved", moved)):
        for device in range(len(looks[1])):
            said = [look.ours for hour in every if (look := looks[hour][device]).ours is not None]
            chance = fleet_rules.chance(
                [value for value in said if value is not None][-fleet_rules.MAX_BLOCKS :]
            )
            if chance is not None:
                chances[name, device] = chance
    named = fleet_rules.discoveries(chances)
    return sum(name == "moved" for name, _ in named), sum(name == "well" for name, _ in named)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--drifted", type=int, default=100, help="devices for each shift")
    parser.add_argument("--seed", type=int, default=3)
    chosen = parser.parse_args()
    console, began = Console(), time.monotonic()
    hours = (1, 6, 24)
    table = Table(title=f"no drift: alarms of {chosen.devices} devices (in brackets: ours says 'unknown')")
    for heading in ("traffic", "after", "ours", "plain PSI > 0.2", "KS p < 1 %"):
        table.add_column(heading)
    for kind in KINDS:
        for hour, looks in play(
            kind, "none", 0.0, devices=chosen.devices, hours=hours, seed=chosen.seed
        ).items():
            ours, unknown, plain, ks = shares(looks)
            table.add_row(kind, f"{hour} h", f"{ours:.1%} ({unknown:.0%})", f"{plain:.1%}", f"{ks:.1%}")
    console.print(table)
    table = Table(title=f"drift: alarms of {chosen.drifted} devices (in brackets: ours says 'unknown')")
    for heading in ("shift", "traffic", "after", "ours", "plain PSI > 0.2", "KS p < 1 %"):
        table.add_column(heading)
    for shift, size in (
        ("mean", 0.25),
        ("mean", 0.5),
        ("mean", 1.0),
        ("mean", 2.0),
        ("spread", 0.5),
        ("spread", 1.0),
    ):
        for kind in KINDS:
            found = play(kind, shift, size, devices=chosen.drifted, hours=hours, seed=chosen.seed + 7)
            for hour, looks in found.items():
                ours, unknown, plain, ks = shares(looks)
                table.add_row(
                    f"{shift} {size:g}",
                    kind,
                    f"{hour} h",
                    f"{ours:.0%} ({unknown:.0%})",
                    f"{plain:.0%}",
                    f"{ks:.0%}",
                )
    console.print(table)
    table = Table(title="the fleet's rule: 50 of 1,000 devices drifted")
    for heading in ("traffic", "shift", "after", "named of 50", "named falsely"):
        table.add_column(heading)
    for kind in KINDS:
        found_, false = fleet(kind, "mean", 1.0, drifted=50, devices=1000, hours=36, seed=chosen.seed)
        table.add_row(kind, "mean 1", "36 h", str(found_), str(false))
    console.print(table)
    console.print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
