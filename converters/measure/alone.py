"""Run one model in a fresh process: its peak memory, and its outputs under another instruction set.

    python -m converters.measure.alone JOB.json

loads nothing but the engine, so that the peak is what a device would see (Python and numpy included). The parent
side is `run_job`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from edgekit import engines
from edgekit.errors import ToolFailedError
from edgekit.manifest import Buckets, EngineSpec, StatePair, TensorSpec
from edgekit.samples import Samples, dump_arrays, load_arrays, load_npz
from edgekit.selftest import run_samples
from edgekit.tensors import Array

TIMEOUT_S = 600


class Job(msgspec.Struct, frozen=True):
    """`folder` has the files; `samples` is an `.npz` of engine-ready inputs; outputs go to `out`."""

    folder: str
    engine: EngineSpec
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    state: tuple[StatePair, ...]
    samples: str
    out: str
    buckets: Buckets | None = None


class Seen(msgspec.Struct, frozen=True):
    """`memory_mb` is the peak resident set, in megabytes of 10^6 bytes."""

    outputs: dict[str, Array]
    memory_mb: float


def run_job(job: Job, folder: Path, environment: Mapping[str, str]) -> Seen:
    """Run the job in a child process. Raises: ToolFailedError with what the child said."""
    file = folder / "job.json"
    file.write_bytes(msgspec.json.encode(job))
    done = subprocess.run(
        [sys.executable, "-m", "converters.measure.alone", str(file)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env={**os.environ, **environment},
    )
    if done.returncode != 0:
        told = done.stderr.strip()[-500:] or f"exit code {done.returncode}, without a word"
        raise ToolFailedError(f"{job.engine.model} fails in a process of its own: {told}")
    outputs = load_arrays(Path(job.out))
    return Seen(outputs, float(json.loads(done.stdout.splitlines()[-1])["memory_mb"]))


def main(arguments: Sequence[str]) -> None:
    job = msgspec.json.decode(Path(arguments[0]).read_bytes(), type=Job)
    model = engines.load(Path(job.folder), job.engine, job.inputs, job.outputs, buckets=job.buckets)
    inputs = job.buckets.admitted(job.inputs) if job.buckets else job.inputs
    samples: Samples = load_npz(Path(job.samples), inputs, optional=[pair.input for pair in job.state])
    outputs, _ = run_samples(model.run, inputs, job.state, {}, samples)
    Path(job.out).write_bytes(dump_arrays(outputs))
    sys.stdout.write(json.dumps({"memory_mb": _peak_mb()}) + "\n")


def _peak_mb() -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ToolFailedError("/proc/self/status has no VmHWM; peak memory cannot be read here")


if __name__ == "__main__":
    main(sys.argv[1:])
