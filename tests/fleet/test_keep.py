"""Backup, restore and move, without a service: what is copied is the same, what is damaged is refused, numbers jump ahead."""

import json
import resource
import shutil
import signal
import sqlite3
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import func, insert, select, update
from store_support import NEW, NOW, OLD, enrolled, report, rollout_of, said

from edgekit.errors import ConflictError, EdgeKitError, FleetError, UsageError
from fleet.server import home, ingest, schema
from fleet.server.clock import same
from fleet.server.database import Database, sqlite_url
from fleet.server.keep import archive, backup, move, restore, rows, toml
from fleet.server.keep.rows import Counted
from fleet.server.lock import Lock
from fleet.server.notary import Notary
from fleet.server.schema_audit import audit as audit_table
from fleet.server.state import StateFolder, load_keys
from fleet.server.store import audit, known, orders, rollouts, settings
from fleet.server.store.orders import Issuer

SECRET = b"a passphrase"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keep") / "fleet"
    fill(folder, None)
    return folder


@pytest.fixture
def made(example: Path, tmp_path: Path) -> Path:
    """The home of a fleet with devices, a rollout under way, orders, reports and a signed audit log."""
    return Path(shutil.copytree(example, tmp_path / "fleet"))


def fill(folder: Path, url: str | None) -> None:
    config = home.create(folder, {}, url, None, NOW)
    names = [f"d{n}" for n in range(4)]
    with closing(Database(url or sqlite_url(folder))) as database:
        enrolled(database, names)
        keys = load_keys(folder / "keys")
        with database.begin() as connection:
            rollout = rollout_of(names, judged_from=NOW)
            rollouts.add(connection, rollout, NOW)
            issuer = Issuer(config.fleet, keys.order)
            orders.issue_all(connection, issuer, known.lock(connection, names[:3]), NOW)
            settings.note_order_key(connection, keys.order.keyid)
            audit.append(
                connection, NOW, audit.FLEET, "rollout.start", "r1", "\u00fc \U0001f680", after={"n": 1}
            )
        for minute in range(1, 4):
            at = NOW + 61 + 60 * minute
            batch = [report(name, minute, at, digest=NEW if name == "d0" else OLD) for name in names]
            ingest.take_in(database, [*batch, said("d0", minute, counter=7)], same(at))
        Notary(database, config.fleet, keys.audit, folder).sign_if_due(NOW + 300)
    (folder / "artifacts" / f"{'a' * 64}.edgekit").write_bytes(b"a bundle")


def copied(folder: Path, *, passphrase: bytes | None = SECRET, database: str | None = None) -> Path:
    out = folder.parent / "backup.zip"
    out.unlink(missing_ok=True)
    backup.make(backup.Wanted(folder, out, database, passphrase), NOW + 310)
    return out


def restored(file: Path, to: Path, database: str | None = None, now: float = NOW + 400) -> restore.Restored:
    return restore.restore(restore.Wanted(file, to, database, SECRET), now)


def counted(url: str) -> dict[str, Counted]:
    with closing(Database(url, None)) as database, database.read() as connection:
        return {table.name: rows.count(connection, table) for table in rows.tables(connection)}


# What a restore changes: orders are said anew, settings say how far numbers jumped, and the log says so.
CHANGED = {"orders", "outbox", "devices", "settings", "audit"}


def test_a_restored_fleet_is_the_one_that_was_copied(made: Path) -> None:
    before = counted(sqlite_url(made))
    other = made.with_name("other")
    told = restored(copied(made), other)
    after = counted(sqlite_url(other))
    assert {name for name in before if before[name] != after[name]} == CHANGED
    assert all(
        before[name].rows for name in ("members", "totals", "reports", "release_history", "arm_history")
    )
    assert (told.devices, told.ordered, told.under_way, told.lost) == (4, 3, ("r1",), 0)
    assert (other / "artifacts" / f"{'a' * 64}.edgekit").read_bytes() == b"a bundle"
    for name in ("order.key", "secrets.key", "ca.key", "ca.pem"):
        assert (other / "keys" / name).read_bytes() == (made / "keys" / name).read_bytes()
    assert (other / "publisher").is_dir()
    assert home.read_config(other) == home.read_config(made)
    keys, fleet = load_keys(other / "keys"), home.read_config(other).fleet
    with closing(Database(sqlite_url(other))) as database:
        assert not Notary(database, fleet, keys.audit, other).examine(NOW + 420).problems
    assert not [path for path in other.parent.iterdir() if path.name.endswith(".part")]


