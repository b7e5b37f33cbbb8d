"""How the devices that were ordered to move have fared, counted from a stage's evidence."""

from collections.abc import Mapping

import msgspec
import numpy as np

from fleet.rules.evalues import Floats
from fleet.rules.evidence import StageEvidence
from fleet.rules.table import Flags, Rows, Table

FIRST_DEVICES = 5


class Tally(msgspec.Struct, frozen=True):
    """`asked` have an order and can be reached, `heard` accepted it, `failures` did not install or left the release again
    while they could be heard, `moving` are reachable and not there yet; `reached` and `not_reached` count by profile.
    `untried` profiles have devices waiting, and nobody of theirs in the stage either reached the release or failed to.
    `silent` are silent now, `fell_silent` are the moments at which devices first did; `entered`, sorted, those from which
    a canary's silence counts: before it accepted its order it is at risk of nothing that the release does. Devices whose failure the operator
    excused are in none of them.
    """

    asked: int
    heard: int
    settled: int
    failures: frozenset[str]
    silent: frozenset[str]
    fell_silent: tuple[float, ...]
    entered: Floats
    control_silent: int
    control_fell_silent: tuple[float, ...]
    first_failures: int
    reached: Mapping[str, int]
    not_reached: Mapping[str, int]
    moving: int
    untried: frozenset[str]

    @property
    def failed(self) -> int:
        return len(self.failures)

    @property
    def lost(self) -> frozenset[str]:
        return self.failures | self.silent


def tally_of(table: Table, rows: Rows, data: StageEvidence) -> Tally:
    is_canary = rows.flag("is_canary")
    ordered, control = is_canary & ~rows.flag("is_excused"), ~is_canary
    installed, is_online = rows["installed"], rows.flag("is_online")
    is_notified = ~np.isnan(rows["notified_at"])
    has_failed = installed == 0
    heard = ordered & (is_notified | has_failed)
    silent_s = np.maximum(
        0.0, data.now - np.maximum(rows["last_report_at"], max(data.heard_since, data.judged_from))
    )
    is_late = silent_s > rows["patience_s"]
    # One that went away in the middle counts as silent, beside the silence of control, and not as a failure.
    failures = heard & has_failed & ~is_late
    at_risk = rows.flag("at_risk")
    is_silent = is_late & at_risk
    # The moment at which its patience first ran out; NaN if that never was.
    moments = np.where(
        np.isnan(rows["fell_silent_at"]) & is_late,
        data.now - (silent_s - rows["patience_s"]),
        rows["fell_silent_at"],
    )
    fell = at_risk & ~np.isnan(moments)
    # Of a device that goes at the very moment of accepting, the next report is missed a window later.
    from_then = rows["notified_at"] + rows["patience_s"] - rows["window_s"]
    counted = ordered & at_risk & is_notified & ~(fell & (moments < from_then))
    profiles = _Profiles(rows)
    tried = profiles.of(heard & (installed >= 0))
    waiting = profiles.of(control & is_online)
    return Tally(
        asked=int((ordered & (is_online | is_notified | has_failed)).sum()),
        heard=int(heard.sum()),
        settled=int((heard & (installed == 1)).sum()) + int(failures.sum()),
        failures=table.names(failures),
        silent=table.names(ordered & is_silent),
        fell_silent=tuple(moments[counted & fell].tolist()),
        entered=np.sort(from_then[counted]),
        control_silent=int((control & is_silent).sum()),
        control_fell_silent=tuple(moments[control & fell].tolist()),
        first_failures=int((failures & (rows["order"] < FIRST_DEVICES)).sum()),
        reached=profiles.counts(heard & (installed == 1)),
        not_reached=profiles.counts(failures),
        moving=int((ordered & (installed < 0) & (is_online | is_notified)).sum()),
        untried=frozenset((profiles.of(ordered) - tried) & waiting),
    )


class _Profiles:
    def __init__(self, rows: Rows) -> None:
        self._names = rows.profiles
        self._index = rows["profile"].astype(int)

    def counts(self, which: Flags) -> dict[str, int]:
        found = np.bincount(self._index[which], minlength=len(self._names)).tolist()
        return {name: count for name, count in zip(self._names, found, strict=True) if count}

    def of(self, which: Flags) -> set[str]:
        return set(self.counts(which))
