"""The past: what ingest adds to it with each report, and what is read of it. `store.retention` keeps it bounded.

Always true
 1. What a report adds is written in its own transaction, and only if the report is new: it counts once.
 2. Rows are only added here, never changed: writers do not wait for each other, and a reader draws parts together.
 3. A window belongs to the time when it ended, if its clock is to be believed, else to when it arrived. What a device sends
    late, in order, is filed where it belongs; what comes out of order is filed with the newest that it sent.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Connection, Table, select

from edgekit.sketch import Sketch
from edgekit.wire.messages import DeploymentWindow, Report
from fleet.api.history import ArmName, ArmPoint, DevicePoint, ReleasePoint
from fleet.rules import history as rules
from fleet.rules import seen, telling
from fleet.rules.history import ArmSums, DeviceSums, Gauges, Level, Minute, ReleaseSums
from fleet.rules.seen import Seen
from fleet.rules.telling import Anomalies
from fleet.server.schema import totals
from fleet.server.schema_history import arm_history, device_history, release_history
from fleet.server.store.upsert import append

_PACK = msgspec.msgpack.Encoder()
_ARM = msgspec.msgpack.Decoder(ArmSums)
_RELEASE = msgspec.msgpack.Decoder(ReleaseSums)
_DEVICE = msgspec.msgpack.Decoder(DeviceSums)
_GAUGES = msgspec.json.Decoder(Gauges)
_SKETCH = msgspec.json.Decoder(Sketch)
S = TypeVar("S", ArmSums, ReleaseSums)
HOUR_S = float(Level.HOUR.length_s)
# Lengths that charts are drawn by.
_STEPS_S = tuple(60.0 * m for m in (1, 2, 5, 10, 15, 30, 60, 120, 240, 360, 720, 1440, 10_080))

packed: Callable[[object], bytes] = _PACK.encode
arm_sums: Callable[[bytes], ArmSums] = _ARM.decode
release_sums: Callable[[bytes], ReleaseSums] = _RELEASE.decode


class Batch:
    """What one transaction of ingest adds."""

    def __init__(self) -> None:
        self._arms: dict[tuple[int, int, ArmName, float], ArmSums] = {}
        self._releases: dict[tuple[str, str, float], _Release] = {}
        self._devices: list[dict[str, Any]] = []

    def arm(  # noqa: PLR0917  # what a row is about, in its order
        self,
        rollout: int,
        stage: int,
        arm: ArmName,
        minute: Minute,
        window: DeploymentWindow,
        moment: float,
        *,
        is_warm: bool,
    ) -> Minute:
        """A window that counts in an open stage; the device's minute after it."""
        grown, more = rules.step(minute, window, moment, is_warm=is_warm)
        key = rollout, stage, arm, Level.MINUTE.begin(moment)
        self._arms[key] = rules.beside(self._arms[key], more) if key in self._arms else more
        return grown

    def window(
        self, device: str, so_far: DeviceSums, window: DeploymentWindow, report: Report, moment: float
    ) -> Gauges:
        """Any window, before it is added to what the device did so far with the bundle; its gauges after it."""
        assert window.digest is not None
        gauges = so_far.gauges
        key = window.deployment, window.digest, Level.MINUTE.begin(moment)
        release = self._releases.get(key)
        if release is None:
            release = self._releases[key] = _Release()
        release.add(window, gauges, moment)
        if gauges.is_first(Level.HOUR, moment):
            # The hour that its newest window lies in is over. With the first one ever there is what was before.
            last = moment - HOUR_S if gauges.filed is None else gauges.filed
            row: dict[str, Any] = {
                "device": device,
                "deployment": window.deployment,
                "digest": window.digest,
            }
            row |= {"level": Level.HOUR.value, "at": Level.HOUR.begin(last), "sums": packed(so_far)}
            self._devices.append(row)
        return gauges.grown(window, report, moment)

    def write(self, connection: Connection) -> None:
        append(
            connection,
            arm_history,
            [
                {"rollout": rollout, "stage": stage, "arm": arm, "level": Level.PART.value, "at": at}
                | {"sums": packed(sums)}
                for (rollout, stage, arm, at), sums in self._arms.items()
            ],
        )
        append(
            connection,
            release_history,
            [
                {"deployment": deployment, "digest": digest, "level": Level.PART.value, "at": at}
                | {"sums": packed(release.sums())}
                for (deployment, digest, at), release in self._releases.items()
            ],
        )
        append(connection, device_history, self._devices)


