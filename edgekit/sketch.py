"""A mergeable quantile sketch of positive values with bounded relative error.

Value v falls into bin ceil(log_g(v)) with g = (1+a)/(1-a); the estimate of a bin is 2·g^i/(g+1), within a of v.
Merging adds counts, so windows and devices combine exactly. Plain dicts and `math`: the supervisor, which never
imports numpy, and the fleet both handle it.
Source: Masson, Rim, Lee (2019), "DDSketch", PVLDB 12(12), sections 2.1 and 2.3.
"""

import math
from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

ACCURACY = 0.01
_GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
_LOG_GAMMA = math.log(_GAMMA)
# Below a nanosecond (in ms) nothing is told apart.
SMALLEST = 1e-6

# Of a window decoded from the wire: `SMALLEST` falls into bin -690, a month in milliseconds into bin 1092.
Bin = Annotated[int, Meta(ge=-700, le=1100)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Sum = Annotated[float, Meta(ge=0, le=1e18)]


class Sketch(msgspec.Struct, frozen=True, gc=False):
    """Counts by bin index, the number of values at or below `SMALLEST`, and the exact sum and maximum."""

    bins: dict[Bin, Count] = {}
    zeros: Count = 0
    total: Sum = 0.0
    largest: Sum = 0.0

    @property
    def count(self) -> int:
        return self.zeros + sum(self.bins.values())

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    def log_total(self) -> tuple[float, float]:
        """How many values are above `SMALLEST`, and the sum of their logarithms."""
        logs = math.fsum(n * math.log(middle_of(at)) for at, n in self.bins.items())
        return float(sum(self.bins.values())), logs

    def quantile(self, q: float) -> float | None:
        """The q-quantile (0 ≤ q ≤ 1) within a relative error of `ACCURACY`; None without values."""
        count = self.count
        if not count:
            return None
        rank = q * (count - 1)
        seen = self.zeros
        if rank < seen:
            return 0.0
        for index in sorted(self.bins):
            seen += self.bins[index]
            if rank < seen:
                return min(middle_of(index), self.largest)
        return self.largest


def index_of(value: float) -> int:
    """The bin of a value above `SMALLEST`."""
    return math.ceil(math.log(value) / _LOG_GAMMA)


def middle_of(index: int) -> float:
    """The estimate of the values in a bin."""
    return 2 * _GAMMA**index / (_GAMMA + 1)


def of(values: Iterable[float]) -> Sketch:
    """A sketch of non-negative values."""
    builder = SketchBuilder()
    for value in values:
        builder.add(value)
    return builder.snapshot()


def merge(sketches: Iterable[Sketch]) -> Sketch:
    bins: dict[int, int] = {}
    zeros, total, largest = 0, 0.0, 0.0
    for sketch in sketches:
        for index, count in sketch.bins.items():
            bins[index] = bins.get(index, 0) + count
        zeros += sketch.zeros
        total += sketch.total
        largest = max(largest, sketch.largest)
    return Sketch(bins, zeros, total, largest)


class SketchBuilder:
    """Accumulates one window's values."""

    def __init__(self) -> None:
        self._bins: dict[int, int] = {}
        self._zeros = 0
        self._total = 0.0
        self._largest = 0.0

    def add(self, value: float) -> None:
        """Add a non-negative, finite value."""
        if value <= SMALLEST:
            self._zeros += 1
        else:
            index = index_of(value)
            self._bins[index] = self._bins.get(index, 0) + 1
        self._total += value
        self._largest = max(self._largest, value)

    def snapshot(self) -> Sketch:
        return Sketch(dict(self._bins), self._zeros, self._total, self._largest)
