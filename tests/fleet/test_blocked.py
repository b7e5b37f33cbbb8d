"""The block list: from the moment on that a release or bundle is on it, no new order names it."""

from pathlib import Path

import pytest
from fleet_support import make_bundle
from sqlalchemy import insert

from edgekit import bundle as bundles
from edgekit.errors import ConflictError, NotFoundError, UsageError
from edgekit.trust import dsse
from edgekit.wire.messages import Order, decode
from fleet.publish import make_key
from fleet.server.database import Database, sqlite_url
from fleet.server.schema import devices
from fleet.server.store import audit, blocked, orders, releases
from fleet.server.store.audit import Who
from fleet.server.store.blocked import BlockedError
from fleet.server.store.orders import Issuer

NOW = 1_790_000_000.0
ADA, BO = Who("user:ada"), Who("user:bo")


@pytest.fixture
def database(tmp_path):
    made = Database(sqlite_url(tmp_path))
    yield made
    made.close()


@pytest.fixture
def two(database, tmp_path) -> tuple[str, str]:
    """The digests of a release's bundles for two profiles."""
    digests = []
    for profile in ("x86-64-v3", "raspberry-pi-5"):
        made = bundles.read(make_bundle(tmp_path / profile, "1.0.0", profile=profile))
        with database.begin() as connection:
            releases.publish(connection, made, None, now=NOW, who=ADA)
        digests.append(made.sha256)
    return digests[0], digests[1]


def put(connection, subject, reason="it counts wrongly"):
    return blocked.add(connection, subject, reason, now=NOW, who=ADA)


def test_a_blocked_release_becomes_nobodys_desired_bundle(database, two):
    with database.begin() as connection:
        assert put(connection, "digits@1.0.0")
        assert not put(connection, "digits@1.0.0")
        assert blocked.usable(connection, "digits", "1.0.0") == {}
        for sha256 in two:
            with pytest.raises(BlockedError, match=r"digits@1\.0\.0 for .* is blocked \(it counts wrongly\)"):
                orders.set_desired(connection, "board", "digits", sha256, because="test", now=NOW)
        with pytest.raises(BlockedError):
            blocked.check_release(connection, "digits", "1.0.0")


def test_a_blocked_bundle_leaves_the_others_of_its_release(database, two):
    with database.begin() as connection:
        put(connection, two[0])
        assert list(blocked.usable(connection, "digits", "1.0.0")) == ["raspberry-pi-5"]
        blocked.check_release(connection, "digits", "1.0.0")
        with pytest.raises(BlockedError):
            blocked.check(connection, two[0])
        blocked.check(connection, two[1])


def test_a_release_can_be_blocked_before_it_is_published(database, tmp_path):
    with database.begin() as connection:
        put(connection, "digits@9.0.0")
        made = bundles.read(make_bundle(tmp_path, "9.0.0"))
        releases.publish(connection, made, None, now=NOW, who=ADA)
        with pytest.raises(BlockedError):
            blocked.check(connection, made.sha256)


def test_taken_off_the_list_it_can_be_ordered_again_and_all_is_in_the_audit_log(database, two):
    with database.begin() as connection:
        put(connection, "digits@1.0.0")
        assert [item.subject for item in blocked.everything(connection)] == ["digits@1.0.0"]
        blocked.remove(connection, "digits@1.0.0", "mended", now=NOW, who=BO)
        blocked.check(connection, two[0])
        assert blocked.everything(connection) == ()
        with pytest.raises(NotFoundError):
            blocked.remove(connection, "digits@1.0.0", "", now=NOW, who=BO)
        entries = list(audit.entries(connection))
    said = [(one.actor, one.action, one.detail) for one in entries if one.action.startswith("release.")]
    assert said == [
        ("user:ada", "release.block", "it counts wrongly"),
        ("user:bo", "release.unblock", "mended"),
    ]


@pytest.mark.parametrize("subject", ["digits", "@1", "a" * 63, "A" * 64, ""])
def test_what_is_neither_a_release_nor_a_digest_is_refused(subject):
    with pytest.raises(UsageError, match="whole sha256"):
        blocked.checked(subject)
    assert issubclass(BlockedError, ConflictError)


def test_a_device_that_begins_anew_is_not_given_what_was_blocked_meanwhile(database, two, tmp_path):
    """What it ran before stays its order until then: a block takes no model away from a running device."""
    issuer = Issuer("fleet-1", make_key(tmp_path / "order.key"))
    with database.begin() as connection:
        _add_device(connection)
        orders.set_desired(connection, "board", "digits", two[0], because="test", now=NOW)
        put(connection, two[0])
        assert _ordered(connection, issuer) == {"digits"}
        blocked.withdraw(connection, "board")
        assert _ordered(connection, issuer) == set()


def _add_device(connection) -> None:
    values = {"id": "board", "labels": "{}", "deployments": '["digits"]', "enrolment": 1, "created_at": NOW}
    connection.execute(insert(devices).values(values))


def _ordered(connection, issuer) -> set[str]:
    orders.issue(connection, issuer, "board", NOW)
    [waiting] = orders.unpublished(connection, 10)
    keys = {issuer.key.keyid: issuer.key.public_hex}
    return set(decode(dsse.verify(waiting.payload, dsse.ORDER_TYPE, keys), Order).deployments)


def test_orders_that_another_key_signed_are_found(database, tmp_path: Path):
    issuer = Issuer("fleet-1", make_key(tmp_path / "order.key"))
    with database.begin() as connection:
        _add_device(connection)
        orders.issue(connection, issuer, "board", NOW)
        assert orders.signed_by_another(connection, issuer.key.keyid, 10) == []
        issuer.key = make_key(tmp_path / "next.key")
        assert orders.signed_by_another(connection, issuer.key.keyid, 10) == ["board"]
        orders.issue(connection, issuer, "board", NOW)
        assert orders.signed_by_another(connection, issuer.key.keyid, 10) == []