class _Release:
    """`ReleaseSums` while windows are added: a sketch that is merged anew with each of 500 would cost most of all."""

    def __init__(self) -> None:
        self._bins: dict[int, int] = {}
        self._windows = self._devices = self._devices_hour = self._devices_day = 0
        self._requests = self._errors = 0
        self._zeros, self._total, self._largest = 0, 0.0, 0.0
        self._psi_count, self._psi_total = 0, 0.0
        self._seen: Seen = {}
        self._anomalies: Anomalies = {}

    def add(self, window: DeploymentWindow, gauges: Gauges, moment: float) -> None:
        self._windows += 1
        if gauges.is_first(Level.MINUTE, moment):
            self._devices += 1
            self._devices_hour += gauges.is_first(Level.HOUR, moment)
            self._devices_day += gauges.is_first(Level.DAY, moment)
        self._requests += window.requests
        self._errors += window.errors
        bins, times = self._bins, window.infer_ms
        for index, count in times.bins.items():
            bins[index] = bins.get(index, 0) + count
        self._zeros += times.zeros
        self._total += times.total
        self._largest = max(self._largest, times.largest)
        if (psi := window.metrics.get(rules.PSI)) is not None:
            self._psi_count += psi.count
            self._psi_total += psi.total
        seen.add(self._seen, window)
        self._anomalies = telling.added(self._anomalies, window.anomalies)

    def sums(self) -> ReleaseSums:
        times = Sketch(self._bins, self._zeros, self._total, self._largest)
        devices = (self._devices, self._devices_hour, self._devices_day)
        counts = (self._requests, self._errors)
        return ReleaseSums(
            self._windows, *devices, *counts, times, self._psi_count, self._psi_total,
            self._seen, {}, self._anomalies,
        )  # fmt: skip


def of_rollout(
    connection: Connection,
    rollout_id: int,
    since: float = 0.0,
    until: float = float("inf"),
    most: int | None = None,
) -> list[ArmPoint]:
    """What both arms did while a stage was judged, by time, stage and arm; drawn together to about `most` moments."""
    columns = (arm_history.c.stage, arm_history.c.arm)
    query = select(*columns, arm_history.c.level, arm_history.c.at, arm_history.c.sums).where(
        arm_history.c.rollout == rollout_id
    )
    rows = connection.execute(_between(query, arm_history, since, until))
    drawn = _together(
        (((row.stage, row.arm), row.level, row.at, arm_sums(row.sums)) for row in rows), rules.beside
    )
    kept = [
        (key, float(level.length_s), at, sums)
        for (key, level, at), sums in drawn.items()
        if at + level.length_s > since
    ]
    if most is not None:
        kept = _coarser(kept, most, rules.after)
    points = [
        msgspec.structs.replace(
            rules.arm_point(sums, at=at, level=Level.MINUTE, stage=stage, arm=arm), length_s=length
        )
        for (stage, arm), length, at, sums in kept
    ]
    return sorted(points, key=lambda point: (point.at, point.stage, point.arm))


_Drawn = tuple[Any, float, float, S]


def _coarser(kept: Sequence[_Drawn[S]], most: int, add: Callable[[S, S], S]) -> list[_Drawn[S]]:
    """Intervals that follow each other become one, so that there are at most `most` from the first to the last."""
    if not kept:
        return []
    first, last = min(at for _, _, at, _ in kept), max(at + length for _, length, at, _ in kept)
    step = next((step for step in _STEPS_S if (last - first) / step <= most - 1), _STEPS_S[-1])
    drawn: dict[tuple[Any, float], _Drawn[S]] = {}
    for key, length, at, sums in sorted(kept, key=lambda one: one[2]):
        begun = at // step * step
        if length >= step:
            drawn[key, at] = (key, length, at, sums)
        elif (before := drawn.get((key, begun))) is None:
            drawn[key, begun] = (key, step, begun, sums)
        else:
            drawn[key, begun] = (key, before[1], begun, add(before[3], sums))
    return list(drawn.values())


def of_release(
    connection: Connection, deployment: str, digest: str, since: float, until: float
) -> list[ReleasePoint]:
    """What all devices did with one bundle, by time."""
    return of_bundles(connection, [(deployment, digest)], since, until)


def shortened(  # noqa: PLR0917  # whose, when, and how many, in the order of `of_release`
    connection: Connection, deployment: str, digest: str, since: float, until: float, most: int
) -> list[ReleasePoint]:
    """The same, drawn together to about `most` moments; how many devices there were is not said then."""
    kept = [
        (key, float(level.length_s), at, sums)
        for (key, level, at), sums in _of_bundles(connection, [(deployment, digest)], since, until).items()
        if at + level.length_s > since
    ]
    points = [
        msgspec.structs.replace(
            rules.release_point(sums, at=at, level=Level.MINUTE), length_s=length, devices=0
        )
        for _, length, at, sums in _coarser(kept, most, rules.together)
    ]
    return sorted(points, key=lambda point: point.at)


