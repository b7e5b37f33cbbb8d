"""`edgekit fleet backup`: a copy of a fleet while it runs.

Always true
 1. All rows are of one moment: of SQLite a copy is made by its own backup interface, of PostgreSQL one snapshot is read.
    The fleet goes on meanwhile, and waits for nothing.
 2. Files are read after the rows: what the rows speak of is there.
 3. The schema is left as it is: the service that runs may be of another version than this command.
"""

import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection

from edgekit import __version__
from edgekit.errors import FleetError
from fleet.server import home
from fleet.server.database import Database, sqlite_url
from fleet.server.keep import archive, rows, toml
from fleet.server.keep.archive import Manifest, Writer
from fleet.server.state import load_keys
from fleet.server.store import settings

PASSPHRASE = "EDGEKIT_BACKUP_PASSPHRASE"  # noqa: S105  # the name of a variable, not a secret
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """`passphrase` seals the private keys; None leaves them out."""

    state: Path
    out: Path
    database: str | None = None
    passphrase: bytes | None = None


def make(wanted: Wanted, now: float, tell: Tell = lambda _: None) -> Manifest:
    """Raises: UsageError, ConflictError, FleetError; nothing is left of the file then."""
    config = home.read_config(wanted.state)
    keys = load_keys(wanted.state / "keys")
    url = wanted.database or config.database or sqlite_url(wanted.state)
    with archive.new(wanted.out) as writer, _snapshot(url, wanted.out.parent) as (database, connection):
        found = settings.get(connection, settings.FLEET)
        if found != config.fleet:
            raise FleetError(
                f"the database {database.shown_url} is not {config.fleet}'s but {found or 'empty'}"
            )
        counted = {}
        for table in rows.tables(connection):
            counter = rows.Counter()
            writer.add(f"tables/{table.name}.jsonl", _counted(rows.lines(connection, table), counter))
            counted[table.name] = counter.counted
            if counter.counted.rows:
                tell(f"{table.name}: {counter.counted.rows} rows")
        revision = database.revision() or ""
        _files(writer, wanted, config.fleet, tell)
        manifest = Manifest(config.fleet, now, revision, __version__, counted, writer.members)
        writer.finish(manifest, keys.audit)
    return manifest


def _counted(lines: Iterator[bytes], counter: rows.Counter) -> Iterator[bytes]:
    for line in lines:
        counter.add(line)
        yield line + b"\n"


@contextmanager
def _snapshot(url: str, beside: Path) -> Iterator[tuple[Database, Connection]]:
    """One moment of the database, for as long as it is read."""
    with tempfile.TemporaryDirectory(prefix=".backup-", dir=beside) as folder:
        original = Database(url, None)
        database = original
        try:
            if not original.is_postgresql:
                copy = Path(folder) / "copy.db"
                _copy(Path(original.engine.url.database or ""), copy)
                database = Database(f"sqlite:///{copy}", None)
            with database.read() as connection:
                yield database, connection
        finally:
            database.close()
            original.close()


def _copy(source: Path, target: Path) -> None:
    """In one step, so that no writer makes it begin again: readers do not hold writers up (WAL)."""
    try:
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as held,
            closing(sqlite3.connect(target)) as copy,
        ):
            held.backup(copy)
    except sqlite3.Error as error:
        raise FleetError(f"{source}: the database cannot be copied ({error})") from error


def _files(writer: Writer, wanted: Wanted, fleet: str, tell: Tell) -> None:
    state = wanted.state
    text = (state / home.CONFIG_FILE).read_text(encoding="utf-8")
    writer.add(archive.SETTINGS, [toml.with_setting(text, "database", "").encode()])
    writer.add_file("keys/ca.pem", state / "keys" / "ca.pem")
    for path in sorted((state / "artifacts").glob("*.edgekit")):
        writer.add_file(f"artifacts/{path.name}", path)
    metadata = state / "tuf" / "metadata"
    for path in sorted(one for one in metadata.rglob("*") if one.is_file() and not one.name.startswith(".")):
        writer.add_file(f"tuf/metadata/{path.relative_to(metadata)}", path)
    tell("artifacts and metadata: copied")
    if wanted.passphrase is not None:
        secrets = private_files(state)
        writer.add(archive.KEYS, [archive.seal(secrets, wanted.passphrase, fleet)], is_packed=True)
        tell(f"private keys: {len(secrets)} files, sealed")


def private_files(state: Path) -> dict[str, bytes]:
    """What nobody else may have, by its path in the home: all keys, and the publisher's folder if it is there."""
    found = [path for path in (state / "keys").iterdir() if path.suffix in (".key", ".pem")]
    found += (state / "tuf").glob("*.key")
    found += [path for path in (state / "publisher").rglob("*") if path.is_file()]
    return {str(path.relative_to(state)): path.read_bytes() for path in sorted(found) if path.is_file()}
