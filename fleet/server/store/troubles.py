"""What is wrong with devices by their own word, beside the row of each, so that whoever looks at all reads little.

Always true
 1. `devices.troubles` says what the newest self-description says; empty text is nothing wrong.
"""

from collections.abc import Iterator

import msgspec
from sqlalchemy import Connection, select

from edgekit.wire.messages import Reported
from edgekit.wire.states import AgentState
from fleet.rules.findings import REFUSED, Trouble
from fleet.server.schema import bundles, devices
from fleet.server.store.upsert import among

_MAX_DETAIL = 200
_LIST = msgspec.json.Decoder(tuple[Trouble, ...])
_REFUSES = (AgentState.FAILED, AgentState.ROLLBACK, AgentState.DIVERGED)


def text_of(message: Reported) -> str:
    """What is kept of a self-description."""
    found = [Trouble(one.code, one.detail[:_MAX_DETAIL], one.deployment) for one in message.conditions]
    found += [
        Trouble(REFUSED, one.reason[:_MAX_DETAIL] or one.state.value, name, one.ordered)
        for name, one in message.deployments.items()
        if one.state in _REFUSES and one.ordered is not None and one.ordered != one.committed
    ]
    if message.refused:
        found.append(Trouble("order-refused", message.refused[:_MAX_DETAIL]))
    return msgspec.json.encode(found).decode() if found else ""


def everyones(connection: Connection) -> Iterator[tuple[str, tuple[Trouble, ...]]]:
    """(device, its troubles) of devices in service that have any, by name."""
    query = (
        select(devices.c.id, devices.c.troubles)
        .where(devices.c.troubles != "", devices.c.decommissioned_at.is_(None))
        .order_by(devices.c.id)
    )
    for name, text in connection.execute(query):
        yield name, _LIST.decode(text)


def titles(connection: Connection, digests: set[str]) -> dict[str, str]:
    """Digest → NAME@VERSION."""
    if not digests:
        return {}
    query = select(bundles.c.sha256, bundles.c.name, bundles.c.version)
    rows = connection.execute(query.where(among(connection, bundles.c.sha256, digests)))
    return {digest: f"{name}@{version}" for digest, name, version in rows}