def of_bundles(
    connection: Connection, bundles: Sequence[tuple[str, str]], since: float, until: float
) -> list[ReleasePoint]:
    """What all devices did with any of these (deployment, digest), by time."""
    points = [
        rules.release_point(sums, at=at, level=level)
        for (_, level, at), sums in _of_bundles(connection, bundles, since, until).items()
        if at + level.length_s > since
    ]
    return sorted(points, key=lambda point: point.at)


def _of_bundles(
    connection: Connection, bundles: Sequence[tuple[str, str]], since: float, until: float
) -> dict[tuple[tuple[Any, ...], Level, float], ReleaseSums]:
    table, found = release_history, []
    for deployment, digest in bundles:
        query = select(table.c.level, table.c.at, table.c.sums).where(
            table.c.deployment == deployment, table.c.digest == digest
        )
        found += [
            ((), row.level, row.at, release_sums(row.sums))
            for row in connection.execute(_between(query, table, since, until))
        ]
    return _together(found, rules.together)


class Told(msgspec.Struct, frozen=True):
    """What all devices on a bundle saw and gave, and what they said of inputs that did not fit."""

    seen: Seen = {}
    anomalies: Anomalies = {}


def told_of(connection: Connection, digest: str, since: float) -> Told:
    """From a moment on, in whichever slot they run it."""
    table, found = release_history, Told()
    query = select(table.c.at, table.c.sums).where(table.c.digest == digest)
    for row in connection.execute(_between(query, table, since, float("inf"))):
        sums = release_sums(row.sums)
        found = Told(seen.together(found.seen, sums.seen), telling.added(found.anomalies, sums.anomalies))
    return found


def deployments_of(connection: Connection, digests: Iterable[str]) -> list[tuple[str, str]]:
    """(deployment, digest) of these bundles wherever one was ever run."""
    columns = (release_history.c.deployment, release_history.c.digest)
    query = select(*columns).distinct().where(release_history.c.digest.in_(sorted(digests)))
    return [(row.deployment, row.digest) for row in connection.execute(query.order_by(*columns))]


def of_device(connection: Connection, device: str, since: float, until: float) -> list[DevicePoint]:
    """What a device did with each bundle, by time: the hour that is not over yet too."""
    table = device_history
    rows = connection.execute(select(table).where(table.c.device == device).order_by(table.c.at)).all()
    kept: dict[tuple[str, str], list[tuple[Level, float, DeviceSums]]] = {}
    for row in rows:
        known = kept.setdefault((row.deployment, row.digest), [])
        known.append((Level(row.level), row.at, _DEVICE.decode(row.sums)))
    for (deployment, digest), sums in _newest(connection, device).items():
        filed = sums.gauges.filed
        if filed is not None:
            newest = (Level.HOUR, Level.HOUR.begin(filed), sums)
            kept.setdefault((deployment, digest), []).append(newest)
    points = [
        rules.device_point(now, before, at=at, level=level, deployment=deployment, digest=digest)
        for (deployment, digest), known in kept.items()
        for (_, _, before), (level, at, now) in pairwise(known)
        if at < until and at + level.length_s > since
    ]
    return sorted(points, key=lambda point: (point.at, point.deployment, point.digest))


def _newest(connection: Connection, device: str) -> dict[tuple[str, str], DeviceSums]:
    query = select(totals).where(totals.c.device == device)
    return {
        (row.deployment, row.digest): DeviceSums(
            row.windows, row.requests, row.errors, _SKETCH.decode(row.infer_ms), _GAUGES.decode(row.gauges)
        )
        for row in connection.execute(query)
    }


def _between(query: Any, table: Table, since: float, until: float) -> Any:
    """Intervals that have something of the time from `since` to `until`."""
    longest = Level.DAY.length_s
    if until != float("inf"):
        query = query.where(table.c.at < until)
    return query.where(table.c.at > since - longest)


def _together(
    rows: Iterable[tuple[tuple[Any, ...], int, float, S]], add: Callable[[S, S], S]
) -> dict[tuple[tuple[Any, ...], Level, float], S]:
    """One sum for each key and interval; parts are of their minute."""
    drawn: dict[tuple[tuple[Any, ...], Level, float], S] = {}
    for key, level, at, sums in rows:
        place = key, Level(max(level, Level.MINUTE)), at
        drawn[place] = add(drawn[place], sums) if place in drawn else sums
    return drawn
