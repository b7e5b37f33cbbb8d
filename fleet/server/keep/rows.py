"""All rows of a database as text, and back: the same text from SQLite and PostgreSQL.

Always true
 1. A row is one line of JSON, its values in the order of the table's columns; bytes are base64.
 2. Two tables hold the same rows exactly if they have the same count and the same digest, whatever order they are read in.
 3. What is read is what one transaction sees; the caller begins it.
"""

import base64
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.exc import SQLAlchemyError

from edgekit.errors import FleetError
from fleet.server.database import Database
from fleet.server.store.upsert import append, is_postgresql

# Which revision the schema has travels apart; who is signed in, and which workers run, is of the moment.
LEFT_OUT = frozenset({"alembic_version", "sessions", "workers"})
_AT_ONCE = 2000
_ENCODER = msgspec.json.Encoder()
_WHOLE = 1 << 256


class Counted(msgspec.Struct, frozen=True):
    """How many rows, and the sum of their sha256 (modulo 2^256) as hex: it does not depend on an order."""

    rows: int = 0
    digest: str = "0" * 64


class Counter:
    """Counts lines as they go by."""

    def __init__(self) -> None:
        self._rows = self._sum = 0

    def add(self, line: bytes) -> None:
        self._rows += 1
        self._sum = (self._sum + int.from_bytes(hashlib.sha256(line).digest())) % _WHOLE

    @property
    def counted(self) -> Counted:
        return Counted(self._rows, f"{self._sum:064x}")


def tables(connection: Connection) -> list[Table]:
    """The tables as they are there, each after those that it refers to: also those of an older schema."""
    found = MetaData()
    found.reflect(connection)
    return [table for table in found.sorted_tables if table.name not in LEFT_OUT]


def is_empty(connection: Connection) -> bool:
    """Whether there is no table at all."""
    return not inspect(connection).get_table_names()


@contextmanager
def whole_or_nothing(database: Database) -> Iterator[None]:
    """Fill a database that was empty; if it fails, it is empty again."""
    try:
        yield
    except BaseException:
        with suppress(SQLAlchemyError), database.begin() as connection:
            found = MetaData()
            found.reflect(connection)
            found.drop_all(connection)
        raise


def lines(connection: Connection, table: Table) -> Iterator[bytes]:
    """Every row, without the end of its line."""
    binary = _binary(table)
    for row in connection.execute(select(table).execution_options(yield_per=_AT_ONCE)):
        values = list(row)
        for at in binary:
            if values[at] is not None:
                values[at] = base64.b64encode(values[at]).decode()
        yield _ENCODER.encode(values)


def count(connection: Connection, table: Table) -> Counted:
    counter = Counter()
    for line in lines(connection, table):
        counter.add(line)
    return counter.counted


def put(connection: Connection, table: Table, given: Iterable[bytes]) -> Counted:
    """Insert rows into an empty table. Raises: FleetError for a line that is no row of it."""
    names, binary, counter = [column.name for column in table.columns], _binary(table), Counter()
    waiting: list[dict[str, Any]] = []
    for line in given:
        counter.add(line)
        waiting.append(_row(table, names, binary, line))
        if len(waiting) == _AT_ONCE:
            append(connection, table, waiting)
            waiting = []
    append(connection, table, waiting)
    return counter.counted


def _row(table: Table, names: list[str], binary: list[int], line: bytes) -> dict[str, Any]:
    try:
        values = msgspec.json.decode(line, type=list[Any])
        for at in binary:
            if values[at] is not None:
                values[at] = base64.b64decode(values[at], validate=True)
        return dict(zip(names, values, strict=True))
    except (msgspec.DecodeError, ValueError, TypeError, IndexError) as error:
        raise FleetError(f"table {table.name}: a row cannot be read ({error})") from error


def _binary(table: Table) -> list[int]:
    return [at for at, column in enumerate(table.columns) if isinstance(column.type, LargeBinary)]


def go_on_counting(connection: Connection, table: Table) -> None:
    """Numbers that the database gives go on after the highest that is there (SQLite does so by itself)."""
    keys = list(table.primary_key.columns)
    if not is_postgresql(connection) or len(keys) != 1 or not isinstance(keys[0].type, Integer | BigInteger):
        return
    sequence = connection.execute(
        text("SELECT pg_get_serial_sequence(:table, :column)"), {"table": table.name, "column": keys[0].name}
    ).scalar()
    if sequence is not None:
        highest = connection.execute(select(func.coalesce(func.max(keys[0]), 0))).scalar_one()
        connection.execute(
            text("SELECT setval(:sequence, :next, false)"), {"sequence": sequence, "next": highest + 1}
        )
