"""A candidate run in a process of its own, where it can be measured, be told other instructions, or crash.

Always true
 1. The process loads nothing but the candidate's engine, on the footing that the host's candidates are timed on.
 2. It runs the candidate as it is judged, by the same options and threads, unless another way is asked for.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from converters.measure.alone import Job, Memory, peak_memory, run_job
from converters.measure.host import Host, judged_spec
from converters.rounds.candidates import Candidate
from converters.work.workbench import Workbench
from edgekit.manifest import EngineSpec
from edgekit.samples import Samples, dump_npz
from edgekit.tensors import Array


def seen_alone(
    bench: Workbench,
    item: Candidate,
    host: Host,
    environment: Mapping[str, str],
    *,
    samples: Samples,
    spec: EngineSpec,
) -> dict[str, Array]:
    """The candidate's outputs in a process of its own. Raises: ToolFailedError."""
    with TemporaryDirectory(dir=bench.folder) as text:
        folder = Path(text)
        (folder / "samples.npz").write_bytes(dump_npz(samples))
        return run_job(_job(bench, item, spec, folder), folder, {**host.environment, **environment})


def memory_alone(bench: Workbench, item: Candidate, host: Host) -> Memory:
    """What a process takes that loads and runs nothing but the candidate. Raises: ToolFailedError."""
    assert item.artifact is not None
    with TemporaryDirectory(dir=bench.folder) as text:
        folder = Path(text)
        job = _job(bench, item, judged_spec(item.plan, item.artifact, host), folder)
        return peak_memory(job, bench.data.feeds, folder, host.environment)


def _job(bench: Workbench, item: Candidate, spec: EngineSpec, folder: Path) -> Job:
    artifact, source = item.artifact, bench.source
    assert artifact is not None
    return Job(
        folder=str(artifact.folder),
        engine=spec,
        inputs=artifact.bound(source.inputs),
        outputs=artifact.bound(source.outputs, are_outputs=True),
        state=source.state,
        samples=str(folder / "samples.npz"),
        out=str(folder / "out.npz"),
        buckets=artifact.buckets(source.buckets),
        sets=source.sets,
    )
