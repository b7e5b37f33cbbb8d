"""Insert or replace, many rows at once, on both databases."""

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite

# Parameters of one statement; SQLite takes 32,766.
CHUNK = 500
T = TypeVar("T")


def insert_into(connection: Connection, table: Table) -> Any:
    """The dialect's INSERT, which knows ON CONFLICT."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def upsert(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows, every column of them; one with the same primary key is replaced."""
    if not rows:
        return
    statement = insert_into(connection, table)
    keys = [column.name for column in table.primary_key]
    change = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=change), list(rows))


def chunks(names: Sequence[T]) -> list[Sequence[T]]:
    """`names` in pieces that fit a statement."""
    return [names[at : at + CHUNK] for at in range(0, len(names), CHUNK)]
