"""Reports, added up as they come.

Always true
 1. A report counts once: its unique key is inserted in the same transaction as what it adds to the sums.
 2. Only sums are kept: one row per device and bundle (`totals`), one per device and open stage (`stage_sums`), and the
    past by intervals (`history`).
 3. A device's row is locked by the caller before any of its sums are read.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Row, delete, select

from edgekit.sketch import Sketch, merge
from edgekit.wire.messages import DeploymentWindow, Report
from fleet.api.history import ArmName
from fleet.rules import links
from fleet.rules import sums as rules
from fleet.rules.evidence import COLD_WINDOWS, Sums
from fleet.rules.history import DeviceSums, Gauges
from fleet.rules.sums import Deaf, Recent, Side, StageSums, Work
from fleet.server.clock import Now
from fleet.server.schema import members, reports, stage_sums, totals
from fleet.server.store import devices, experiments, history, rollouts, shadows
from fleet.server.store.known import Known
from fleet.server.store.members import parts_of
from fleet.server.store.upsert import among, among_keys, insert_new, upsert

KEEP_S = 14 * 86_400.0
# (device, deployment, digest) and (rollout, device).
TotalKey = tuple[str, str, str]
SumsKey = tuple[int, str]
_SKETCH = msgspec.json.Decoder(Sketch)
_RECENT = msgspec.json.Decoder(Recent)
_GAUGES = msgspec.json.Decoder(Gauges)
_STAGE_SUMS = msgspec.json.Decoder(StageSums)
_ENCODER = msgspec.json.Encoder()


class Arrived(NamedTuple):
    """A report, of a device whose row is locked. `received` is steady."""

    known: Known
    report: Report
    received: float


class _Total(msgspec.Struct):
    windows: int = 0
    requests: int = 0
    errors: int = 0
    infer_ms: Sketch = Sketch()
    recent: Recent = Recent()
    gauges: Gauges = Gauges()

    def all(self) -> DeviceSums:
        return DeviceSums(self.windows, self.requests, self.errors, self.infer_ms, self.gauges)

    def add(self, window: DeploymentWindow, gauges: Gauges, *, is_trusted: bool) -> None:
        self.gauges = gauges
        self.windows += 1
        self.requests += window.requests
        self.errors += window.errors
        self.infer_ms = merge((self.infer_ms, window.infer_ms))
        if is_trusted:
            self.recent = self.recent.grown(window)


class _Side(NamedTuple):
    """One of the deployments that move, and its digests."""

    deployment: str
    target: str
    previous: str | None


class _Stage(NamedTuple):
    """An open stage that a device is in."""

    rollout: int
    stage: int
    judged_from: float
    cold_windows: int
    sides: tuple[_Side, ...]
    is_canary: bool


def record(connection: Connection, arrived: Sequence[Arrived], now: Now, deaf: Deaf) -> None:
    """Take reports in; those that were taken before change nothing but that the device is heard of."""
    new = _new(connection, arrived, now.steady)
    book = _Book(connection, new, now, deaf)
    # By identity: the same report twice in a batch is new once.
    are_new = {id(item) for item in new}
    for item in arrived:
        if id(item) in are_new:
            book.enter(item)
        _alive(item, now)
    book.write(connection)
    experiments.record(connection, new, now)
    shadows.record(connection, new)


def _new(connection: Connection, arrived: Sequence[Arrived], received_at: float) -> list[Arrived]:
    """Those whose unique key was not there."""
    by_key: dict[tuple[Any, ...], Arrived] = {}
    for item in arrived:
        boot = item.report.boot
        key = (item.known.id, boot.enrolment, boot.incarnation, boot.nonce, item.report.seq)
        by_key.setdefault(key, item)
    if not by_key:
        return []
    names = ("device", "enrolment", "incarnation", "nonce", "seq")
    rows = [dict(zip(names, key, strict=True)) | {"received_at": received_at} for key in sorted(by_key)]
    inserted = insert_new(connection, reports, rows, names)
    return [item for key, item in by_key.items() if key in inserted]


def _alive(item: Arrived, now: Now) -> None:
    """A report is a sign of life, also against a word of "offline" that came before it and was not the device's."""
    known, report = item.known, item.report
    usual = known.get("window_s") or 0.0
    # The last window before a restart is a short one, and says nothing about when the next comes.
    window_s = max(report.length_s, usual / 2)
    known.change(last_report_at=now.steady, last_seen_at=now.steady, window_s=window_s)
    if report.traffic:
        before = devices.link_of(known.get("traffic"))
        link = links.grown(before, report, now.wall)
        known.change(traffic=_ENCODER.encode(link).decode())
    is_newest = (report.boot.incarnation, report.boot.nonce) == (known.get("incarnation"), known.get("nonce"))
    if is_newest and not known.get("is_online") and item.received > (known.get("offline_at") or 0.0) + 1.0:
        known.change(is_online=True)


