"""The self-test's data in a bundle: raw golden inputs, and what source and artifact made of them."""

from converters.work.findings import Evaluated
from converters.work.workbench import Workbench
from edgekit.samples import Samples, dump_arrays, dump_npz
from edgekit.selftest import record

INPUTS = "selftest/inputs.npz"
SOURCE = "selftest/source.npz"
ARTIFACT = "selftest/artifact.npz"


def files(bench: Workbench, evaluated: Evaluated) -> dict[str, bytes]:
    """Members of the bundle by path."""
    inputs = bench.data.judged.take(bench.data.golden)
    return {
        INPUTS: dump_npz(Samples(inputs.inputs, sequence=inputs.sequence)),
        SOURCE: dump_arrays(record(bench.reference.golden)),
        ARTIFACT: dump_arrays(record(evaluated.golden)),
    }


def size_bytes(bench: Workbench, evaluated: Evaluated) -> int:
    return sum(len(data) for data in files(bench, evaluated).values())
