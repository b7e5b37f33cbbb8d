"""Opening the database: SQLite by default, PostgreSQL by URL; migrated to this version before anything reads it.

Always true
 1. Every transaction on SQLite that may write begins with BEGIN IMMEDIATE: read-modify-write never loses an update.
    One that only reads (`read`) waits for nobody, and nobody for it.
 2. SQLite runs in WAL mode with synchronous=FULL: what was acknowledged survives a power cut.
 3. A database of a newer EdgeKit is refused, never half-understood.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from edgekit.distribution import extra
from edgekit.errors import FleetError, UsageError

_BUSY_MS = 10_000
_READS = "edgekit_reads"
_AT_ONCE = "edgekit_at_once"


def sqlite_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'fleet.db'}"


class Database:
    """An engine whose schema is up to date, unless it was asked for otherwise."""

    def __init__(self, url: str, revision: str | None = "head") -> None:
        """Open and migrate: to another revision than the newest for rows that are of that one, not at all with None.

        Raises: UsageError for a URL that is none; FleetError if the database cannot be opened or is newer.
        """
        try:
            self.engine = _engine(url)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise UsageError(
                f"database {url!r}: {error}; use sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME "
                f"(needs: {extra('postgres')})"
            ) from error
        reading: dict[str, Any] = {_READS: True}
        if self.is_postgresql:
            reading |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._at_once = self.engine.execution_options(**{_AT_ONCE: True})
        self._reading = self.engine.execution_options(**reading)
        self.shown_url = make_url(url).render_as_string(hide_password=True)
        try:
            self.migrate(revision)
        except FleetError:
            self.engine.dispose()
            raise

    @property
    def is_postgresql(self) -> bool:
        return self.engine.dialect.name == "postgresql"

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """One transaction: committed at the end, undone by any exception."""
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def begin_at_once(self) -> Iterator[Connection]:
        """The same, but only if no other transaction writes now (SQLite). Raises: OperationalError if one does."""
        with self._at_once.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One transaction that changes nothing: what the database held at one moment, however long it takes."""
        with self._reading.connect() as connection, connection.begin():
            yield connection

    def close(self) -> None:
        self.engine.dispose()

    def revision(self) -> str | None:
        """What its schema is; None while there is none."""
        with self.engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()

    def migrate(self, to: str | None = "head") -> None:
        """Raises: FleetError if the database cannot be used, or is newer."""
        try:
            self._migrate(to)
        except SQLAlchemyError as error:
            cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise FleetError(
                f"the fleet's database {self.shown_url} cannot be used: {cause}; "
                "restore it from a backup, or start with another --state folder"
            ) from error

    def _migrate(self, to: str | None) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
        scripts = ScriptDirectory.from_config(config)
        with self.engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
            connection.rollback()
            if found is not None and found not in {script.revision for script in scripts.walk_revisions()}:
                raise FleetError(
                    f"the fleet's database {self.shown_url} was written by a newer EdgeKit (revision {found}); "
                    "update EdgeKit"
                )
            if to is None or found == scripts.get_current_head():
                return
            with _no_foreign_keys(connection), connection.begin():
                config.attributes["connection"] = connection
                command.upgrade(config, to)


@contextmanager
def _no_foreign_keys(connection: Connection) -> Iterator[None]:
    """SQLite changes a table by making it anew; rows of others that refer to it must not be in the way meanwhile.

    Only outside of a transaction the setting has an effect.
    """
    if connection.dialect.name != "sqlite":
        yield
        return
    driver: Any = connection.connection.dbapi_connection
    driver.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys=ON")


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        engine = create_engine(parsed, pool_pre_ping=True)

        @event.listens_for(engine, "connect")
        def _opened(connection: Any, _record: object) -> None:
            from psycopg.types.array import ListBinaryDumper

            # Arrays as text have every quote in them escaped, by Python: half of what storing a batch costs.
            connection.adapters.register_dumper(list, ListBinaryDumper)

        return engine
    engine = create_engine(parsed, connect_args={"timeout": _BUSY_MS / 1000, "check_same_thread": False})

    # The driver's own transaction handling begins too late; SQLAlchemy's documented recipe hands it to us.
    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={_BUSY_MS}"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get(_READS, False):
            connection.exec_driver_sql("BEGIN")
        elif options.get(_AT_ONCE, False):
            connection.exec_driver_sql("PRAGMA busy_timeout=0")
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            finally:
                connection.exec_driver_sql(f"PRAGMA busy_timeout={_BUSY_MS}")
        else:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
