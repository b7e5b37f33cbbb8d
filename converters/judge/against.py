"""What candidates are compared with on some samples: the source's answers there, and its side of the draws.

Always true
 1. The source's side is drawn once, the same for every candidate: their differences are paired.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from converters.judge import accuracy
from converters.judge.accuracy import ALONE, Accuracy, Place
from converters.judge.bounds import Own
from converters.judge.metrics import Metric, of_source
from edgekit.tensors import Array

Digest = Mapping[str, Array]


@dataclass(frozen=True)
class Against:
    """The source's digest, labels (or the source's answers), (N, ...), and the sequence of each sample, (N,), if they have
    any. `is_coarse`: by fewer draws, where each is a call of the metric.
    """

    metric: Metric
    digest: Digest
    labels: Array
    sequence: NDArray[np.int64] | None
    seed: int
    is_coarse: bool

    def draw(self) -> None:
        """Now rather than with the first candidate. Raises: DataError, MetricError."""
        self._drawn  # noqa: B018  # made once and kept

    @cached_property
    def _drawn(self) -> Own:
        with of_source():
            return accuracy.resampled(
                self.metric,
                self.digest,
                self.labels,
                sequence=self.sequence,
                seed=self.seed,
                is_coarse=self.is_coarse,
            )

    def compared(
        self,
        candidate: Digest,
        *,
        drawn: Own | None = None,
        place: Place = ALONE,
        is_same_function: bool = False,
    ) -> Accuracy:
        """Figures of a candidate's digest of these samples, of which the draws may be known.

        Raises: DataError if the labels do not fit it, MetricError.
        """
        return accuracy.compare(
            self.metric,
            self.digest,
            candidate,
            self.labels,
            sequence=self.sequence,
            seed=self.seed,
            drawn=self._drawn,
            others=drawn,
            is_coarse=self.is_coarse,
            place=place,
            is_same_function=is_same_function,
        )

    def of(self, rows: NDArray[np.int64]) -> "Against":
        """The same of these samples alone."""
        return replace(
            self,
            digest=taken(self.digest, rows),
            labels=self.labels[rows],
            sequence=None if self.sequence is None else self.sequence[rows],
        )


def taken(digest: Digest, rows: NDArray[np.int64]) -> Digest:
    """A digest of these samples alone."""
    return {name: array[rows] for name, array in digest.items()}
