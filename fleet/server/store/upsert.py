"""Many rows in one statement: what a batch reads, adds and changes costs one round trip and one plan.

PostgreSQL takes one array per column (`unnest`), SQLite a JSON array (`json_each`) or the driver's own executemany.
"""

import json
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    String,
    Table,
    TableValuedAlias,
    any_,
    bindparam,
    func,
    insert,
    literal,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite


def is_postgresql(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql"


def insert_into(connection: Connection, table: Table) -> Any:
    """The dialect's INSERT, which knows ON CONFLICT."""
    return postgresql.insert(table) if is_postgresql(connection) else sqlite.insert(table)


def among(connection: Connection, column: ColumnElement[str], names: Collection[str]) -> ColumnElement[bool]:
    """Whether a text column holds one of these names, however many there are."""
    if is_postgresql(connection):
        return column == any_(literal(list(names), ARRAY(String)))
    values = func.json_each(json.dumps(list(names))).table_valued("value")
    return column.in_(select(values.c.value))


def among_keys(
    connection: Connection, columns: Sequence[ColumnElement[str]], keys: Collection[tuple[str, ...]]
) -> ColumnElement[bool]:
    """Whether text columns together hold one of these keys."""
    if is_postgresql(connection):
        arrays = [literal([key[at] for key in keys], ARRAY(String)) for at in range(len(columns))]
        some = func.unnest(*arrays).table_valued(*(f"k{at}" for at in range(len(columns)))).render_derived()
        return tuple_(*columns).in_(select(*some.c))
    values = func.json_each(json.dumps(list(keys))).table_valued("value")
    parts = [func.json_extract(values.c.value, f"$[{at}]") for at in range(len(columns))]
    return tuple_(*columns).in_(select(*parts))


def upsert(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows, every column of them; one with the same primary key is replaced."""
    if not rows:
        return
    names, keys = list(rows[0]), [column.name for column in table.primary_key]
    statement = insert_into(connection, table)
    if is_postgresql(connection):
        statement = statement.from_select(names, select(*_rows(table, names, rows).c))
    change = {name: statement.excluded[name] for name in names if name not in keys}
    statement = statement.on_conflict_do_update(index_elements=keys, set_=change)
    if is_postgresql(connection):
        connection.execute(statement)
    else:
        connection.execute(statement, list(rows))


def append(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows that meet none that is there."""
    if not rows:
        return
    names = list(rows[0])
    if is_postgresql(connection):
        connection.execute(insert(table).from_select(names, select(*_rows(table, names, rows).c)))
    else:
        connection.execute(insert(table), list(rows))


def insert_new(
    connection: Connection, table: Table, rows: Sequence[dict[str, Any]], returning: Sequence[str]
) -> set[tuple[Any, ...]]:
    """Insert the rows whose primary key is not there yet; these columns of theirs."""
    if not rows:
        return set()
    statement, names = insert_into(connection, table), list(rows[0])
    columns = [table.c[name] for name in returning]
    if is_postgresql(connection):
        statement = statement.from_select(names, select(*_rows(table, names, rows).c))
    # RETURNING, because a driver may leave the row count of ON CONFLICT unset (psycopg 3.3 does).
    statement = statement.on_conflict_do_nothing().returning(*columns)
    given = () if is_postgresql(connection) else (list(rows),)
    return {tuple(row) for row in connection.execute(statement, *given)}


def change(connection: Connection, table: Table, key: str, rows: Sequence[dict[str, Any]]) -> None:
    """Set the columns that `rows` have, all the same ones, where `key` is theirs."""
    if not rows:
        return
    names = [name for name in rows[0] if name != key]
    if is_postgresql(connection):
        new = _rows(table, [key, *names], rows)
        statement = update(table).where(table.c[key] == new.c[key])
        connection.execute(statement.values({name: new.c[name] for name in names}))
        return
    statement = update(table).where(table.c[key] == bindparam("the_key"))
    statement = statement.values({name: bindparam(name) for name in names})
    connection.execute(statement, [{"the_key": row[key], **{n: row[n] for n in names}} for row in rows])


def _rows(table: Table, names: Sequence[str], rows: Sequence[dict[str, Any]]) -> TableValuedAlias:
    """These rows as a table (PostgreSQL)."""
    arrays = [literal([row[name] for row in rows], ARRAY(table.c[name].type)) for name in names]
    return func.unnest(*arrays).table_valued(*names, name="given").render_derived()
