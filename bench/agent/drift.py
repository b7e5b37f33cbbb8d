"""False alarms and misses of what a device says of drift, over traffic that is and is not as it was; and the fleet's rule over it.

The traffic, and how a device is played, is in `drift_worlds.py`. Ours is what the agent computes; peers get the same values of
the newest hour: the plain index above 0.2, as it is usually computed, and the two-sample Kolmogorov-Smirnov test at 1 %.

Run:  python bench/agent/drift.py
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from drift_worlds import DAY_WINDOWS, HOUR, KINDS, NONE, Counts, Played, Shift, Values, play
from rich.console import Console
from rich.table import Table

from device_agent.drift import Level
from edgekit import drift as maths
from edgekit.manifest import Histogram
from fleet.rules import drift as fleet_rules


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


HEADINGS = ("shift", "traffic", "after", "now", "drift_psi", "plain PSI > 0.2", "KS p < 1 %")


def rows(shift: Shift, kind: str, found: dict[int, list[Look]]) -> Iterator[tuple[str, ...]]:
    for hour, looks in found.items():
        yield (
            str(shift),
            kind,
            f"{hour} h",
            told([one.ours.now for one in looks]),
            told([one.ours.lasting for one in looks]),
            f"{sum(one.plain > maths.LIMIT for one in looks) / len(looks):.1%}",
            f"{sum(one.ks < 0.01 for one in looks) / len(looks):.1%}",
        )


def shifts_table(devices: int, hours: tuple[int, ...], seed: int) -> Iterator[Table]:
    table = Table(*HEADINGS, title=f"drift: alarms of {devices} devices (in brackets: says 'unknown')")
    for shift in SHIFTS:
        for kind in KINDS:
            found: dict[int, list[Look]] = {hour: [] for hour in hours}
            for one in play(kind, shift, devices=devices, windows=max(hours) * HOUR, seed=seed):
                for hour in hours:
                    found[hour].append(look(one, hour * HOUR))
            for row in rows(shift, kind, found):
                table.add_row(*row)
    yield table


def looks_table(devices: int, seed: int) -> Iterator[Table]:
    """Many looks: what `now` and `drift_psi` say in a second day, every fifth window of it looked at."""
    table = Table(title=f"no drift, 288 looks of a second day, {devices} devices")
    for heading in (
        "traffic",
        "looks: now > 0.2",
        "devices: ever",
        "looks: drift_psi > 0.2",
        "devices: ever ",
    ):
        table.add_column(heading)
    for kind in KINDS:
        every = [
            [one.level(window) for window in range(DAY_WINDOWS + 60, 2 * DAY_WINDOWS + 60, 5)]
            for one in play(kind, NONE, devices=devices, windows=2 * DAY_WINDOWS + 60, seed=seed)
        ]
        row = []
        for said in (
            [[is_alarm(level.now) for level in levels] for levels in every],
            [[is_alarm(level.lasting) for level in levels] for levels in every],
        ):
            row += [f"{np.mean(said):.2%}", f"{np.mean([any(one) for one in said]):.1%}"]
        table.add_row(kind, *row)
    yield table


def delays_table(devices: int, seed: int) -> Iterator[Table]:
    """In how many windows `now` says what began at any window, whatever the spans were when it did."""
    table = Table(
        title=f"windows from a shift to now > 0.2, {devices} devices; it begins 5 to 10 h after the start"
    )
    for heading in ("shift", "traffic", "median", "95 %", "not within 12 h"):
        table.add_column(heading)
    for shift in (Shift(mean=1.0), Shift(mean=2.0)):
        # Where levels follow the sun, what is now is far from the whole day at any time.
        for kind in ("iid", "bursts", "few"):
            rng = np.random.default_rng(seed)
            waits: list[float] = []
            while len(waits) < devices:
                moved = replace(shift, begins=int(rng.integers(300, 600)))
                windows, own = moved.begins + 12 * HOUR, int(rng.integers(2**31))
                waits += [
                    _wait(one, moved.begins)
                    for one in play(kind, moved, devices=5, windows=windows, seed=own)
                ]
            middle, late = np.quantile(waits, [0.5, 0.95], method="higher")
            missed = sum(math.isinf(wait) for wait in waits) / len(waits)
            table.add_row(str(shift), kind, f"{middle:.0f}", f"{late:.0f}", f"{missed:.0%}")
    yield table


def _wait(one: Played, begins: int) -> float:
    alarms = (wait for wait in range(1, 12 * HOUR) if is_alarm(one.level(begins + wait).now))
    return next(alarms, math.inf)


# What the fleet looks at, in hours; and which shifts, from which hour on, at which look.
LOOKED = (48, 60, 72)
CASES = ((Shift(mean=1.0), 48), (Shift(mean=1.0), 60), (Shift(mean=1.0, begins=24 * HOUR), 60),
         (Shift(mean=1.0, begins=24 * HOUR), 72))  # fmt: skip


def chances(one: Played, looked: tuple[int, ...] = LOOKED) -> list[float | None]:
    """The fleet's, at each look, from blocks of an hour: what the device says at the end of each."""
    said = {hour: one.level(hour * HOUR).lasting for hour in range(25, max(looked) + 1)}
    found = []
    for at in looked:
        blocks = [index for hour, index in said.items() if hour <= at and index is not None]
        found.append(fleet_rules.chance(blocks[-fleet_rules.MAX_BLOCKS :]))
    return found


