"""Time candidates against each other in a process of their own: an engine that crashes there costs its candidate.

    python -m converters.measure.race FOLDER

loads nothing but the engines. The parent side is `run_race`.

Always true
 1. All that are compared with each other are timed in one process, in turns; nothing of an earlier race is left in it.
 2. Whose engine refuses, or was at work when the process died, is out with the reason; the others race anew.
"""

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from converters.measure import heats, latency
from converters.measure.latency import Latency, Run
from converters.recipes.recipes import Loading
from edgekit import engines
from edgekit.engines import Model
from edgekit.errors import EngineError, ToolFailedError
from edgekit.manifest import EngineSpec, TensorSpec
from edgekit.samples import Samples, dump_npz
from edgekit.tensors import Array

TIMEOUT_S = 900
# Of a dead process's last words, characters.
_LAST_WORDS = 200
_RACE, _FEEDS, _FOUND, _AT_WORK = "race.json", "feeds.npz", "found.json", "at-work"
# What stands in `_AT_WORK` while no candidate is.
_NOBODY = 0xFFFF


class Runner(msgspec.Struct, frozen=True):
    """A model and how its engine loads it; `way_of` names the runner whose model this is, to be run in another way."""

    name: str
    model: str
    engine: EngineSpec
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    way_of: str = ""


class _Race(msgspec.Struct, frozen=True):
    runners: tuple[Runner, ...]
    rivals: tuple[str, ...]
    budget_s: float


class _Found(msgspec.Struct, frozen=True):
    """Latencies by name; or the one whose engine refused, and what it said."""

    latencies: dict[str, Latency] = {}
    refused: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Timing:
    """Latencies of those that could be timed, and why the others could not. `ways` are the other ways in which each may be
    loaded, by the names that their times have. Of those whose time is that of another way, `settled` has which, and the time
    in their own.
    """

    latencies: dict[str, Latency]
    failures: dict[str, str]
    ways: Mapping[str, Mapping[str, Loading]] = field(default_factory=dict)
    settled: dict[str, tuple[Loading, Latency]] = field(default_factory=dict)


def run_race(
    runners: Sequence[Runner],
    feeds: Sequence[Mapping[str, Array]],
    rivals: Collection[str],
    folder: Path,
    *,
    budget_s: float,
    environment: Mapping[str, str] | None = None,
) -> Timing:
    """Time the runners on the same feeds; who is no rival gets the first rounds only, and other ways are timed of those
    that may win by them. `environment` is added to the timing process's.

    Raises: ToolFailedError if the process dies while no candidate is at work.
    """
    folder.mkdir(exist_ok=True)
    samples = Samples({name: np.stack([feed[name] for feed in feeds]) for name in feeds[0]})
    (folder / _FEEDS).write_bytes(dump_npz(samples))
    failures: dict[str, str] = {}
    while running := tuple(item for item in runners if not {item.name, item.way_of} & {*failures}):
        found = _raced(_Race(running, tuple(rivals), budget_s), folder, environment or {})
        if not found.refused:
            return Timing(found.latencies, failures)
        failures[found.refused] = found.reason
    return Timing({}, failures)


def _raced(race: _Race, folder: Path, environment: Mapping[str, str]) -> _Found:
    """Raises: ToolFailedError."""
    (folder / _RACE).write_bytes(msgspec.json.encode(race))
    (folder / _AT_WORK).write_bytes(_NOBODY.to_bytes(2, "little"))
    (folder / _FOUND).unlink(missing_ok=True)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "converters.measure.race", str(folder)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
            env={**os.environ, **environment},
        )
    except subprocess.TimeoutExpired:
        return _blamed(race, folder, f"nothing came within {TIMEOUT_S} s")
    if done.returncode == 0 and (folder / _FOUND).exists():
        return msgspec.json.decode((folder / _FOUND).read_bytes(), type=_Found)
    return _blamed(race, folder, f"the process died: {_cause(done)}")


def _blamed(race: _Race, folder: Path, cause: str) -> _Found:
    number = int.from_bytes((folder / _AT_WORK).read_bytes(), "little")
    if number >= len(race.runners):
        raise ToolFailedError(f"latencies cannot be measured: {cause}")
    return _Found(refused=race.runners[number].name, reason=f"cannot be timed: {cause}")


def _cause(done: subprocess.CompletedProcess[str]) -> str:
    code = done.returncode
    cause = f"exit code {code}" if code >= 0 else f"signal {-code}, {signal.Signals(-code).name}"
    words = done.stderr.strip().splitlines()
    return f"{cause}: {words[-1][-_LAST_WORDS:]}" if words else cause


def main(arguments: Sequence[str]) -> None:
    folder = Path(arguments[0])
    race = msgspec.json.decode((folder / _RACE).read_bytes(), type=_Race)
    with np.load(folder / _FEEDS, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    count = len(next(iter(arrays.values())))
    feeds = [{name: array[index, ...] for name, array in arrays.items()} for index in range(count)]
    with (folder / _AT_WORK).open("r+b") as file, mmap.mmap(file.fileno(), 2) as place:
        found = _found(race, feeds, _Announced(place))
    (folder / _FOUND).write_bytes(msgspec.json.encode(found))


@dataclass
class _Announced:
    """Says which runner is at work, in memory that outlives the process: no system call disturbs what is timed."""

    place: mmap.mmap
    number: int = _NOBODY

    def at(self, number: int) -> None:
        self.number = number
        self.place[:] = number.to_bytes(2, "little")

    def running(self, number: int, run: Run) -> Run:
        def announced(feed: Mapping[str, Array]) -> dict[str, Array]:
            if self.number != number:
                self.at(number)
            return run(feed)

        return announced


def _found(race: _Race, feeds: Sequence[Mapping[str, Array]], announced: _Announced) -> _Found:
    models: dict[int, Model] = {}
    runs: dict[str, Run] = {}

    def load(number: int, runner: Runner) -> float:
        announced.at(number)
        models[number] = _loaded(runner)
        runs[runner.name] = announced.running(number, models[number].run)
        return latency.warmed(runs[runner.name], feeds)

    try:
        once = {
            runner.name: load(number, runner)
            for number, runner in enumerate(race.runners)
            if not runner.way_of
        }
        worth = heats.worth_other_ways(once, race.rivals)
        for number, runner in enumerate(race.runners):
            if runner.way_of not in worth:
                continue
            if load(number, runner) > heats.HOPELESS * once[runner.way_of]:
                del runs[runner.name]
                models.pop(number).close()
        rivals = {runner.name for runner in race.runners if {runner.name, runner.way_of} & {*race.rivals}}
        latencies = latency.interleaved(runs, feeds, rivals, budget_s=race.budget_s)
        for number, model in models.items():
            announced.at(number)
            model.close()
    except EngineError as error:
        reason = f"cannot be timed: {error}"
        return _Found(refused=race.runners[announced.number].name, reason=reason)
    announced.at(_NOBODY)
    return _Found(latencies)


def _loaded(runner: Runner) -> Model:
    load = engines.get(runner.engine.name).load
    return load(Path(runner.model), runner.engine, runner.inputs, runner.outputs, None)


if __name__ == "__main__":
    main(sys.argv[1:])
