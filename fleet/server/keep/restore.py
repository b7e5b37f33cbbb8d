"""`edgekit fleet restore`: a fleet from a backup, on this machine or another.

Always true
 1. It is made whole or not at all, and over nothing: the folder holds no fleet, the database nothing. `fleet.toml`, which
    makes a folder a fleet's home, comes last.
 2. What is in the tables afterwards was read again and is what the backup says, and its audit log is whole.
 3. No number of an order or an enrolment that may have been given out after the backup is given out again: numbers go on
    a day's worth of milliseconds, or a thousand, above all that are known. Every device gets its order anew, above any
    that it may have followed since.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography import x509
from sqlalchemy import Connection, func, select

from edgekit.errors import ConflictError, FleetError, UsageError
from fleet import audit as audit_rules
from fleet.publish import write_private
from fleet.rules.rollout import ACTIVE
from fleet.server import home, schema
from fleet.server.database import Database, sqlite_url
from fleet.server.keep import archive, rows, toml
from fleet.server.keep.archive import Manifest, Reader
from fleet.server.notary import HEAD_FILE
from fleet.server.state import Keys, load_keys
from fleet.server.store import audit, known, orders, settings
from fleet.server.store.orders import Issuer

# Counters are milliseconds of a clock that may have been wrong by as much.
ORDERS_AHEAD, ENROLMENTS_AHEAD = 86_400_000, 1000
# Folders of keys that an operator kept elsewhere and has put back.
_KEPT = frozenset({"keys", "publisher", "tuf"})
_AT_ONCE = 500


@dataclass(frozen=True)
class Wanted:
    file: Path
    state: Path
    database: str | None = None
    passphrase: bytes | None = None


class Restored(msgspec.Struct, frozen=True):
    """`ordered` devices have a new order; `under_way` rollouts go on; `lost` audit entries are known to be missing."""

    fleet: str
    taken_at: float
    rows: int
    devices: int
    ordered: int
    under_way: tuple[str, ...]
    lost: int


def restore(wanted: Wanted, now: float, tell: Callable[[str], None] = lambda _: None) -> Restored:
    """Raises: UsageError, ConflictError, FleetError."""
    _check_folder(wanted.state)
    with closing(Reader(wanted.file)) as backup, _beside(wanted.state) as made:
        manifest = backup.manifest
        keys = _keys(backup, wanted, made)
        backup.check_signature({keys.audit.keyid: keys.audit.public_hex})
        _check_authority(backup, made)
        for name in (*backup.below("artifacts"), *backup.below("tuf")):
            backup.extract(name, made / name)
        tell(f"{len(backup.below('artifacts'))} artifacts, keys and metadata: there")
        # Versions are by the clock: signed anew at the start, they are above those that devices saw.
        (made / "tuf" / "metadata" / "timestamp.json").unlink(missing_ok=True)
        database = Database(wanted.database or sqlite_url(made), None)
        try:
            _check_empty(database)
            with rows.whole_or_nothing(database):
                _rows(database, backup, tell)
                lost = _audit(database, manifest, keys, made, wanted.state)
                restored = _go_on(database, manifest, keys, now, lost)
            tell(f"{restored.ordered} devices: ordered anew")
        finally:
            database.close()
        settled = toml.with_setting(backup.read(archive.SETTINGS).decode(), "database", wanted.database or "")
        write_private(made / home.CONFIG_FILE, settled.encode())
        home.read_config(made)
        _take_place(made, wanted.state)
    return restored


def _check_folder(state: Path) -> None:
    """Raises: UsageError, ConflictError."""
    if not state.exists():
        return
    if not state.is_dir():
        raise UsageError(f"--state {state}: is no folder")
    if home.is_home(state):
        raise ConflictError(f"--state {state}: holds a fleet already; a backup is never restored over one")
    others = sorted(path.name for path in state.iterdir() if path.name not in {*_KEPT, HEAD_FILE})
    if others:
        raise UsageError(
            f"--state {state}: holds {', '.join(others[:5])}; choose a new folder, or one that holds nothing but the keys "
            f"that you kept ({', '.join(sorted(_KEPT))})"
        )


@contextmanager
def _beside(state: Path) -> Iterator[Path]:
    """A folder to make everything in, on the same file system; gone afterwards."""
    whole = state.absolute()
    made = whole.with_name(f".{whole.name}.{os.getpid()}.part")
    try:
        whole.parent.mkdir(parents=True, exist_ok=True)
        made.mkdir(mode=0o700)
    except OSError as error:
        raise FleetError(f"--state {state}: cannot be made there ({error.strerror})") from error
    try:
        yield made
    except OSError as error:
        raise FleetError(f"--state {state}: cannot be filled ({error.strerror})") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _keys(backup: Reader, wanted: Wanted, made: Path) -> Keys:
    """The private keys, from the folder or from the backup. Raises: UsageError, FleetError."""
    there = [name for name in sorted(_KEPT) if (wanted.state / name).is_dir()]
    if "keys" in there:
        for name in there:
            shutil.copytree(wanted.state / name, made / name, ignore=shutil.ignore_patterns("*.lock"))
    elif not backup.has(archive.KEYS):
        raise UsageError(
            f"{backup.path}: holds no private keys, and {wanted.state} none either; put the folder 'keys' that you kept "
            f"apart (and 'publisher', 'tuf/*.key') into {wanted.state} first"
        )
    elif wanted.passphrase is None:
        raise UsageError(f"{backup.path}: its keys are sealed; give --passphrase-file FILE")
    else:
        sealed = archive.unseal(backup.read(archive.KEYS), wanted.passphrase, backup.manifest.fleet)
        for name, data in sealed.items():
            path = made / name
            if not path.resolve().is_relative_to(made.resolve()):
                raise FleetError(f"{backup.path}: names {name!r}, which is no key of a home")
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(path, data)
    return load_keys(made / "keys")


def _check_authority(backup: Reader, made: Path) -> None:
    """Raises: ConflictError if the keys are those of another authority."""
    try:
        given = x509.load_pem_x509_certificate((made / "keys" / "ca.pem").read_bytes())
        theirs = x509.load_pem_x509_certificate(backup.read("keys/ca.pem"))
    except (OSError, ValueError) as error:
        raise FleetError(f"keys/ca.pem: cannot be read ({error})") from error
    if given.public_key() != theirs.public_key():
        raise ConflictError(
            "keys/ca.pem is of another authority than the backup's: devices would trust neither it nor us"
        )


def _check_empty(database: Database) -> None:
    """Raises: ConflictError."""
    with database.read() as connection:
        if not rows.is_empty(connection):
            raise ConflictError(
                f"the database {database.shown_url} is not empty; a backup is never restored over anything: make a new one"
            )


def _rows(database: Database, backup: Reader, tell: Callable[[str], None]) -> None:
    """The tables as they were, read again, and then brought to this version's schema. Raises: FleetError."""
    wanted = backup.manifest.tables
    database.migrate(backup.manifest.revision)
    with database.begin() as connection:
        for table in rows.tables(connection):
            if table.name not in wanted:
                continue
            rows.put(connection, table, backup.lines(f"tables/{table.name}.jsonl"))
            rows.go_on_counting(connection, table)
            if (found := rows.count(connection, table)) != wanted[table.name]:
                raise FleetError(
                    f"table {table.name}: {found.rows} rows were restored of {wanted[table.name].rows}, or not the same ones"
                )
            if found.rows:
                tell(f"{table.name}: {found.rows} rows, as they were")
    database.migrate()