def fleet_tables(devices: int, seed: int) -> Iterator[Table]:
    """Devices without drift, each by itself and as a fleet; and a fleet of which a twentieth drifts."""
    hours = (1, 6, 25, 48)
    alone = Table(*HEADINGS, title=f"no drift: alarms of {devices} devices (in brackets: says 'unknown')")
    fleet = Table(title=f"the fleet's rule over {devices} devices")
    for heading in ("traffic", "shift", "begins", "looked at", "named of them", "named falsely"):
        fleet.add_column(heading)
    for kind in KINDS:
        found: dict[int, list[Look]] = {hour: [] for hour in hours}
        well: list[list[float | None]] = []
        for one in play(kind, NONE, devices=devices, windows=max(LOOKED) * HOUR, seed=seed):
            for hour in hours:
                found[hour].append(look(one, hour * HOUR))
            well.append(chances(one))
        for row in rows(NONE, kind, found):
            alone.add_row(*row)
        for at, hour in enumerate(LOOKED):
            fleet.add_row(kind, "none", "", f"{hour} h", "", str(named([], [one[at] for one in well])[1]))
        drifted = devices // 20
        for shift, hour in CASES:
            played = play(kind, shift, devices=drifted, windows=hour * HOUR, seed=seed + 1)
            moved = [chances(one, (hour,))[0] for one in played]
            right, wrong = named(moved, [one[LOOKED.index(hour)] for one in well[drifted:]])
            begins = f"{shift.begins // HOUR} h"
            fleet.add_row(kind, str(shift), begins, f"{hour} h", f"{right} of {drifted}", str(wrong))
    yield alone
    yield fleet


def named(moved: list[float | None], well: list[float | None]) -> tuple[int, int]:
    """How many the fleet's rule names of each."""
    known = {
        (is_moved, number): chance
        for is_moved, those in ((True, moved), (False, well))
        for number, chance in enumerate(those)
        if chance is not None
    }
    found = fleet_rules.discoveries(known)
    right = sum(is_moved for is_moved, _ in found)
    return right, len(found) - right


SHIFTS = (
    Shift(mean=0.25), Shift(mean=0.5), Shift(mean=1.0), Shift(mean=2.0), Shift(spread=0.5), Shift(spread=1.0)
)  # fmt: skip
PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Table]]] = {
    "fleet": lambda said: fleet_tables(said.devices, said.seed),
    "shifts": lambda said: shifts_table(said.drifted, (1, 6, 25), said.seed + 7),
    "delays": lambda said: delays_table(said.drifted, said.seed),
    "looks": lambda said: looks_table(said.drifted, said.seed + 3),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=1000, help="of the fleet")
    parser.add_argument("--drifted", type=int, default=50, help="devices for each shift")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    chosen = parser.parse_args()
    console = Console(width=110)
    for name in chosen.part or PARTS:
        began = time.process_time()
        for table in PARTS[name](chosen):
            console.print(table)
        console.print(f"{name}: {time.process_time() - began:.0f} s of processor time")


if __name__ == "__main__":
    main()
