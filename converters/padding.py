"""What padding to buckets costs by itself.

Candidates are compared with the source as it answers padded inputs, so that a drop is the candidate's own. Whether the
model takes padding well is another question; this answers it once for a build, with the source alone.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it knows this module
    from converters.workbench import Workbench


def note(bench: "Workbench") -> str:
    """A sentence, empty without buckets or labels: answers of other shapes cannot be compared."""
    if bench.source.buckets is None or not bench.metric.by_labels:
        return ""
    padded = bench.metric.of_digest(bench.reference.digest, bench.labels)
    try:
        digest = bench.digest(bench.source.by_size[-1].reference, bench.data.judged)
        unpadded = bench.metric.of_digest(digest, bench.labels)
    except Exception:  # noqa: BLE001  # a model may need a least size, a metric one shape
        return f"the source scores {bench.metric.name} {padded:.4f} on padded inputs; unpadded, it could not be scored"
    cost = bench.metric.drop(unpadded, padded)
    return f"padding alone costs the source {cost:+.4f} {bench.metric.name}: {unpadded:.4f} unpadded, {padded:.4f} padded to buckets"
