"""The evidence of a played fleet as columns at once, so that a rollout is judged at every window of thousands of runs.

`fleet.rules.table` reads records, a device at a time; here the same columns come from the tally's arrays. A test plays
both and requires the same numbers (`tests/fleet/test_bench_gates`).
"""

from collections.abc import Sequence

import numpy as np

from bench.fleet.world import BINS, OFFSET, Tally
from edgekit.sketch import middle_of
from fleet.rules.evalues import Floats
from fleet.rules.evidence import StageEvidence
from fleet.rules.gates import Gate
from fleet.rules.table import COLUMNS, PER_GATE, Flags, Rows, Table, Tables

_LEVELS = np.log([max(middle_of(at - OFFSET), 1e-9) for at in range(BINS)])


class Columns(StageEvidence, frozen=True):
    """Evidence that is columns already; `matrix` is as wide as the table's for `gates`."""

    matrix: object = None
    names: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()


class ColumnTable(Table):
    """Reads `Columns`."""

    def __init__(self, gates: Sequence[Gate]) -> None:
        super().__init__(gates)
        self._names: tuple[str, ...] = ()

    def read(self, data: StageEvidence) -> Rows:
        assert isinstance(data, Columns)
        assert isinstance(data.matrix, np.ndarray)
        self._names = data.names
        return Rows(self._gates, data.matrix, data.profiles)

    def names(self, which: Flags) -> frozenset[str]:
        return frozenset(self._names[at] for at in np.nonzero(which)[0].tolist())


class ColumnTables(Tables):
    """The rules' own tables, and those of `Columns`."""

    def of(self, gates: Sequence[Gate], data: StageEvidence) -> Table:
        return ColumnTable(gates) if isinstance(data, Columns) else super().of(gates, data)


def quantiles(tally: Tally, q: float) -> tuple[Floats, Floats]:
    """Each device's log quantile (NaN without values) and count; like `Sketch.quantile`."""
    below = tally.bins.cumsum(axis=1, dtype=np.int32)
    count = below[:, -1].astype(float)
    at = (below <= (q * (count - 1))[:, None]).sum(axis=1)
    return np.where(count > 0, _LEVELS[np.minimum(at, BINS - 1)], np.nan), count


def matrix(
    gates: Sequence[Gate],
    common: dict[str, Floats | Flags],
    tally: Tally,
    past: "Past",
) -> Floats:
    """`common` has every column that is not a sum."""
    made = np.zeros((len(tally.windows), len(COLUMNS) + PER_GATE * len(gates)))
    sums: dict[str, Floats | Flags] = {
        "windows": tally.windows,
        "requests": tally.requests,
        "errors": tally.errors,
        "past_windows": past.windows,
        "past_requests": past.requests,
        "past_errors": past.errors,
    }
    for at, name in enumerate(COLUMNS):
        made[:, at] = sums[name] if name in sums else common[name]
    for place, gate in enumerate(gates):
        at = len(COLUMNS) + PER_GATE * place
        if gate.about.kind == "share":
            made[:, at : at + 4] = np.stack(
                [tally.errors, tally.requests, past.errors, past.requests], axis=1
            )
        elif gate.about.kind == "ratio":
            assert gate.reference, "only comparisons are played"
            assert gate.about.quantile is not None, "only quantiles are played"
            now = quantiles(tally, gate.about.quantile)
            made[:, at : at + 4] = np.stack([*now, *past.quantiles(gate.about.quantile)], axis=1)
    return made


class Past:
    """Devices' last windows on the old release, kept from when it was left."""

    def __init__(self, n: int) -> None:
        self.windows, self.requests, self.errors = np.zeros(n), np.zeros(n), np.zeros(n)
        self._quantiles: dict[float, tuple[Floats, Floats]] = {}
        self._n = n

    def renew(self, tally: Tally, which: Flags, quantile: float = 0.95) -> None:
        self.windows = np.where(which, tally.windows, self.windows)
        self.requests = np.where(which, tally.requests, self.requests)
        self.errors = np.where(which, tally.errors, self.errors)
        level, count = quantiles(tally, quantile)
        old = self._quantiles.get(quantile, (np.full(self._n, np.nan), np.zeros(self._n)))
        self._quantiles[quantile] = (np.where(which, level, old[0]), np.where(which, count, old[1]))

    def quantiles(self, quantile: float) -> tuple[Floats, Floats]:
        return self._quantiles[quantile]
