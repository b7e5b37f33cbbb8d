"""A stage's evidence as columns, so that a tick over a hundred thousand devices reads what is new and adds up the rest.

Always true
 1. A row says what its device's record says: a record that is another object than before is read again.
 2. The order of rows is that of the evidence.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgekit.sketch import Sketch, index_of, middle_of
from fleet.rules.evalues import Floats
from fleet.rules.evidence import Arm, DeviceEvidence, StageEvidence, Sums
from fleet.rules.gates import Gate

Flags = NDArray[np.bool_]
# What every gate may need; then, for each gate: value, weight, past value, past weight (NaN where there is none).
COLUMNS = (
    "is_canary",
    "at_risk",
    "is_excused",
    "windows",
    "requests",
    "errors",
    "past_windows",
    "past_requests",
    "past_errors",
    "last_report_at",
    "patience_s",
    "fell_silent_at",
    "notified_at",
    "window_s",
    "installed",
    "order",
    "is_online",
    "is_fresh",
    "profile",
)
_AT = {name: place for place, name in enumerate(COLUMNS)}
PER_GATE = 4
_NOTHING = Sums()


class Rows:
    """Some of a table's devices. `profile` are indices into `profiles`; `installed` is 1, 0, or -1 on the way."""

    def __init__(self, gates: Sequence[Gate], matrix: Floats, profiles: Sequence[str]) -> None:
        self._places = {gate.text: len(COLUMNS) + PER_GATE * at for at, gate in enumerate(gates)}
        self._gates = gates
        self.matrix = matrix
        self.profiles = profiles

    def __len__(self) -> int:
        return len(self.matrix)

    def __getitem__(self, name: str) -> Floats:
        return self.matrix[:, _AT[name]]

    def flag(self, name: str) -> Flags:
        return self[name] > 0

    def of(self, gate: Gate) -> tuple[Floats, Floats, Floats, Floats]:
        """The gate's value, weight, past value and past weight."""
        at = self._places[gate.text]
        return tuple(self.matrix[:, at + k] for k in range(PER_GATE))  # type: ignore[return-value]  # four of them

    def take(self, which: Flags) -> "Rows":
        return Rows(self._gates, self.matrix[which], self.profiles)

    def beside(self, other: "Rows") -> "Rows":
        """These and the others, of the same table."""
        return Rows(self._gates, np.concatenate([self.matrix, other.matrix]), self.profiles)


class Table:
    """The columns of one stage's evidence under these gates; `read` brings them up to date."""

    def __init__(self, gates: Sequence[Gate]) -> None:
        self._gates = tuple(gates)
        self._seen: list[DeviceEvidence] = []
        self._width = len(COLUMNS) + PER_GATE * len(self._gates)
        self.matrix = np.zeros((0, self._width))
        self._profiles: dict[str, int] = {}

    def read(self, data: StageEvidence) -> Rows:
        present = list(data.devices.values())
        known = len(self._seen)
        changed = [at for at, device in enumerate(present) if at >= known or self._seen[at] is not device]
        if len(present) != known:
            matrix = np.zeros((len(present), self._width))
            common = min(known, len(present))
            matrix[:common] = self.matrix[:common]
            self.matrix = matrix
        if changed:
            self.matrix[changed] = [self._row(present[at], at) for at in changed]
        self._seen = present
        return Rows(self._gates, self.matrix, tuple(self._profiles))

    def names(self, which: Flags) -> frozenset[str]:
        return frozenset(self._seen[at].device for at in np.nonzero(which)[0].tolist())

    def _row(self, device: DeviceEvidence, at: int) -> list[float]:
        past = device.past or _NOTHING
        # A past stays as it was when the stage opened, and its quantiles are dear.
        before = self.matrix[at] if at < len(self._seen) and self._seen[at].past is device.past else None
        row = [
            device.arm is Arm.CANARY,
            device.at_risk,
            device.is_excused,
            device.windows,
            device.requests,
            device.errors,
            past.windows,
            past.requests,
            past.errors,
            device.last_report_at,
            device.patience_s,
            math.nan if device.fell_silent_at is None else device.fell_silent_at,
            math.nan if device.notified_at is None else device.notified_at,
            device.window_s,
            -1 if device.installed is None else device.installed,
            math.inf if device.order is None else device.order,
            device.is_online,
            device.is_fresh,
            self._profiles.setdefault(device.profile, len(self._profiles)),
        ]
        for place, gate in enumerate(self._gates):
            row += _now(gate, device)
            if before is None or not gate.reference:
                row += _before(gate, device, past)
            else:
                own = len(COLUMNS) + PER_GATE * place
                row += before[own + 2 : own + 4].tolist()
        return row


def _now(gate: Gate, device: DeviceEvidence) -> tuple[float, float]:
    """The gate's value and weight."""
    about = gate.about
    if about.kind == "level":
        now = device.metrics.get(gate.metric)
        return (now.mean, now.count) if now is not None else (math.nan, 0)
    if about.kind == "share":
        return device.errors, device.requests
    if about.kind == "count":
        return 0.0, 0.0
    if not gate.reference:
        edge = index_of(gate.limit) if gate.limit > 0 else -(10**9)
        return sum(count for at, count in device.sketch.bins.items() if at > edge), device.sketch.count
    return _log_level(device.sketch, about.quantile), device.sketch.count


def _before(gate: Gate, device: DeviceEvidence, past: Sums) -> tuple[float, float]:
    """The gate's past value and past weight; of a latency with a number as its limit its quantile now."""
    about = gate.about
    if about.kind == "level":
        before = past.metrics.get(gate.metric)
        return (before.mean, before.count) if before is not None else (math.nan, 0)
    if about.kind == "share":
        return past.errors, past.requests
    if about.kind == "count":
        return 0.0, 0.0
    if not gate.reference:
        return _log_level(device.sketch, about.quantile), 0.0
    return _log_level(past.infer_ms, about.quantile), past.infer_ms.count


def _log_level(sketch: Sketch, quantile: float | None) -> float:
    """The logarithm of a quantile, or the mean logarithm; NaN without values."""
    if not (sketch.bins or sketch.zeros):
        return math.nan
    if quantile is not None:
        return math.log(max(sketch.quantile(quantile) or 0.0, 1e-9))
    return math.fsum(n * math.log(middle_of(at)) for at, n in sketch.bins.items()) / max(1, sketch.count)


class Tables:
    """A table for each stage that is judged, kept from tick to tick; the least recently judged goes first."""

    def __init__(self, most: int = 32) -> None:
        self._most = most
        self._known: dict[tuple[int, tuple[str, ...]], tuple[object, Table]] = {}

    def of(self, gates: Sequence[Gate], data: StageEvidence) -> Table:
        key = (id(data.devices), tuple(gate.text for gate in gates))
        found = self._known.pop(key, None)
        if found is None or found[0] is not data.devices:
            found = (data.devices, Table(gates))
        self._known[key] = found
        while len(self._known) > self._most:
            self._known.pop(next(iter(self._known)))
        return found[1]
