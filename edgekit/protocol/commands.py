"""Accepting a command, and never doing one twice: pure, the clock passed in.

Always true
 1. A command is followed only by the fleet, device and enrolment that it names, before it expires.
 2. A command that was accepted is in the ledger until it has expired, whatever came of it; the caller syncs the ledger
    before acting. So neither a repeat nor a restart does it again.
 3. What has left the ledger has expired by a time that this device once held true (`floor`), and is refused by that even
    if the clock says less now.
 4. A command that was under way when the agent ended is over: failed, or, where ending was the point of it, done.
"""

from datetime import datetime

import msgspec
from msgspec.structs import replace

from edgekit.errors import CommandRefusedError
from edgekit.protocol.orders import Identity
from edgekit.wire.commands import (
    LONGEST_LIFE,
    OVER,
    Action,
    Command,
    CommandId,
    CommandState,
    Measure,
    Payload,
    Restart,
)

MAX_WAITING = 16
MAX_KNOWN = 256
# A result that the fleet did not acknowledge for so long after its command expired is given up.
KEPT = LONGEST_LIFE


class Entry(msgspec.Struct, frozen=True):
    """One command that was accepted; `is_told`: the fleet has acknowledged how it ended."""

    id: CommandId
    expires: datetime
    action: Action
    state: CommandState = CommandState.ACCEPTED
    reason: str = ""
    payload: Payload | None = None
    is_told: bool = False


class Ledger(msgspec.Struct, frozen=True):
    """What one enrolment was told to do, in the order in which it was accepted. `since` is set where an earlier ledger was
    lost: what was issued before may have been done.
    """

    enrolment: int = 0
    entries: tuple[Entry, ...] = ()
    floor: datetime | None = None
    since: datetime | None = None

    def get(self, number: CommandId) -> Entry | None:
        return next((entry for entry in self.entries if entry.id == number), None)


def accept(command: Command, identity: Identity, ledger: Ledger, now: datetime) -> Ledger | None:
    """The ledger with the command in it, or None if it is there already.

    Raises: CommandRefusedError with the reason; `is_ours` says whether the fleet is owed a word about it.
    """
    mine = (identity.fleet, identity.device, identity.enrolment)
    for what, theirs, own in zip(
        ("fleet", "device", "enrolment"),
        (command.fleet, command.device, command.enrolment),
        mine,
        strict=True,
    ):
        if theirs != own:
            raise CommandRefusedError(f"the command is for {what} {theirs!r}, this is {own!r}")
    if ledger.get(command.id) is not None:
        return None
    if command.expires <= max(now, ledger.floor or now):
        raise CommandRefusedError(
            f"it expired at {command.expires.isoformat(timespec='seconds')}", is_ours=True
        )
    if command.expires > command.issued + LONGEST_LIFE:
        raise CommandRefusedError(f"it would live longer than {LONGEST_LIFE.days} days", is_ours=True)
    if ledger.since is not None and command.issued <= ledger.since:
        raise CommandRefusedError("the ledger was lost since it was issued; issue it again", is_ours=True)
    kept = forget(ledger, now)
    if sum(entry.state not in OVER for entry in kept.entries) >= MAX_WAITING:
        raise CommandRefusedError(f"{MAX_WAITING} commands wait already", is_ours=True)
    if len(kept.entries) >= MAX_KNOWN:
        raise CommandRefusedError(f"{MAX_KNOWN} commands are remembered until they expire", is_ours=True)
    if told := _misfit(command.action, identity):
        raise CommandRefusedError(told, is_ours=True)
    entry = Entry(command.id, command.expires, command.action)
    return replace(kept, enrolment=identity.enrolment, entries=(*kept.entries, entry))


def _misfit(action: Action, identity: Identity) -> str:
    """Why this device cannot do it; empty if it may be able to."""
    deployment = getattr(action, "deployment", "")
    if deployment and deployment not in identity.deployments:
        return f"this device has no deployment {deployment!r}"
    for bundle in action.bundles if isinstance(action, Measure) else ():
        parts = bundle.target.split("/")
        if len(parts) != 4 or parts[3] != f"{bundle.sha256}.edgekit":
            return f"target {bundle.target!r} does not name its own digest"
        if parts[2] not in identity.profiles:
            return f"{bundle.target} is for profile {parts[2]}, this device is {identity.profiles[0]}"
    return ""


def waiting(ledger: Ledger) -> Entry | None:
    """What to do next."""
    return next((entry for entry in ledger.entries if entry.state is CommandState.ACCEPTED), None)


def moved(
    ledger: Ledger, number: CommandId, state: CommandState, reason: str = "", payload: Payload | None = None
) -> Ledger:
    """One command further on its way."""
    return _changed(ledger, number, state=state, reason=reason[:2000], payload=payload, is_told=False)


def told(ledger: Ledger, number: CommandId) -> Ledger:
    """The fleet knows how it ended."""
    return _changed(ledger, number, is_told=True, payload=None)


def resumed(ledger: Ledger, enrolment: int) -> Ledger:
    """After a start; what was told to an earlier enrolment is nobody's any more."""
    if ledger.enrolment not in (0, enrolment):
        return Ledger(enrolment)
    return replace(ledger, entries=tuple(map(_after_start, ledger.entries)))


def _after_start(entry: Entry) -> Entry:
    if entry.state is not CommandState.RUNNING:
        return entry
    if isinstance(entry.action, Restart) and not entry.action.deployment:
        return replace(entry, state=CommandState.DONE)
    return replace(entry, state=CommandState.FAILED, reason="the agent ended while it was under way")


def forget(ledger: Ledger, now: datetime) -> Ledger:
    """Without what has expired and is over, and told or too old to tell."""
    gone = tuple(
        entry
        for entry in ledger.entries
        if entry.state in OVER and entry.expires <= now and (entry.is_told or entry.expires + KEPT <= now)
    )
    if not gone:
        return ledger
    newest = max(entry.expires for entry in gone)
    floor = newest if ledger.floor is None else max(newest, ledger.floor)
    return replace(ledger, entries=tuple(e for e in ledger.entries if e not in gone), floor=floor)


def _changed(ledger: Ledger, number: CommandId, **values: object) -> Ledger:
    return replace(
        ledger, entries=tuple(replace(e, **values) if e.id == number else e for e in ledger.entries)
    )