def _audit(database: Database, manifest: Manifest, keys: Keys, made: Path, state: Path) -> int:
    """That the log is whole; how many entries it is known to lack. Raises: FleetError."""
    public = {keys.audit.keyid: keys.audit.public_hex}
    with database.read() as connection:
        found = audit_rules.examine(
            audit.entries(connection),
            audit.heads(connection),
            fleet=manifest.fleet,
            keys=public,
            now=manifest.taken_at,
        )
        newest = audit.newest_head(connection)
    if found.problems:
        raise FleetError(f"the audit log of this backup is not whole: {'; '.join(found.problems)}")
    if newest is not None:
        write_private(made / HEAD_FILE, newest)
    outside = state / HEAD_FILE
    if not outside.is_file():
        return 0
    return max(0, audit_rules.read_head(outside.read_bytes(), manifest.fleet, public).entry - found.newest)


def _go_on(database: Database, manifest: Manifest, keys: Keys, now: float, lost: int) -> Restored:
    """Numbers jump ahead, and every device that has an order gets it anew."""
    devices = schema.devices
    with database.begin() as connection:
        settings.put(connection, settings.ORDERS_ABOVE, str(_above(connection, now)))
        highest = connection.execute(select(func.coalesce(func.max(devices.c.enrolment), 0))).scalar_one()
        settings.put(connection, settings.ENROLMENTS_ABOVE, str(highest + ENROLMENTS_AHEAD))
        issuer = Issuer(manifest.fleet, keys.order, settings.number(connection, settings.ORDERS_ABOVE))
        has_order = devices.c.order_counter > 0, devices.c.decommissioned_at.is_(None)
        names = (
            connection.execute(select(devices.c.id).where(*has_order).order_by(devices.c.id)).scalars().all()
        )
        for start in range(0, len(names), _AT_ONCE):
            some = known.lock(connection, names[start : start + _AT_ONCE])
            orders.issue_all(connection, issuer, some, now)
        count = int(connection.execute(select(func.count()).select_from(devices)).scalar_one())
        under_way = connection.execute(
            select(schema.rollouts.c.id).where(schema.rollouts.c.status.in_([one.value for one in ACTIVE]))
        )
        restored = Restored(
            manifest.fleet,
            manifest.taken_at,
            sum(one.rows for one in manifest.tables.values()),
            count,
            len(names),
            tuple(f"r{number}" for number in sorted(under_way.scalars())),
            lost,
        )
        audit.append(connection, now, audit.FLEET, "fleet.restore", manifest.fleet, after=restored)
    return restored


def _above(connection: Connection, now: float) -> int:
    columns = (schema.devices.c.order_counter, schema.devices.c.reported_counter)
    known_ones = [
        connection.execute(select(func.coalesce(func.max(column), 0))).scalar_one() for column in columns
    ]
    highest: int = max(int(now * 1000), *known_ones)
    return highest + ORDERS_AHEAD


def _take_place(made: Path, state: Path) -> None:
    """What was made becomes the home, file by file, its settings last. Keys that were there stay where they are."""
    state.mkdir(mode=0o700, exist_ok=True)
    older = state / HEAD_FILE
    if older.exists():
        older.replace(older.with_name(f"{HEAD_FILE}.before-restore"))
    files = sorted(path for path in made.rglob("*") if path.is_file())
    for path in sorted(files, key=lambda one: one == made / home.CONFIG_FILE):
        place = state / path.relative_to(made)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.rename(place)
    for name in ("keys", "artifacts"):
        (state / name).mkdir(exist_ok=True, mode=0o700)