@pytest.mark.postgres
def test_both_databases_give_the_same_backup_and_take_each_others(made: Path, empty_postgresql: str) -> None:
    there = made.with_name("on-postgres")
    first = copied(made)
    restored(first, there, empty_postgresql)
    with closing(archive.Reader(first)) as one, closing(archive.Reader(copied(there))) as two:
        tables = one.manifest.tables.keys() - CHANGED
        assert {name: one.manifest.tables[name] for name in tables} == {
            name: two.manifest.tables[name] for name in tables
        }
    back = made.with_name("back")
    restored(made.with_name("backup.zip"), back)
    assert counted(sqlite_url(back)).keys() == one.manifest.tables.keys()
    with closing(Database(empty_postgresql)) as database, database.begin() as connection:
        # Numbers that the database gives go on: the next entry of the log collides with none.
        audit.append(connection, NOW, audit.FLEET, "test", "x")


def test_no_number_that_may_have_been_given_out_since_is_given_out_again(made: Path) -> None:
    """The clock of the new machine is a month slow, and the devices have heard of orders that the backup does not know."""
    other = made.with_name("other")
    with closing(Database(sqlite_url(made))) as database, database.begin() as connection:
        highest = connection.execute(select(func.max(schema.devices.c.order_counter))).scalar_one()
        connection.execute(
            update(schema.devices).where(schema.devices.c.id == "d1").values(reported_counter=highest + 50)
        )
    slow = NOW - 30 * 86_400
    restored(copied(made), other, now=slow)
    with closing(Database(sqlite_url(other))) as database, database.begin() as connection:
        issued = dict(connection.execute(select(schema.outbox.c.device, schema.outbox.c.counter)).all())
        assert sorted(issued) == ["d0", "d1", "d2"]
        assert min(issued.values()) >= highest + 50 + restore.ORDERS_AHEAD
        above = settings.number(connection, settings.ORDERS_ABOVE)
        issuer = Issuer("f", load_keys(other / "keys").order, above)
        # One that the backup knows as never ordered may have been since.
        assert orders.issue(connection, issuer, "d3", slow) >= above > highest + 50
        assert settings.number(connection, settings.ENROLMENTS_ABOVE) == 1 + restore.ENROLMENTS_AHEAD


def test_keys_leave_the_home_sealed_or_not_at_all(made: Path, tmp_path: Path) -> None:
    secrets = backup.private_files(made)
    assert {"keys/order.key", "keys/secrets.key", "keys/ca.key", "tuf/online.key"} <= secrets.keys()
    for passphrase in (None, SECRET):
        with zipfile.ZipFile(copied(made, passphrase=passphrase)) as whole:
            everything = b"".join(whole.read(name) for name in whole.namelist())
            assert (archive.KEYS in whole.namelist()) is (passphrase is not None)
            assert b"PRIVATE" not in everything
            assert not any(data in everything for path, data in secrets.items() if path.endswith(".key"))
    with pytest.raises(FleetError, match="is the passphrase right"):
        restore.restore(restore.Wanted(copied(made), tmp_path / "x", None, b"another"), NOW)
    with pytest.raises(UsageError, match="its keys are sealed"):
        restore.restore(restore.Wanted(copied(made), tmp_path / "x"), NOW)
    assert not (tmp_path / "x").exists()


def test_without_keys_in_it_a_backup_goes_with_those_that_were_kept(made: Path, tmp_path: Path) -> None:
    file, other = copied(made, passphrase=None), tmp_path / "other"
    with pytest.raises(UsageError, match="holds no private keys"):
        restored(file, other)
    for name in ("keys", "publisher"):
        shutil.copytree(made / name, other / name)
    (other / "tuf").mkdir()
    shutil.copy(made / "tuf" / "online.key", other / "tuf" / "online.key")
    restored(file, other)
    assert home.read_config(other).fleet == home.read_config(made).fleet
    assert list((other / "tuf" / "metadata").glob("*.root.json"))

    stranger = tmp_path / "stranger"
    home.create(tmp_path / "another", {}, None, None, NOW)
    shutil.copytree(tmp_path / "another" / "keys", stranger / "keys")
    with pytest.raises(FleetError, match="not signed by these keys' fleet"):
        restored(file, stranger)
    assert not home.is_home(stranger)


