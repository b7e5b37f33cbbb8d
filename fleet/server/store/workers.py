"""Who takes reports in beside the controller: each says every `BEAT_S` that it is there, and whether it hears.

Always true
 1. The fleet hears its devices only while some worker that is there says that it does: a time without one counts
    against nobody (`clock`).
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, delete, select

from fleet.server.schema import workers
from fleet.server.schema_alerts import drops
from fleet.server.store.upsert import upsert

BEAT_S = 2.0
# Who has not been heard of for so long is gone.
GONE_S = 10.0
WorkerRow = Row[Any]
NOTHING: Mapping[str, int] = {}


def beat(
    connection: Connection,
    name: str,
    host: str,
    *,
    now: float,
    is_hearing: bool,
    stored: int,
    dropped: Mapping[str, int] = NOTHING,
) -> None:
    """A worker is there (`now` is steady); `dropped` are the messages that it has left out, by reason."""
    row = {"name": name, "host": host, "seen_at": now, "is_hearing": is_hearing, "stored": stored}
    upsert(connection, workers, [row])
    upsert(
        connection,
        drops,
        [{"worker": name, "reason": why, "dropped": count} for why, count in sorted(dropped.items())],
    )


def leave(connection: Connection, name: str) -> None:
    connection.execute(delete(workers).where(workers.c.name == name))
    connection.execute(delete(drops).where(drops.c.worker == name))


def there(connection: Connection, now: float) -> list[WorkerRow]:
    """Those that were heard of lately."""
    query = select(workers).where(workers.c.seen_at > now - GONE_S)
    return list(connection.execute(query.order_by(workers.c.name)))


def prune(connection: Connection, now: float) -> bool:
    """Forget those that are gone for good; False, for there are never many."""
    connection.execute(delete(workers).where(workers.c.seen_at < now - 360 * GONE_S))
    connection.execute(delete(drops).where(drops.c.worker.not_in(select(workers.c.name))))
    return False


def dropped(connection: Connection) -> dict[tuple[str, str], int]:
    """(worker, reason) → messages that it has left out."""
    return {(row.worker, row.reason): row.dropped for row in connection.execute(select(drops))}
