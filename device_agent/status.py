"""`edgekit agent status`: the device as it is, link or no link, and whether an agent is running at all.

The agent writes its status at every change, and where the file lies in memory also every `HEARTBEAT_S`. On a card it is
written at changes only, and never synced: it is made anew by the next start.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from device_agent import durable
from device_agent.drift import DAY_S, Level
from device_agent.folder import StateFolder
from device_agent.hardware import difference, look, root
from device_agent.identity import DeviceIdentity
from device_agent.record import Record
from device_agent.sources import standing
from device_agent.sources.standing import SourceStatus
from device_agent.storage import Storage
from edgekit.errors import UsageError
from edgekit.wire.messages import Condition, DeploymentReport, Passed, Purpose, Reported

HEARTBEAT_S = 10.0
_NAME = "status.json"
# Lines on drift, of one deployment.
_SHOWN = 6


class AgentStatus(msgspec.Struct, frozen=True):
    """`status.json`: the device as it last described itself, and how far what it meets has moved, by deployment."""

    reported: Reported
    http: str
    is_online: bool
    written: datetime
    traffic: dict[Purpose, Passed] = {}
    sources: tuple[SourceStatus, ...] = ()
    drift: dict[str, dict[str, Level]] = {}


class StatusFile:
    """Where a running agent writes its status: `write` returns at once, the newest state wins."""

    def __init__(self, state: StateFolder, storage: Storage) -> None:
        self._state = state
        self._storage = storage
        self._next: AgentStatus | None = None
        self._is_writing = False
        self.is_in_memory = False

    async def prepare(self) -> None:
        """Find the place: in memory if the system offers one, otherwise in the state folder."""
        self.is_in_memory = await self._storage.do(lambda: _made(self._state.runtime))

    async def write(self, status: AgentStatus) -> None:
        """Put `status` down, or leave it to the write that is under way. Never raises for a disk."""
        self._next = status
        if self._is_writing:
            return
        self._is_writing = True
        try:
            while self._next is not None:
                data, self._next = msgspec.json.encode(self._next), None
                path = self._state.runtime / _NAME if self.is_in_memory else self._state.status
                await self._storage.do(lambda path=path, data=data: _put(path, data))  # type: ignore[misc]  # bound now
        finally:
            self._is_writing = False

    async def end(self, status: AgentStatus) -> None:
        """The last words, where they outlive this machine's memory."""
        data = msgspec.json.encode(status)
        await self._storage.do(lambda: _put(self._state.status, data))
        if self.is_in_memory:
            await self._storage.do(lambda: _forget(self._state.runtime))


def _made(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _put(folder / _NAME, b"{}")
    except OSError:
        return False


def _put(path: Path, data: bytes) -> bool:
    """Whether it could be written; a status that cannot be is no reason for anything."""
    try:
        durable.write_unsynced(path, data)
    except OSError:
        return False
    return True


def _forget(folder: Path) -> None:
    with suppress(OSError):
        (folder / _NAME).unlink()
        folder.rmdir()


class IdentityView(msgspec.Struct, frozen=True):
    """Who the state folder says this device is. `hardware` is how it differs from what enrolled; empty if it does not.

    `fingerprint` is the sha256 of the mark that tells this hardware from others; empty where it has none.
    """

    fleet: str
    device: str
    enrolment: int
    certificate_begins: datetime
    certificate_ends: datetime
    fingerprint: str
    hardware: str


def identity_of(state: StateFolder) -> IdentityView | None:
    """None before the first enrolment, or where nothing of it can be read."""
    known = Record(state.identity, DeviceIdentity).peek()
    if known is None:
        return None
    here = look(root())
    begin, end = known.life
    answer = known.answer
    return IdentityView(
        known.file.fleet, answer.device, answer.enrolment, begin, end, here.fingerprint,
        difference(known.hardware, here),
    )  # fmt: skip


class StatusView(msgspec.Struct, frozen=True):
    """`age_s` is how long ago the agent last wrote this; without a running agent nothing is served."""

    is_running: bool
    is_online: bool
    http: str
    age_s: float
    reported: Reported
    identity: "IdentityView | None" = None
    traffic: dict[Purpose, Passed] = {}
    sources: tuple[SourceStatus, ...] = ()
    drift: dict[str, dict[str, Level]] = {}


def read(state: StateFolder) -> StatusView:
    """Raises: UsageError if no agent ever ran on this folder, or its status cannot be read."""
    status = _newest(state)
    running = state.is_locked()
    return StatusView(
        is_running=running,
        is_online=running and status.is_online,
        http=status.http,
        age_s=round((datetime.now(UTC) - status.written).total_seconds(), 1),
        reported=status.reported,
        identity=identity_of(state),
        traffic=status.traffic,
        sources=status.sources,
        drift=status.drift,
    )


def _newest(state: StateFolder) -> AgentStatus:
    found: list[AgentStatus] = []
    trouble = ""
    for path in (state.runtime / _NAME, state.status):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=AgentStatus))
        except OSError as error:
            trouble = trouble or f"{state.root}: no agent has run on this state folder ({error.strerror})"
        except msgspec.DecodeError as error:
            trouble = f"{path}: cannot be read ({error}); a running agent writes it anew"
    if not found:
        raise UsageError(trouble)
    return max(found, key=lambda status: status.written)


