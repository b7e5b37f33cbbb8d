"""What padding to buckets costs by itself.

Candidates are compared with the source as it answers padded inputs, so that a drop is the candidate's own. Whether the
model takes padding well is another question; this answers it once for a build, with the source alone.
"""

from collections.abc import Callable, Mapping

from converters.judge.metrics import Metric
from edgekit.tensors import Array

Digest = Mapping[str, Array]


def note(metric: Metric, labels: Array, padded: Digest, unpadded: Callable[[], Digest]) -> str:
    """A sentence, from the source's digests of the same samples, padded and as they are."""
    with_padding = metric.of_digest(padded, labels)
    try:
        alone = metric.of_digest(unpadded(), labels)
    except Exception:  # noqa: BLE001  # a model may need a least size, a metric one shape
        return f"the source scores {metric.name} {with_padding:.4f} on padded inputs; unpadded, it could not be scored"
    cost = metric.drop(alone, with_padding)
    return f"padding alone costs the source {cost:+.4f} {metric.name}: {alone:.4f} unpadded, {with_padding:.4f} padded to buckets"
