"""What is wrong with devices by their own word, as `fleet.rules.facts` keeps it with the row of each."""

from collections.abc import Iterator

import msgspec
from sqlalchemy import Connection, select

from fleet.rules.findings import Trouble
from fleet.server.schema import bundles, devices
from fleet.server.store.upsert import among

_LIST = msgspec.json.Decoder(tuple[Trouble, ...])


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
