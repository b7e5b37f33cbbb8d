"""Whether an engine's float model still computes what the source does.

A wrong operator shows on every input. Rounding does not: some inputs amplify it (a logarithm of next to nothing), and on
those even two runtimes with the same graph differ. So the least difference over a few inputs is what counts.
"""

from collections.abc import Iterator
from itertools import islice

from converters.backends import Prepared
from converters.graph import canonical
from converters.graph.canonical import Feed
from converters.source.source import filled
from edgekit import rows
from edgekit.engines import Model

# Calibration samples that are looked at where the made-up input differs.
SAMPLES = 4


def smallest_gap(prepared: Prepared, model: Model) -> float:
    """Largest |difference| over largest |source output|, on the input where that is least; inputs after the first that
    agrees are not looked at. Raises: EngineError.
    """
    least, sets = float("inf"), prepared.source.sets
    run = rows.fixed(model.run, sets)
    for feed in _feeds(prepared):
        wanted = prepared.source.reference.run(feed)
        least = min(least, canonical.parity([wanted], [rows.aligned(sets, run(feed), wanted)]))
        if least <= canonical.PARITY:
            break
    return least


def _feeds(prepared: Prepared) -> Iterator[Feed]:
    yield {spec.name: filled(spec) for spec in prepared.source.inputs}
    if prepared.calibration:
        yield from islice(prepared.calibration(), SAMPLES)
