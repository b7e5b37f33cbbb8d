"""Whole rollouts under the gates: how often a good release is stopped or held up, and how soon a bad one is found.

    python -m bench.fleet.gates [--runs 400] [--seed 1] [--only first-24] [--out gates.json]

Everything is decided by the real rules (`play`), on a fleet that is unkind (`world`). Peers decide on the same devices
(`peers`). Every figure comes with its number of runs; the seed of run k is `seed * 100000 + k`.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from bench.fleet.play import Ending, Wanted, play
from bench.fleet.world import Release, profiles_of

GATES = ("error_rate <= control + 0.5%", "latency_p95 <= 1.1 * control")


@dataclass(frozen=True)
class Case:
    """One line of the table. `goal`: the least share of runs that should end `well` (as `found` or `completed`)."""

    name: str
    wanted: Wanted
    release: Release
    goal: float | None = None
    part: float = 1.0  # of the runs: a large fleet is slow to play


TIGHT = ("error_rate <= control + 0.5%", "latency_p95 <= 1.06 * control")


def _first(canaries: int, n: int, soak: int = 30, gates: tuple[str, ...] = GATES) -> Wanted:
    """Stages are cut per profile and rounded up; the count is asked so that so many devices move, not more."""
    parts = [part for part in np.bincount(profiles_of(n)) if part]
    asked = next(
        c for c in range(canaries, 0, -1) if sum(math.ceil(c / n * part) for part in parts) <= canaries
    )
    return Wanted(n, gates, f"{asked},50%,100%", soak=soak, last_stage=0)


GOOD = Release()
CASES = (
    Case("good, 240 devices, 4 stages", Wanted(240, GATES), GOOD, 0.95),
    Case("good, 240 devices, one accuses", Wanted(240, GATES), Release(hostile="accuses"), 0.95, 0.5),
    Case(
        "good, 240 devices, traffic tells nothing",
        Wanted(240, GATES),
        Release(is_traffic_apart=True),
        0.95,
        0.3,
    ),
    Case(
        "good, 240 devices, one accuses modestly",
        Wanted(240, GATES),
        Release(hostile="accuses modestly"),
        None,
        0.5,
    ),
    Case("good, 1000 devices, 5 stages", Wanted(1000, GATES), GOOD, 0.95, 0.5),
    Case("first-24: +1 point of errors", _first(24, 400), Release(errors=0.01), 0.95),
    Case("first-24: +1 point, one hides", _first(24, 400), Release(errors=0.01, hostile="hides"), 0.95, 0.5),
    Case("first-24: +10 % p95", _first(24, 400), Release(slower=1.10), 0.80),
    Case(
        "first-24: +10 % p95, traffic tells nothing",
        _first(24, 400),
        Release(slower=1.10, is_traffic_apart=True),
        None,
        0.5,
    ),
    Case(
        "first-24: +10 % p95, a fifth more requests",
        _first(24, 400),
        Release(slower=1.10, traffic=1.2),
        None,
        0.5,
    ),
    Case("first-24: +15 % p95", _first(24, 400), Release(slower=1.15), None, 0.5),
    Case("first-24: 20 % crash", _first(24, 400), Release(crashing=0.2, exact_crashes=True), 0.95),
    Case("first-24: each crashes at 20 %", _first(24, 400), Release(crashing=0.2), None, 0.5),
    Case("first-24: each fails at 20 %", _first(24, 400), Release(failing=0.2), None, 0.5),
    Case("first-100: +0.5 point of errors", _first(100, 600), Release(errors=0.005), None, 0.5),
    Case("first-100: +1 point of errors", _first(100, 600), Release(errors=0.01), 0.98, 0.5),
    Case("first-100: +10 % p95", _first(100, 600), Release(slower=1.10), 0.98, 0.5),
    Case("first-100: +10 % p95, gate 1.06", _first(100, 600, gates=TIGHT), Release(slower=1.10), 0.98, 0.5),
    Case("first-100: good, gate 1.06", _first(100, 600, gates=TIGHT), GOOD, 0.95, 0.5),
    Case("first-100: 20 % crash", _first(100, 600), Release(crashing=0.2, exact_crashes=True), 0.98, 0.5),
    Case(
        "5 % profile: +5 points of errors",
        Wanted(1000, GATES, "24,10%,50%,100%", last_stage=2),
        Release(errors=0.05, profile=7),
        0.90,
        0.3,
    ),
    Case(
        "5 % profile: +30 % p95",
        Wanted(1000, GATES, "24,10%,50%,100%", last_stage=2),
        Release(slower=1.3, profile=7),
        0.90,
        0.3,
    ),
)


def _one(job: tuple[int, int]) -> bytes:
    at, seed = job
    case = CASES[at]
    return msgspec.json.encode(play(case.wanted, case.release, seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines = []
    with ProcessPoolExecutor(args.workers) as pool:
        for at, case in enumerate(CASES):
            if not any(part in case.name for part in args.only.split(",")):
                continue
            runs = max(10, round(args.runs * case.part))
            began = time.monotonic()
            jobs = [(at, args.seed * 100_000 + k) for k in range(runs)]
            endings = [msgspec.json.decode(e, type=Ending) for e in pool.map(_one, jobs, chunksize=2)]
            line = summary(case, endings) | {"seed": args.seed, "seconds": round(time.monotonic() - began)}
            lines.append(line)
            print(json.dumps(line), flush=True)
    if args.out:
        args.out.write_text(json.dumps(lines, indent=1))


def summary(case: Case, endings: Iterable[Ending]) -> dict[str, object]:
    """Shares of the runs. `stopped`: rolled back. `held`: paused, so that nobody else got it."""
    endings = list(endings)
    runs = len(endings)
    stopped = sum(e.status in ("rolling_back", "rolled_back") for e in endings)
    held = sum(e.status == "paused" for e in endings)
    is_good = (
        case.release.errors == 0
        and case.release.slower == 1
        and not (case.release.crashing or case.release.failing)
    )
    well = runs - stopped - held if is_good else stopped
    reasons: dict[str, int] = {}
    for ending in endings:
        if ending.reason:
            gate = ending.reason.split(":")[0]
            reasons[gate] = reasons.get(gate, 0) + 1
    met = "" if case.goal is None else "met" if well / runs >= case.goal else "MISSED"
    return {
        "case": case.name,
        "runs": runs,
        "stopped": round(stopped / runs, 4),
        "held": round(held / runs, 4),
        "passed": round(1 - (stopped + held) / runs, 4),
        "goal": case.goal,
        "goal_met": met,
        "exposed": round(sum(e.exposed for e in endings) / runs, 1),
        "windows": round(sum(e.windows for e in endings) / runs, 1),
        "touched": round(sum(e.share_of_touched for e in endings) / runs, 3),
        "reasons": reasons,
        "peers_stopped": {
            name: round(sum(name in e.peers for e in endings) / runs, 3)
            for name in ("fixed", "mann-whitney", "argo")
        },
    }


if __name__ == "__main__":
    main()
