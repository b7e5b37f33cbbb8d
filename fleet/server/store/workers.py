"""Who takes reports in beside the controller: each says every `BEAT_S` that it is there, and whether it hears.

Always true
 1. The fleet hears its devices only while some worker that is there says that it does: a time without one counts
    against nobody (`clock`).
"""

from typing import Any

from sqlalchemy import Connection, Row, delete, select

from fleet.server.schema import workers
from fleet.server.store.upsert import upsert

BEAT_S = 2.0
# Who has not been heard of for so long is gone.
GONE_S = 10.0
WorkerRow = Row[Any]


def beat(connection: Connection, name: str, host: str, *, now: float, is_hearing: bool, stored: int) -> None:
    """A worker is there (`now` is steady)."""
    row = {"name": name, "host": host, "seen_at": now, "is_hearing": is_hearing, "stored": stored}
    upsert(connection, workers, [row])


def leave(connection: Connection, name: str) -> None:
    connection.execute(delete(workers).where(workers.c.name == name))


def there(connection: Connection, now: float) -> list[WorkerRow]:
    """Those that were heard of lately."""
    query = select(workers).where(workers.c.seen_at > now - GONE_S)
    return list(connection.execute(query.order_by(workers.c.name)))


def prune(connection: Connection, now: float) -> bool:
    """Forget those that are gone for good; False, for there are never many."""
    connection.execute(delete(workers).where(workers.c.seen_at < now - 360 * GONE_S))
    return False
