"""What was asked of a device, and what came of it, in words; what it brought for retraining; what it compares."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Connection

from edgekit.wire.commands import Cleared, Measured, Payload, SelfTested, Tested, Timed
from fleet import api
from fleet.rules.shadowing import latency_ratio
from fleet.server.api import commands as rest
from fleet.server.api.admission import Principal
from fleet.server.api.context import Context
from fleet.server.store import collecting, commands, releases, shadows
from fleet.server.web.words import number

NEWEST = 10
_KINDS = {
    "self-test": "run the self-test",
    "measure": "measure bundles",
    "clear-refused": "forget what it refused",
    "restart": "restart",
    "log-level": "log more or less",
}


class Asked(NamedTuple):
    """One command: what was asked, and what came of it."""

    view: api.CommandView
    what: str
    came: tuple[str, ...]


def of_device(connection: Connection, device: str) -> list[Asked]:
    """The newest commands, the newest first."""
    found = commands.of_device(connection, device)[:NEWEST]
    return [Asked(one, _KINDS.get(one.kind, one.kind), _came(one)) for one in found]


def ask(ctx: Context, caller: Principal, device: str, action: api.Ask) -> None:
    """Ask it as the API does."""
    rest.ask(ctx, caller, device, api.NewCommand(action))


def _came(one: api.CommandView) -> tuple[str, ...]:
    said = (one.reason,) if one.reason else ()
    return said if one.payload is None else (*said, *_says(one.payload))


def _says(payload: Payload) -> Sequence[str]:
    if isinstance(payload, Cleared):
        return [f"{digest[:12]}: {why}" for digest, why in payload.digests.items()] or ["nothing was refused"]
    if isinstance(payload, SelfTested):
        return [_tested(one) for one in payload.tests] or ["nothing serves"]
    assert isinstance(payload, Measured)
    return [_timed(one) for one in payload.bundles]


def _tested(one: Tested) -> str:
    told = f"{one.deployment}: " if one.deployment else ""
    if not one.passed:
        return f"{told}failed: {one.reason}"
    return (
        f"{told}passed, {one.agreement:.1%} of the answers as the source gives them, "
        f"median {number(one.latency_p50_ms)} ms"
    )


def _timed(one: Timed) -> str:
    name = f"{one.test.sha256[:12]} ({one.engine} {one.engine_version}{', serves' if one.serves else ''})"
    if not one.rounds_ms:
        return f"{name}: not timed: {one.test.reason or 'it failed its self-test'}"
    return f"{name}: median {number(one.p50_ms)} ms, between {number(one.p50_low_ms)} and {number(one.p50_high_ms)}"


class Brought(NamedTuple):
    """What of one collection's samples came from a device."""

    label: str
    deployment: str
    words: str
    state: str
    samples: int
    bytes: int
    until: datetime


def samples_of(connection: Connection, device: str, now: float) -> list[Brought]:
    """Collections that name this device; the newest first."""
    sizes = collecting.sizes(connection, [device])
    return [
        Brought(
            collecting.label(row.id),
            row.deployment,
            collecting.reasons_of(row).words,
            collecting.state_of(row, now),
            *sizes.get(row.id, (0, 0)),
            datetime.fromtimestamp(row.until_at, UTC),
        )
        for row in collecting.of_device(connection, device, NEWEST)
    ]


class Compared(NamedTuple):
    """A shadow on a device: `agreement` is of the output that agrees least, 0 to 1; `ratio` its time over the served one's."""

    label: str
    release: str
    deployment: str
    status: str
    compared: int
    dropped: int
    agreement: float | None
    ratio: float | None


def shadows_of(connection: Connection, device: str) -> list[Compared]:
    """The newest first."""
    found = []
    for shadow, row in shadows.of_device(connection, device, NEWEST):
        sums = shadows.sums_of(row)
        means = [one.mean for one in sums.agreement.values() if one.count]
        found.append(
            Compared(
                shadows.label(shadow.id),
                releases.title(shadow.name, shadow.version),
                shadow.deployment,
                shadow.status,
                row.compared,
                row.dropped,
                min(means, default=None),
                latency_ratio([sums]),
            )
        )
    return found