def render(view: StatusView) -> str:
    """A few lines for a person."""
    reported = view.reported
    running = "running" if view.is_running else "not running"
    link = "link up" if view.is_online else "link down"
    lines = [
        f"device   {reported.device}   profile {reported.profile}   agent {running}, {link}",
        *_identity(view.identity),
        f"order    {reported.order_counter or 'none yet'}"
        + (f"   newest refused: {reported.refused}" if reported.refused else ""),
        f"serving  {view.http if view.is_running else 'nothing: the agent is not running'}",
        *_traffic(view.traffic),
        *_conditions([c for c in reported.conditions if c.deployment not in reported.deployments]),
    ]
    for name, deployment in reported.deployments.items():
        runs = _runs(deployment) if view.is_running else "no model answers"
        lines += ["", f"{name}: {runs}", f"  update   {deployment.state.value}"]
        for title, digest in (("ordered", deployment.ordered), ("committed", deployment.committed)):
            lines.append(f"  {title:8} {digest[:12] if digest else '-'}")
        if (got := deployment.fetched) is not None:
            way = "as a delta" if got.by_delta else "whole"
            lines.append(f"  fetched  {got.sha256[:12]} {way}, {got.size_bytes} bytes")
        if deployment.reason:
            lines.append(f"  reason   {deployment.reason}")
        lines += [f"  drift    {line}" for line in _drift(view.drift.get(name, {}))]
        lines += [
            f"  {line}" for line in _conditions([c for c in reported.conditions if c.deployment == name])
        ]
    lines += standing.render(view.sources, is_running=view.is_running)
    return "\n".join(lines)


def _traffic(traffic: Mapping[Purpose, Passed]) -> list[str]:
    """What the link has carried since the state folder was made, by purpose."""
    told = [
        f"{purpose} {passed.sent / 1e6:.2f} up {passed.received / 1e6:.2f} down"
        for purpose, passed in traffic.items()
    ]
    return [f"traffic  MB: {', '.join(told)}"] if told else []


def _identity(known: IdentityView | None) -> list[str]:
    if known is None:
        return []
    ends = known.certificate_ends.isoformat(timespec="minutes")
    mark = known.fingerprint[:12] or "without a mark"
    lines = [
        f"identity fleet {known.fleet}, enrolment {known.enrolment}, certificate until {ends}, hardware {mark}"
    ]
    if known.hardware:
        lines.append(
            f"wrong    this folder was made on other hardware: {known.hardware}; enrol this device again"
        )
    return lines


def _conditions(conditions: Sequence[Condition]) -> list[str]:
    lines: list[str] = []
    for condition in conditions:
        since = condition.since.isoformat(timespec="seconds")
        whose = f"{condition.deployment}: " if condition.deployment else ""
        lines.append(f"wrong    {whose}{condition.code} since {since}: {condition.detail}")
    return lines


def _drift(levels: Mapping[str, Level]) -> list[str]:
    """The index of each thing, now and over the day; what moved most first, and what a day is still missing."""
    ordered = sorted(levels.items(), key=lambda item: (-(item[1].now or 0.0), item[0]))
    shown = [
        f"{label}: {_index(level.now)} now, {_index(level.day)} over the day"
        for label, level in ordered[:_SHOWN]
    ]
    if len(ordered) > _SHOWN:
        shown.append(f"and {len(ordered) - _SHOWN} more")
    seen_s = max((level.seen_s for level in levels.values()), default=DAY_S)
    if seen_s < DAY_S:
        shown.append(f"{seen_s / 3600:.1f} h of the day that it takes to tell sunrise from drift")
    return shown


def _index(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _runs(deployment: DeploymentReport) -> str:
    if deployment.digest is None:
        return "no model answers"
    return f"{deployment.model}@{deployment.model_version} ({deployment.digest[:12]})"
