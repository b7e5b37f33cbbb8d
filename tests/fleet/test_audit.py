"""The audit log: that everything gets in, and that every damage to it shows."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from access_support import NOW, Inside
from sqlalchemy import Connection, delete, insert, select, update

from fleet import audit as rules
from fleet.publish import make_key
from fleet.rules.access import Role
from fleet.server.notary import HEAD_FILE, Notary
from fleet.server.schema_audit import audit as table
from fleet.server.schema_audit import audit_heads
from fleet.server.store import audit
from fleet.server.store.audit import Who

ANN = Who("user:ann", "192.0.2.7")


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    made = Inside(tmp_path / "fleet")
    yield made
    made.close()


def add(inside: Inside, *subjects: str) -> None:
    with inside.database.begin() as connection:
        for subject in subjects:
            audit.append(connection, inside.clock(), ANN, "test", subject, before={"n": 1}, after={"n": 2})


@pytest.fixture
def signed(inside: Inside) -> Inside:
    """Five entries, a head at the third and one at the fifth."""
    add(inside, "a", "b", "c")
    assert inside.context.notary.sign_if_due(inside.clock())
    inside.clock.now += rules.HEAD_EVERY_S
    add(inside, "d", "e")
    assert inside.context.notary.sign_if_due(inside.clock())
    return inside


def problems(inside: Inside) -> tuple[str, ...]:
    return inside.context.notary.examine(inside.clock()).problems


def test_a_whole_log_is_found_whole(signed: Inside) -> None:
    found = signed.context.notary.examine(signed.clock())
    assert (found.count, found.covered, found.heads, found.problems) == (5, 5, 2, ())
    add(signed, "f")
    found = signed.context.notary.examine(signed.clock())
    assert (found.count, found.covered, found.problems) == (6, 5, ())


def test_a_head_is_signed_at_intervals_and_only_where_there_is_something_new(signed: Inside) -> None:
    notary = signed.context.notary
    add(signed, "f")
    assert not notary.sign_if_due(signed.clock() + rules.HEAD_EVERY_S - 1)
    assert notary.sign_if_due(signed.clock() + rules.HEAD_EVERY_S)
    assert not notary.sign_if_due(signed.clock() + 2 * rules.HEAD_EVERY_S)


def nth(connection: Connection, number: int) -> Any:
    return connection.execute(select(table).order_by(table.c.id)).all()[number - 1]


def change(connection: Connection, number: int, **values: Any) -> None:
    connection.execute(update(table).where(table.c.id == nth(connection, number).id).values(**values))


def remove(connection: Connection, *numbers: int) -> None:
    ids = [nth(connection, number).id for number in numbers]
    connection.execute(delete(table).where(table.c.id.in_(ids)))


def swap(connection: Connection, one: int, two: int) -> None:
    first, second = nth(connection, one), nth(connection, two)
    for row, to in ((first, 901), (second, first.id)):
        connection.execute(update(table).where(table.c.id == row.id).values(id=to))
    connection.execute(update(table).where(table.c.id == 901).values(id=second.id))


def rewrite(connection: Connection) -> None:
    """A forger who can hash: the third entry is another one, and all after it follow from it."""
    change(connection, 3, subject="forged")
    previous = nth(connection, 2).hash
    for number in (3, 4, 5):
        row = nth(connection, number)
        words = (row.actor, row.action, row.subject, row.detail)
        made = rules.digest(previous, row.at, words, (row.before, row.after, row.origin))
        change(connection, number, previous=previous, hash=made)
        previous = made


def cut_with_heads(connection: Connection) -> None:
    """A forger who knows of the heads in the database, and leaves a shorter log that is whole in itself."""
    remove(connection, 4, 5)
    newest = select(audit_heads.c.id).order_by(audit_heads.c.id.desc()).limit(1)
    connection.execute(delete(audit_heads).where(audit_heads.c.id == connection.execute(newest).scalar_one()))


def forge_head(connection: Connection) -> None:
    row = connection.execute(select(audit_heads)).all()[-1]
    envelope = json.loads(row.envelope)
    envelope["payload"] = envelope["payload"][:-8] + "AAAAAAA="
    connection.execute(
        update(audit_heads).where(audit_heads.c.id == row.id).values(envelope=json.dumps(envelope).encode())
    )


COLUMNS = ("at", "actor", "action", "subject", "detail", "before", "after", "origin", "previous", "hash")


@pytest.mark.parametrize("column", COLUMNS)
def test_a_changed_entry_shows_in_every_column(signed: Inside, column: str) -> None:
    with signed.database.begin() as connection:
        change(connection, 2, **{column: 1.0 if column == "at" else "x"})
    assert any("entry 2" in problem or "entry 3" in problem for problem in problems(signed))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda c: remove(c, 1), "entry 2 does not follow"),
        (lambda c: remove(c, 3), "entry 4 does not follow"),
        (lambda c: swap(c, 2, 4), "does not follow"),
        (lambda c: remove(c, 5), "entry 5, which a signed head names, is gone: the log was cut"),
        (lambda c: remove(c, 1, 2, 3, 4, 5), "the log was cut"),
        (rewrite, "entry 3 is not the one that was signed: the log was rewritten"),
        (cut_with_heads, "the head of entry 5, kept outside the database, is missing in it"),
        (forge_head, "head 2: no valid signature"),
        (lambda c: c.execute(delete(audit_heads)), "kept outside the database, is missing"),
    ],
)
def test_damage_shows_and_is_not_signed_over(
    signed: Inside, damage: Callable[[Connection], Any], said: str
) -> None:
    with signed.database.begin() as connection:
        damage(connection)
    assert any(said in problem for problem in problems(signed)), problems(signed)
    add(signed, "after")
    before = (signed.path / HEAD_FILE).read_bytes()
    signed.context.notary.sign_if_due(signed.clock() + rules.HEAD_EVERY_S)
    # Damage before the newest head is not looked for each time a head is signed, and shows all the same.
    assert problems(signed)
    if "cut" in said or "missing" in said or "valid signature" in said:
        assert (signed.path / HEAD_FILE).read_bytes() == before


def test_a_tail_of_entries_that_no_head_covers_is_broken_only_where_it_is(signed: Inside) -> None:
    add(signed, "f", "g", "h")
    with signed.database.begin() as connection:
        remove(connection, 7)
    assert any("entry 8 does not follow" in problem for problem in problems(signed))
    assert not signed.context.notary.sign_if_due(signed.clock() + rules.HEAD_EVERY_S)


def test_heads_that_stop_coming_show(signed: Inside) -> None:
    add(signed, "f")
    signed.clock.now += rules.HEAD_LATE_S + 1
    assert any("not signed in time" in problem for problem in problems(signed))


def test_a_head_of_another_key_or_fleet_counts_for_nothing(signed: Inside, tmp_path: Path) -> None:
    for stranger in (
        Notary(signed.database, "fleet-1", make_key(tmp_path / "k1"), tmp_path),
        Notary(signed.database, "fleet-2", signed.context.keys.audit, tmp_path),
    ):
        with signed.database.begin() as connection:
            connection.execute(delete(audit_heads))
        assert stranger.sign_if_due(NOW)
        assert any(problem.startswith("head 1: ") for problem in problems(signed))
        (tmp_path / HEAD_FILE).unlink()


def test_the_head_outside_may_be_one_behind_but_not_missing(signed: Inside) -> None:
    """A stop between the commit and the file."""
    file = signed.path / HEAD_FILE
    older = file.read_bytes()
    add(signed, "f")
    assert signed.context.notary.sign_if_due(signed.clock() + rules.HEAD_EVERY_S)
    file.write_bytes(older)
    assert problems(signed) == ()
    file.unlink()
    assert any("is gone" in problem for problem in problems(signed))
    assert not signed.context.notary.sign_if_due(signed.clock() + 2 * rules.HEAD_EVERY_S)
    assert problems(signed) == ()


def test_a_restored_database_goes_on_once_the_head_outside_was_moved_away(signed: Inside) -> None:
    with signed.database.begin() as connection:
        cut_with_heads(connection)
    add(signed, "after the restore")
    assert not signed.context.notary.sign_if_due(signed.clock() + rules.HEAD_EVERY_S)
    (signed.path / HEAD_FILE).unlink()
    assert signed.context.notary.sign_if_due(signed.clock() + 2 * rules.HEAD_EVERY_S)
    assert problems(signed) == ()


def test_entries_from_before_the_new_columns_keep_their_hash(inside: Inside) -> None:
    """As the log was written before it had before, after and origin."""
    import hashlib

    import msgspec

    words = ("admin", "test", "a", "")
    kept = hashlib.sha256(msgspec.json.encode([rules.GENESIS, repr(NOW), *words])).hexdigest()
    with inside.database.begin() as connection:
        values = dict(zip(("actor", "action", "subject", "detail"), words, strict=True))
        connection.execute(insert(table).values(at=NOW, previous=rules.GENESIS, hash=kept, **values))
    add(inside, "b")
    assert problems(inside) == ()


def test_changes_say_who_what_before_after_and_from_where(inside: Inside) -> None:
    admin = inside.client(inside.token("admin", Role.ADMIN))
    admin.post("/api/v1/freeze", json={"is_frozen": True, "reason": "fire drill"})
    admin.post("/api/v1/tokens", json={"name": "ci", "role": "viewer", "scope": "site=lab"})
    admin.post("/api/v1/tokens/ci/revoke")
    revoked, made, frozen, _ = admin.get("/api/v1/audit", params={"limit": 4}).json()
    assert {entry["actor"] for entry in (revoked, made, frozen)} == {"token:admin"}
    assert {entry["origin"] for entry in (revoked, made, frozen)} == {"192.0.2.7"}
    assert (frozen["action"], frozen["detail"]) == ("fleet.freeze", "fire drill")
    assert (frozen["before"], frozen["after"]) == ("false", "true")
    assert json.loads(made["after"]) == {"role": "viewer", "scope": "site=lab", "expires_at": None}
    assert (revoked["action"], revoked["subject"], revoked["after"]) == ("token.revoke", "ci", "")
    assert admin.get("/api/v1/audit/verdict").json()["problems"] == []
