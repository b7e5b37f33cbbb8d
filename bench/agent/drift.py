"""False alarms and misses of what a device says of drift, over traffic that is and is not as it was; and the fleet's rule over it.

Every request is a picture of a few values: a level of its own, and noise around it. The reference is built, as a build
does it, from 256 pictures taken at any time of any day. Kinds of traffic without drift:

- iid: each request a picture of its own,
- day: levels follow the sun, and wander (an autoregression of an hour's memory); the reference has all hours of the day,
- bursts: a camera looks at one scene for ten minutes on average, then at another: nearly the same picture again and again,
- few: a request every third minute.

Ours is what the agent computes, by its own functions (`device_agent.drift`) over blocks that are cut with numpy; the first
devices of each play are also played window by window by the agent's own `Track`, and the bench stops if both differ. Peers get
the same values of the newest hour: the plain index above 0.2, as it is usually computed, and the two-sample
Kolmogorov-Smirnov test at 1 %.  Run:  python bench/agent/drift.py
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from converters.bundle.reference import histogram
from device_agent import drift as device
from device_agent.drift import Block, Level, Track
from edgekit import drift as maths
from edgekit.manifest import Histogram
from fleet.rules import drift as fleet_rules

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
        return f"mean {self.mean:g}" if self.mean else f"spread {self.spread:g}"


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
            if begin + number < CHECKED:
                one.check()
            yield one


def counted(values: Values, reference: Histogram) -> Counts:
    """(devices, windows, bins) of (devices, windows, values)."""
    above = [
        np.count_nonzero(values >= edge, axis=-1)
        for edge in np.asarray(reference.edges[1:-1], np.float32)
    ]
    whole = np.full(values.shape[:2], values.shape[2])
    return -np.diff(np.stack([whole, *above, np.zeros_like(whole)], axis=-1), axis=-1)


@dataclass(frozen=True)
class Look:
    """One device at a moment: what each method says; ours None for unknown."""

    ours: Level
    plain: float
    ks: float


def look(one: Played, window: int) -> Look:
    newest = (one.at >= window - HOUR) & (one.at < window)
    plain = _plain(one.counts[newest].sum(axis=0), one.reference)
    return Look(one.level(window), plain, _ks(one.values[newest].ravel(), one.known.ravel()))


def _plain(counts: Counts, reference: Histogram) -> float:
    """As tutorials have it: each value counts as one, empty bins get half a value."""
    p, q = ((row + 0.5) / (row + 0.5).sum() for row in (counts, np.asarray(reference.counts)))
    return maths.index(p.tolist(), q.tolist())


def _ks(one: Values, other: Values) -> float:
    """The chance of such a distance between two samples (Smirnov's limit)."""
    one, other = np.sort(one), np.sort(other)
    both = np.concatenate([one, other])
    gap = np.abs(
        np.searchsorted(one, both, side="right") / one.size
        - np.searchsorted(other, both, side="right") / other.size
    ).max()
    scaled = float(gap) * math.sqrt(one.size * other.size / (one.size + other.size))
    terms = (2 * (-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, math.fsum(terms))) if scaled > 0.2 else 1.0


def is_alarm(index: float | None) -> bool:
    return index is not None and index > maths.LIMIT


def told(values: list[float | None]) -> str:
    """The share that is above the limit, and in brackets the share that is unknown."""
    n = len(values)
    unknown = sum(value is None for value in values) / n
    return f"{sum(map(is_alarm, values)) / n:.1%}" + (f" ({unknown:.0%} ?)" if unknown else "")


def devices_table(title: str, shifts: tuple[Shift, ...], devices: int, hours: tuple[int, ...], seed: int) -> Table:
    table = Table(title=f"{title}: alarms of {devices} devices (in brackets: says 'unknown')")
    for heading in ("shift", "traffic", "after", "now", "drift_psi", "plain PSI > 0.2", "KS p < 1 %"):
        table.add_column(heading)
    for shift in shifts:
        for kind in KINDS:
            found: dict[int, list[Look]] = {hour: [] for hour in hours}
            windows = shift.begins + max(hours) * HOUR
            for one in play(kind, shift, devices=devices, windows=windows, seed=seed):
                for hour in hours:
                    found[hour].append(look(one, shift.begins + hour * HOUR))
            for hour, looks in found.items():
                table.add_row(
                    "none" if shift == NONE else str(shift),
                    kind,
                    f"{hour} h",
                    told([one.ours.now for one in looks]),
                    told([one.ours.lasting for one in looks]),
                    f"{sum(one.plain > maths.LIMIT for one in looks) / devices:.1%}",
                    f"{sum(one.ks < 0.01 for one in looks) / devices:.1%}",
                )
    return table


def any_time_table(devices: int, seed: int) -> Table:
    """Many looks: what `now` and `drift_psi` say in a second day, every window of it looked at."""
    table = Table(title=f"no drift, each of the 1,440 looks of a second day, {devices} devices")
    for heading in ("traffic", "looks: now > 0.2", "devices: ever", "looks: drift_psi > 0.2", "devices: ever "):
        table.add_column(heading)
    for kind in KINDS:
        every = [
            [one.level(window) for window in range(DAY_WINDOWS, 2 * DAY_WINDOWS)]
            for one in play(kind, NONE, devices=devices, windows=2 * DAY_WINDOWS, seed=seed + 3)
        ]
        row = []
        for said in (
            [[is_alarm(level.now) for level in levels] for levels in every],
            [[is_alarm(level.lasting) for level in levels] for levels in every],
        ):
            row += [f"{np.mean(said):.2%}", f"{np.mean([any(one) for one in said]):.1%}"]
        table.add_row(kind, *row)
    return table


def delays_table(devices: int, seed: int) -> Table:
    """In how many windows `now` says what began at any window, whatever the spans were when it did."""
    table = Table(title=f"windows from a shift to now > 0.2, {devices} devices; it begins 5 to 10 h after the start")
    for heading in ("shift", "traffic", "median", "95 %", "not within 12 h"):
        table.add_column(heading)
    for shift in (Shift(mean=1.0), Shift(mean=2.0)):
        for kind in KINDS:
            rng = np.random.default_rng(seed)
            waits = []
            for _ in range(max(1, devices // AT_ONCE)):
                moved = replace(shift, begins=int(rng.integers(300, 600)))
                windows = moved.begins + 12 * HOUR
                for one in play(kind, moved, devices=AT_ONCE, windows=windows, seed=int(rng.integers(2**31))):
                    waits.append(
                        next(
                            (w for w in range(1, 12 * HOUR) if is_alarm(one.level(moved.begins + w).now)), math.inf
                        )
                    )
            middle, late = np.quantile(waits, [0.5, 0.95], method="higher")
            missed = sum(math.isinf(wait) for wait in waits) / len(waits)
            table.add_row(str(shift), kind, f"{middle:.0f}", f"{late:.0f}", f"{missed:.0%}")
    return table


def fleet_chance(one: Played, hours: int) -> float | None:
    """The fleet's, from blocks of an hour: what the device says at the end of each, the newest it keeps."""
    first = hours - fleet_rules.MAX_BLOCKS
    said = [one.level(hour * HOUR).lasting for hour in range(max(1, first + 1), hours + 1)]
    return fleet_rules.chance([index for index in said if index is not None])


def fleet_table(devices: int, drifted: int, seed: int) -> Table:
    table = Table(title=f"the fleet's rule over {devices} devices")
    for heading in ("traffic", "shift", "begins", "looked at", "named of them", "named falsely"):
        table.add_column(heading)
    cases = (
        (NONE, 48), (NONE, 72), (Shift(mean=1.0), 48), (Shift(mean=1.0), 60),
        (Shift(mean=1.0, begins=24 * HOUR), 60), (Shift(mean=1.0, begins=24 * HOUR), 72),
    )  # fmt: skip
    for kind in KINDS:
        hours = sorted({hour for _, hour in cases})
        # Devices that are well are the same in each case.
        well: dict[int, list[float | None]] = {hour: [] for hour in hours}
        for one in play(kind, NONE, devices=devices, windows=hours[-1] * HOUR, seed=seed):
            for hour in hours:
                well[hour].append(fleet_chance(one, hour))
        for shift, hour in cases:
            moved = (
                []
                if shift == NONE
                else [
                    fleet_chance(one, hour)
                    for one in play(kind, shift, devices=drifted, windows=hour * HOUR, seed=seed + 1)
                ]
            )
            chances = {
                (name, number): chance
                for name, those in (("moved", moved), ("well", well[hour][: devices - len(moved)]))
                for number, chance in enumerate(those)
                if chance is not None
            }
            named = fleet_rules.discoveries(chances)
            table.add_row(
                kind,
                "none" if shift == NONE else str(shift),
                "" if shift == NONE else f"{shift.begins // HOUR} h",
                f"{hour} h",
                f"{sum(name == 'moved' for name, _ in named)} of {len(moved)}" if moved else "",
                str(sum(name == "well" for name, _ in named)),
            )
    return table


SHIFTS = (
    Shift(mean=0.25), Shift(mean=0.5), Shift(mean=1.0), Shift(mean=2.0), Shift(spread=0.5), Shift(spread=1.0)
)  # fmt: skip
PARTS: dict[str, Callable[[argparse.Namespace], Table]] = {
    "none": lambda said: devices_table("no drift", (NONE,), said.devices, (1, 6, 25, 48), said.seed),
    "looks": lambda said: any_time_table(max(AT_ONCE, said.devices // 10), said.seed),
    "shifts": lambda said: devices_table("drift", SHIFTS, said.drifted, (1, 6, 25), said.seed + 7),
    "delays": lambda said: delays_table(said.drifted, said.seed),
    "fleet": lambda said: fleet_table(said.devices, max(1, said.devices // 20), said.seed),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--drifted", type=int, default=100, help="devices for each shift")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    chosen = parser.parse_args()
    console = Console()
    for name in chosen.part or PARTS:
        began = time.process_time()
        console.print(PARTS[name](chosen))
        console.print(f"{name}: {time.process_time() - began:.0f} s of processor time")


if __name__ == "__main__":
    main()
