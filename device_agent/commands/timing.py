"""Times bundles in turn, on their golden inputs: `python -m device_agent.commands.timing`, a confined child.

Rounds go over the bundles in random order, so that a slow moment of the board hits all of them, and a round's median pairs
with those of the others in the same round. A round ends with the same number of calls for all.
"""

import argparse
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from device_agent import parent
from device_agent.update.selftest import PATIENCE
from device_agent.update.slots import load_checked
from edgekit.errors import EdgeKitError
from edgekit.wire.commands import MAX_ROUNDS

MIN_ROUNDS = 12
CALLS_A_ROUND = 5


class Times(msgspec.Struct, frozen=True):
    """Of one bundle: medians of its rounds and percentiles of all its calls, in milliseconds."""

    rounds_ms: tuple[float, ...]
    p50_ms: float
    p50_low_ms: float
    p50_high_ms: float
    p95_ms: float
    engine: str
    engine_version: str
    threads: int


class Told(msgspec.Struct, frozen=True):
    """`times` in the order of the slots, or why there are none."""

    times: tuple[Times, ...] = ()
    cpu: str = ""
    trouble: str = ""


def measure(slots: Sequence[Path], caches: Sequence[Path], budget_s: float) -> Told:
    """Load all, and time them for `budget_s`, but for `MIN_ROUNDS` in any case."""
    from edgekit import detect

    try:
        racers = [_Racer(slot, cache) for slot, cache in zip(slots, caches, strict=True)]
        chance, began = random.Random(0), time.monotonic()  # noqa: S311  # an order, no secret
        for number in range(MAX_ROUNDS):
            if number >= MIN_ROUNDS and time.monotonic() - began >= budget_s:
                break
            for racer in chance.sample(racers, len(racers)):
                racer.round()
        return Told(tuple(racer.times() for racer in racers), detect.cpu_name())
    except (EdgeKitError, OSError, MemoryError) as error:
        return Told(trouble=str(error) or type(error).__name__)


class _Racer:
    """One loaded bundle, and what its calls took."""

    def __init__(self, slot: Path, cache: Path) -> None:
        """Raises: EdgeKitError, OSError."""
        from edgekit import engines, selftest
        from edgekit.engines import LoadedBundle

        _mark, self._manifest = load_checked(slot)
        self._loaded = LoadedBundle(self._manifest, slot, cache=cache)
        golden = selftest.golden_inputs(self._manifest, slot)
        # One more than is counted: the first brings the model's own data back into the caches.
        self._samples = golden.take(range(min(len(golden), CALLS_A_ROUND + 1)))
        self._version = engines.get(self._manifest.engine.name).version()
        self._calls: list[list[float]] = []
        self._run()

    def _run(self) -> list[float]:
        from edgekit import selftest

        known = self._manifest
        pieces = (known.admitted, known.state, known.preprocess, self._samples)
        return [took for _outputs, took in selftest.iter_samples(self._loaded.run, *pieces)]

    def round(self) -> None:
        times = self._run()
        self._calls.append(times[1:] or times)

    def times(self) -> Times:
        import numpy as np

        from edgekit import pairs

        rounds = [float(np.median(calls)) for calls in self._calls]
        middle = pairs.median(rounds)
        return Times(
            rounds_ms=tuple(round(one, 6) for one in rounds),
            p50_ms=middle.median,
            p50_low_ms=middle.low,
            p50_high_ms=middle.high,
            p95_ms=float(np.quantile([one for calls in self._calls for one in calls], 0.95)),
            engine=self._manifest.engine.name,
            engine_version=self._version,
            threads=self._manifest.engine.threads,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Times bundles in turn; started by 'edgekit agent run'.")
    parser.add_argument("--parent", type=int, required=True, help="the process that this one ends with")
    parser.add_argument("--slot", type=Path, action="append", required=True)
    parser.add_argument("--cache", type=Path, action="append", required=True)
    parser.add_argument("--budget", type=float, required=True, help="seconds")
    chosen = parser.parse_args()
    parent.die_with(chosen.parent)
    os.nice(PATIENCE)
    told = measure(chosen.slot, chosen.cache, chosen.budget)
    sys.stdout.buffer.write(b"\n" + msgspec.json.encode(told))
    sys.stdout.flush()
    # Skips interpreter teardown, where some engines crash after a clean run.
    os._exit(0)


if __name__ == "__main__":
    main()