def rewritten(file: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """The same zip with members changed, or taken out."""
    with zipfile.ZipFile(file) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(file, "w") as new:
        for name, data in members.items():
            if (changed := change(name, data)) is not None:
                new.writestr(name, changed)


def tampered(name: str, data: bytes) -> bytes:
    """A row that says something else, and a list that agrees with it."""
    if name == "tables/devices.jsonl":
        return data.replace(b'"d1"', b'"d9"')
    return data


DAMAGES: dict[str, tuple[Callable[[str, bytes], bytes | None], str]] = {
    "a row changed": (tampered, "not what its list says"),
    "a table gone": (lambda name, data: None if name == "tables/totals.jsonl" else data, "cannot be read"),
    "an artifact cut": (
        lambda name, data: data[:-1] if name.startswith("artifacts/") else data,
        "not what its list says",
    ),
    "another list": (
        lambda name, data: (
            data.replace(b'"taken_at": 17', b'"taken_at": 16') if name == archive.MANIFEST else data
        ),
        "not the one that was signed",
    ),
    "no list": (lambda name, data: None if name == archive.MANIFEST else data, "no backup of a fleet"),
    "a later format": (
        lambda name, data: data.replace(b'"format": 1', b'"format": 2') if name == archive.MANIFEST else data,
        "format 2, which is not known here",
    ),
    "a way out": (
        lambda name, data: data.replace(b"artifacts/", b"../facts//") if name == archive.MANIFEST else data,
        "no member of a backup",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_backup_is_refused_and_leaves_nothing(made: Path, tmp_path: Path, damage: str) -> None:
    file, other = copied(made), tmp_path / "other"
    change, words = DAMAGES[damage]
    rewritten(file, change)
    with pytest.raises(EdgeKitError, match=words):
        restored(file, other)
    assert not home.is_home(other)
    assert {path.name for path in tmp_path.iterdir()} == {"fleet", "backup.zip"}


def test_half_a_backup_is_refused(made: Path, tmp_path: Path) -> None:
    file = copied(made)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(FleetError, match="no backup of a fleet"):
        restored(file, tmp_path / "other")


@pytest.mark.parametrize("cut", ["an entry changed", "the tail cut off"])
def test_a_log_that_was_not_whole_when_it_was_copied_is_not_restored(
    made: Path, tmp_path: Path, cut: str
) -> None:
    with closing(sqlite3.connect(made / "fleet.db")) as held, held:
        if cut == "the tail cut off":
            held.execute("DELETE FROM audit WHERE id = (SELECT max(id) FROM audit)")
        else:
            held.execute("UPDATE audit SET actor = 'user:nobody' WHERE id = 2")
    with pytest.raises(FleetError, match="audit log of this backup is not whole"):
        restored(copied(made), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_it_says_how_much_of_the_log_is_missing(made: Path, tmp_path: Path) -> None:
    file = copied(made, passphrase=None)
    keys, fleet = load_keys(made / "keys"), home.read_config(made).fleet
    with closing(Database(sqlite_url(made))) as database:
        for n in range(5):
            with database.begin() as connection:
                audit.append(connection, NOW + 500 + n, audit.FLEET, "rollout.pause", f"r{n}")
        Notary(database, fleet, keys.audit, made).sign_if_due(NOW + 600)
    other = tmp_path / "other"
    for name in ("keys", "publisher"):
        shutil.copytree(made / name, other / name)
    shutil.copy(made / "audit.head", other)
    assert restored(file, other).lost == 5
    assert (other / "audit.head.before-restore").is_file()
    with closing(Database(sqlite_url(other))) as database:
        assert not Notary(database, fleet, keys.audit, other).examine(NOW + 420).problems


def test_nothing_is_restored_or_written_over_anything(made: Path, tmp_path: Path) -> None:
    file = copied(made)
    with pytest.raises(ConflictError, match="holds a fleet already"):
        restored(file, made)
    with pytest.raises(UsageError, match="never replaces another"):
        backup.make(backup.Wanted(made, file), NOW)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(UsageError, match=r"holds cat\.jpg"):
        restored(file, tmp_path / "photos")
    with pytest.raises(ConflictError, match="is not empty"):
        restored(file, tmp_path / "other", sqlite_url(made))
    assert not (tmp_path / "other").exists()
    assert counted(sqlite_url(made))["devices"].rows == 4


def test_a_disk_that_takes_no_more_leaves_no_half_a_backup(made: Path, tmp_path: Path) -> None:
    (made / "artifacts" / f"{'b' * 64}.edgekit").write_bytes(b"x" * (2 << 20))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    told = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
        with pytest.raises(FleetError, match="cannot be written"):
            copied(made)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, told)
    assert {path.name for path in tmp_path.iterdir()} == {"fleet"}


@pytest.mark.postgres
def test_a_fleet_moves_to_postgresql_and_back(made: Path, empty_postgresql: str) -> None:
    before = counted(sqlite_url(made))
    with closing(StateFolder(made)), pytest.raises(ConflictError, match="another fleet service"):
        move.move(move.Wanted(made, empty_postgresql), NOW)
    moved = move.move(move.Wanted(made, empty_postgresql), NOW + 400)
    assert moved.tables == before
    assert home.read_config(made).database == empty_postgresql
    with closing(Database(sqlite_url(made))) as left, pytest.raises(ConflictError, match="was moved to"):
        home.check_database(left, home.read_config(made))
    with closing(Database(empty_postgresql)) as database:
        home.check_database(database, home.read_config(made))
        with database.begin() as connection:
            audit.append(connection, NOW + 401, audit.FLEET, "test", "x")
    with pytest.raises(UsageError, match="there already"):
        move.move(move.Wanted(made, empty_postgresql), NOW)
    back = move.move(move.Wanted(made, "sqlite"), NOW + 500)
    assert back.aside
    assert home.read_config(made).database == ""
    after = counted(sqlite_url(made))
    assert {name for name in before if before[name] != after[name]} == {"audit"}
    assert after["audit"].rows == before["audit"].rows + 3
    with closing(Database(empty_postgresql)) as left, pytest.raises(ConflictError, match="was moved to"):
        home.check_database(left, home.read_config(made))


def test_a_move_that_fails_leaves_the_fleet_where_it_was(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = f"sqlite:///{tmp_path / 'other.db'}"
    wanted = move.Wanted(made, other)
    with closing(Database(sqlite_url(made))) as held:
        lock = Lock(held)
        assert lock.take()
        with pytest.raises(ConflictError, match="a service is at work"):
            move.move(wanted, NOW)
        lock.release()
    count = rows.count
    with monkeypatch.context() as patch:
        # As if something were lost on the way.
        patch.setattr(rows, "count", lambda *a: replace_rows(count(*a)))
        with pytest.raises(FleetError, match="or not the same ones"):
            move.move(wanted, NOW)
    assert home.read_config(made).database == ""
    with closing(Database(sqlite_url(made))) as there:
        home.check_database(there, home.read_config(made))
    assert counted(other) == {}
    move.move(wanted, NOW)
    assert home.read_config(made).database == other


def replace_rows(found: Counted) -> Counted:
    return msgspec.structs.replace(found, digest="f" * 64)


def test_a_backup_of_an_older_schema_is_restored_and_brought_up_to_date(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    config = home.create(folder, {}, None, None, NOW)
    (folder / "fleet.db").unlink()
    with closing(Database(sqlite_url(folder), "0014")) as database, database.begin() as connection:
        settings.put(connection, settings.FLEET, config.fleet)
        connection.execute(
            insert(schema.devices).values(id="d1", labels="{}", deployments="[]", created_at=NOW)
        )
        audit.append(connection, NOW, audit.FLEET, "fleet.init", config.fleet)
    file = copied(folder)
    with closing(Database(sqlite_url(folder), None)) as database:
        assert database.revision() == "0014", "a backup leaves the schema as it is"
    restored(file, tmp_path / "new")
    with closing(Database(sqlite_url(tmp_path / "new"), None)) as database, database.read() as connection:
        assert database.revision() != "0014"
        assert connection.execute(select(schema.devices.c.id)).scalars().all() == ["d1"]
        assert connection.execute(select(func.count()).select_from(audit_table)).scalar_one() == 2


def test_a_setting_is_changed_and_the_rest_left_as_it_is() -> None:
    text = '# mine\nfleet = "f"\ndatabase = "old"\n\n[oidc]\ndatabase = "not this"\n'
    assert toml.with_setting(text, "database", "") == '# mine\nfleet = "f"\n\n[oidc]\ndatabase = "not this"\n'
    changed = toml.with_setting(text, "database", "postgresql://x")
    assert changed == '# mine\nfleet = "f"\n\ndatabase = "postgresql://x"\n[oidc]\ndatabase = "not this"\n'
    assert toml.with_setting("a = 1", "database", 'q"') == 'a = 1\ndatabase = "q\\""\n'
    assert json.loads('"q\\""') == 'q"'
