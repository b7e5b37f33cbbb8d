"""Run one model in a fresh process: its peak memory, or its outputs under another instruction set.

    python -m converters.measure.alone JOB.json

loads nothing but the engine. The parent side is `peak_memory` and `run_job`.

What counts as memory is the peak resident set of a process that has Python, numpy, one engine and one model, and runs a few
samples, one at a time: what the agent's worker takes on a device. Samples are read one by one and no output is kept, so
that neither their number nor that of the outputs is in the figure. What the process had before it loaded the engine is told
beside it, since a device that does not serve by Python saves that.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from edgekit import engines, rows
from edgekit.engines import Model
from edgekit.errors import ToolFailedError
from edgekit.manifest import Buckets, EngineSpec, StatePair, TensorSpec
from edgekit.rowset import RowSet
from edgekit.samples import Samples, dump_arrays, load_arrays, load_npz
from edgekit.selftest import run_samples
from edgekit.tensors import Array

TIMEOUT_S = 600
# Engines have all that they will take after a few calls; of a model with buckets, the smallest and the largest are among
# them.
MEMORY_SAMPLES = 4


class Job(msgspec.Struct, frozen=True):
    """`folder` has the files; `samples` is an `.npz` of engine-ready inputs, whose outputs go to `out`. With `feeds`, files of
    one sample each, memory is measured and nothing written.
    """

    folder: str
    engine: EngineSpec
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    state: tuple[StatePair, ...]
    samples: str
    out: str
    buckets: Buckets | None = None
    feeds: tuple[str, ...] = ()
    sets: tuple[RowSet, ...] = ()


class Memory(msgspec.Struct, frozen=True):
    """Resident sets in megabytes of 10^6 bytes: the peak of the process, and what it had before it loaded the engine."""

    peak_mb: float
    base_mb: float


def run_job(job: Job, folder: Path, environment: Mapping[str, str]) -> dict[str, Array]:
    """The outputs, from a child process. Raises: ToolFailedError with what the child said."""
    _run(job, folder, environment)
    return load_arrays(Path(job.out))


def peak_memory(
    job: Job, feeds: Sequence[Mapping[str, Array]], folder: Path, environment: Mapping[str, str]
) -> Memory:
    """What a child process takes that runs a few of the feeds. Raises: ToolFailedError with what the child said."""
    chosen = np.unique(np.linspace(0, len(feeds) - 1, min(MEMORY_SAMPLES, len(feeds))).astype(int))
    files = [folder / f"feed-{index}.npz" for index in chosen]
    for index, file in zip(chosen, files, strict=True):
        np.savez(file, **feeds[index])
    told = _run(msgspec.structs.replace(job, feeds=tuple(map(str, files))), folder, environment)
    return msgspec.json.decode(told, type=Memory)


def _run(job: Job, folder: Path, environment: Mapping[str, str]) -> str:
    """The child's last line. Raises: ToolFailedError."""
    file = folder / "job.json"
    file.write_bytes(msgspec.json.encode(job))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "converters.measure.alone", str(file)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            env={**os.environ, **environment},
        )
    except subprocess.TimeoutExpired as error:
        raise ToolFailedError(
            f"{job.engine.model} runs for more than {TIMEOUT_S} s in a process of its own"
        ) from error
    if done.returncode != 0:
        told = done.stderr.strip()[-500:] or f"exit code {done.returncode}, without a word"
        raise ToolFailedError(f"{job.engine.model} fails in a process of its own: {told}")
    return done.stdout.splitlines()[-1] if done.stdout else ""


def main(arguments: Sequence[str]) -> None:
    job = msgspec.json.decode(Path(arguments[0]).read_bytes(), type=Job)
    base_mb = _peak_mb()
    model = engines.load(Path(job.folder), job.engine, job.inputs, job.outputs, buckets=job.buckets)
    if job.feeds:
        for file in job.feeds:
            _run_once(model, file)
        sys.stdout.write(json.dumps({"peak_mb": _peak_mb(), "base_mb": base_mb}) + "\n")
        return
    inputs = job.buckets.admitted(job.inputs) if job.buckets else job.inputs
    samples: Samples = load_npz(Path(job.samples), inputs, optional=[pair.input for pair in job.state])
    outputs, _ = run_samples(rows.fixed(model.run, job.sets), inputs, job.state, {}, samples)
    Path(job.out).write_bytes(dump_arrays(outputs))


def _run_once(model: Model, file: str) -> None:
    """One sample; neither it nor its outputs outlive the call."""
    with np.load(file, allow_pickle=False) as archive:
        model.run({name: archive[name] for name in archive.files})


def _peak_mb() -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ToolFailedError("/proc/self/status has no VmHWM; peak memory cannot be read here")


if __name__ == "__main__":
    main(sys.argv[1:])