class _Book:
    """The sums that a batch changes: read at once, added to in memory, written at once."""

    def __init__(self, connection: Connection, new: Sequence[Arrived], now: Now, deaf: Deaf) -> None:
        self._now, self._deaf = now, deaf
        self._history = history.Batch()
        self._changed_totals: set[TotalKey] = set()
        self._changed_sums: dict[SumsKey, _Stage] = {}
        names = sorted({item.known.id for item in new})
        self._stages = _stages_of(connection, names)
        keys = {
            (item.known.id, window.deployment, window.digest)
            for item in new
            for window in item.report.deployments
            if window.digest is not None
        }
        keys |= {
            (device, side.deployment, side.previous)
            for device, stages in self._stages.items()
            for stage in stages
            for side in stage.sides
            if side.previous is not None
        }
        self._totals = _totals(connection, keys)
        self._sums = sums_of(
            connection, {s.rollout: s.stage for f in self._stages.values() for s in f}, names
        )

    def enter(self, item: Arrived) -> None:
        report, device = item.report, item.known.id
        ended = rules.filed_at(
            report.started,
            report.length_s,
            clock_ok=report.clock_ok,
            walls=(self._now.wall, self._now.unstepped),
            steady=self._now.steady,
        )
        moment = self._now.wall - self._now.steady + (item.received if ended is None else ended)
        for stage in self._stages.get(device, ()):
            self._enter_stage(item, stage, ended)
        for window in report.deployments:
            if window.digest is not None:
                key = (device, window.deployment, window.digest)
                total = self._totals.setdefault(key, _Total())
                gauges = self._history.window(device, total.all(), window, report, moment)
                total.add(window, gauges, is_trusted=ended is not None)
                self._changed_totals.add(key)

    def _enter_stage(self, item: Arrived, stage: _Stage, ended: float | None) -> None:
        known, report = item.known, item.report
        key = (stage.rollout, known.id)
        last, window_s = known.get("last_report_at"), known.get("window_s")
        found = self._sums.get(key)
        if found is None or found.judged_from != stage.judged_from:
            found = rules.opened(
                stage.judged_from,
                [Work(self._past(known.id, side)) for side in stage.sides],
                is_at_risk=rules.is_at_risk(last, stage.judged_from, window_s, self._deaf),
            )
        found = rules.heard_again(found, last, self._now.steady, window_s, self._deaf)
        began = ended - report.length_s if ended is not None else None
        if began is not None and ended is not None and began >= stage.judged_from:
            works = [
                self._grown(stage, at, work, report, (began, ended)) for at, work in enumerate(found.works)
            ]
            found = rules.with_works(found, works)
        self._sums[key] = found
        self._changed_sums[key] = stage

    def _grown(self, stage: _Stage, at: int, work: Work, report: Report, times: tuple[float, float]) -> Work:
        """With the report's windows. Of several that move together one may stay what it is: that counts on both sides.

        The history of an arm is drawn of the first of them.
        """
        side, (began, ended) = stage.sides[at], times
        moved, stayed = work.moved, work.stayed
        for window in report.deployments:
            if window.deployment != side.deployment or window.digest is None:
                continue
            if window.digest == side.target:
                moved = moved.grown(window, began, stage.cold_windows)
                if at == 0 and (stage.is_canary or side.target != side.previous):
                    moved = self._draw(stage, "canary", moved, window, ended)
            if window.digest == side.previous:
                stayed = stayed.grown(window, began, stage.cold_windows)
                if at == 0 and not stage.is_canary:
                    stayed = self._draw(stage, "control", stayed, window, ended)
        return Work(work.past, moved, stayed)

    def _draw(self, stage: _Stage, arm: ArmName, side: Side, window: DeploymentWindow, ended: float) -> Side:
        """A window of an arm goes into its history, if the gates count it."""
        if side.seen <= COLD_WINDOWS:
            return side
        moment = self._now.wall - self._now.steady + ended
        is_warm = side.seen > stage.cold_windows
        minute = self._history.arm(
            stage.rollout, stage.stage, arm, side.minute, window, moment, is_warm=is_warm
        )
        return msgspec.structs.replace(side, minute=minute)

    def _past(self, device: str, side: _Side) -> Sums | None:
        before = self._totals.get((device, side.deployment, side.previous or ""))
        return before.recent.all() if before is not None else None

    def write(self, connection: Connection) -> None:
        upsert(
            connection,
            totals,
            [
                {
                    "device": device,
                    "deployment": deployment,
                    "digest": digest,
                    "windows": total.windows,
                    "requests": total.requests,
                    "errors": total.errors,
                    "infer_ms": _ENCODER.encode(total.infer_ms).decode(),
                    "recent": _ENCODER.encode(total.recent).decode(),
                    "gauges": _ENCODER.encode(total.gauges).decode(),
                }
                for device, deployment, digest in sorted(self._changed_totals)
                for total in (self._totals[device, deployment, digest],)
            ],
        )
        upsert(
            connection,
            stage_sums,
            [
                {
                    "rollout": stage.rollout,
                    "stage": stage.stage,
                    "device": device,
                    "judged_from": stage.judged_from,
                    "sums": _ENCODER.encode(self._sums[rollout, device]).decode(),
                }
                for (rollout, device), stage in sorted(self._changed_sums.items())
            ],
        )
        self._history.write(connection)


