"""`edgekit fleet move`: the same fleet in another database, SQLite to PostgreSQL or back, while its service is stopped.

Always true
 1. Nobody writes meanwhile: the home's lock and the controller's are held, and no worker is there.
 2. The other database is empty before, and after holds the same rows, read again and compared; its transaction commits
    only then. The settings are switched in one step, after that; up to it the fleet is where it was.
 3. The database that was left is marked: no service goes on with it by mistake.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from edgekit.errors import ConflictError, FleetError, UsageError
from fleet.publish import write_private
from fleet.server import home
from fleet.server.clock import Clock
from fleet.server.database import Database, sqlite_url
from fleet.server.keep import rows, toml
from fleet.server.keep.rows import Counted
from fleet.server.lock import Lock
from fleet.server.state import StateFolder
from fleet.server.store import audit, settings, workers

# `--to sqlite`: the home's own file.
SQLITE = "sqlite"


@dataclass(frozen=True)
class Wanted:
    state: Path
    to: str
    database: str | None = None


class Moved(msgspec.Struct, frozen=True):
    """`aside` is where the file of an earlier time was put, empty if there was none."""

    fleet: str
    source: str
    target: str
    tables: dict[str, Counted]
    aside: str = ""


def move(wanted: Wanted, now: float, tell: Callable[[str], None] = lambda _: None) -> Moved:
    """Raises: UsageError, ConflictError, FleetError; the fleet is then where it was."""
    config = home.read_config(wanted.state)
    here, to = wanted.database or config.database or sqlite_url(wanted.state), _target(wanted)
    if make_url(here) == make_url(to):
        raise UsageError(f"--to {wanted.to}: the fleet is there already")
    with (
        closing(StateFolder(wanted.state)) as folder,
        closing(Database(here)) as source,
        _alone(source),
    ):
        home.check_database(source, config)
        aside = _make_room(to, config.fleet)
        with closing(Database(to, None)) as target:
            with target.read() as connection:
                if not rows.is_empty(connection):
                    raise ConflictError(
                        f"the database {target.shown_url} is not empty; nothing is written over: make a new one"
                    )
            with rows.whole_or_nothing(target):
                target.migrate()
                counted = _copy(source, target, now, tell)
            own = "" if to == sqlite_url(wanted.state) else to
            file = folder.path / home.CONFIG_FILE
            write_private(file, toml.with_setting(file.read_text(encoding="utf-8"), "database", own).encode())
            with source.begin() as connection:
                settings.put(connection, settings.MOVED, target.shown_url)
            return Moved(config.fleet, source.shown_url, target.shown_url, counted, aside)


def _target(wanted: Wanted) -> str:
    if wanted.to == SQLITE:
        return sqlite_url(wanted.state)
    try:
        make_url(wanted.to)
    except ArgumentError as error:
        raise UsageError(
            f"--to {wanted.to!r}: no database; write sqlite, sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME"
        ) from error
    return wanted.to


@contextmanager
def _alone(source: Database) -> Iterator[None]:
    """Raises: ConflictError if a service or a worker is at work on it, on any machine."""
    lock = Lock(source)
    if not lock.take():
        raise ConflictError(f"a service is at work on {source.shown_url}; stop it first")
    try:
        with source.read() as connection:
            clock = Clock()
            clock.resume(connection)
            seen = [row.name for row in workers.there(connection, clock.now().steady)]
        if seen:
            raise ConflictError(
                f"workers are at work on {source.shown_url}: {', '.join(seen)}; stop them first (of one that was killed "
                "it is known some seconds later)"
            )
        yield
    finally:
        lock.release()


def _make_room(to: str, fleet: str) -> str:
    """A file that this very fleet has left earlier is put aside; its new name."""
    path = Path(make_url(to).database or "")
    if make_url(to).get_backend_name() != "sqlite" or not path.exists() or not path.stat().st_size:
        return ""
    with closing(Database(to, None)) as older, older.read() as connection:
        if rows.is_empty(connection):
            return ""
        is_ours = settings.get(connection, settings.FLEET) == fleet
        if not is_ours or not settings.get(connection, settings.MOVED):
            raise ConflictError(f"the database {older.shown_url} is not empty; nothing is written over")
    with closing(sqlite3.connect(path)) as held:
        # So that the file alone is all of it.
        held.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    aside = path.with_name(f"{path.name}.left-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return str(aside)


def _copy(source: Database, target: Database, now: float, tell: Callable[[str], None]) -> dict[str, Counted]:
    """Every row, in one transaction of each side. Raises: FleetError if they are not the same in the end."""
    counted: dict[str, Counted] = {}
    with source.read() as given, target.begin() as taken:
        theirs = {table.name: table for table in rows.tables(taken)}
        for table in rows.tables(given):
            there = theirs[table.name]
            counted[table.name] = rows.put(taken, there, rows.lines(given, table))
            rows.go_on_counting(taken, there)
            found = rows.count(taken, there)
            if found != counted[table.name]:
                raise FleetError(
                    f"table {table.name}: {found.rows} rows of {counted[table.name].rows} arrived, or not the same ones"
                )
            if found.rows:
                tell(f"{table.name}: {found.rows} rows, the same")
        fleet = settings.get(taken, settings.FLEET) or ""
        after = {"from": source.shown_url, "to": target.shown_url}
        audit.append(taken, now, audit.FLEET, "fleet.move", fleet, after=after)
    return counted