def _stages_of(connection: Connection, devices: Sequence[str]) -> dict[str, list[_Stage]]:
    """Device → the open stages that it is a member of."""
    open_stages = {row.id: row for row in rollouts.judged(connection)}
    found: dict[str, list[_Stage]] = {}
    if not open_stages:
        return found
    names = ("rollout", "device", "target", "previous", "beside", "order_counter")
    columns = [members.c[name] for name in names]
    query = select(*columns).where(members.c.rollout.in_(list(open_stages)))
    for row in connection.execute(query.where(among(connection, members.c.device, devices))):
        stage = open_stages[row.rollout]
        first = _Side(stage.deployment, row.target, row.previous)
        beside = [
            _Side(deployment, part.target, part.previous)
            for deployment, part in zip(stage.beside.split(), parts_of(row.beside), strict=True)
        ]
        about = (stage.stage, stage.judged_from, stage.cold_windows)
        found.setdefault(row.device, []).append(
            _Stage(row.rollout, *about, (first, *beside), row.order_counter > 0)
        )
    return found


def _totals(connection: Connection, keys: Iterable[TotalKey]) -> dict[TotalKey, _Total]:
    columns = (totals.c.device, totals.c.deployment, totals.c.digest)
    query = select(totals).where(among_keys(connection, columns, sorted(keys)))
    return {
        (row.device, row.deployment, row.digest): _Total(
            row.windows,
            row.requests,
            row.errors,
            _SKETCH.decode(row.infer_ms),
            _RECENT.decode(row.recent),
            _GAUGES.decode(row.gauges),
        )
        for row in connection.execute(query)
    }


def sums_of(
    connection: Connection, stages: dict[int, int], devices: Sequence[str] | None = None
) -> dict[SumsKey, StageSums]:
    """(rollout, device) → its row in the rollout's stage; `stages` are rollout → stage. All devices, or some."""
    found: dict[SumsKey, StageSums] = {}
    columns = (stage_sums.c.rollout, stage_sums.c.device, stage_sums.c.sums)
    for rollout, stage in stages.items():
        query = select(*columns).where(stage_sums.c.rollout == rollout, stage_sums.c.stage == stage)
        if devices is not None:
            query = query.where(among(connection, stage_sums.c.device, devices))
        for row in connection.execute(query):
            found[row.rollout, row.device] = _STAGE_SUMS.decode(row.sums)
    return found


def totals_of(connection: Connection, names: Sequence[str]) -> dict[TotalKey, Row[Any]]:
    """(device, deployment, digest) → everything that these devices ever reported of it, but not their recent past."""
    columns = [column for column in totals.c if column.name != "recent"]
    query = select(*columns).where(among(connection, totals.c.device, names))
    return {(row.device, row.deployment, row.digest): row for row in connection.execute(query).all()}


def prune(connection: Connection, now: float, keep_s: float = KEEP_S, limit: int = 10_000) -> bool:
    """Drop unique keys older than `keep_s` (steady), spools are shorter; whether there may be more."""
    old = select(reports.c.received_at).where(reports.c.received_at < now - keep_s)
    edge = connection.execute(old.order_by(reports.c.received_at).offset(limit).limit(1)).scalar()
    before = edge if edge is not None else now - keep_s
    # A batch has one time for all: where more than a chunk came at once, the edge itself would never go.
    connection.execute(delete(reports).where(reports.c.received_at <= before))
    return edge is not None
