"""Commands in the database: signed once, sent until the device is heard, moved forward only; and another pick of a release."""

import base64
import json

import pytest
from fleet_support import make_bundle
from sqlalchemy import insert, update
from store_support import NONCE, NOW, enrolled

from edgekit import bundle as bundles
from edgekit import evidence
from edgekit.errors import ConflictError, NotFoundError, UsageError
from edgekit.evidence import BuildEvidence, Figure, Where
from edgekit.trust import dsse
from edgekit.wire.commands import CommandState, Restart, Result, SelfTest
from edgekit.wire.messages import Boot
from fleet import publish as custody
from fleet.api.commands import MeasureHere
from fleet.client.command_cli import whole
from fleet.server import schema
from fleet.server.store import commands, devices, finalists, picking, releases
from fleet.server.store.audit import Who
from fleet.server.store.orders import Issuer

WHO = Who("user:ada")


@pytest.fixture
def database(database):
    """Of each kind, with two boards in it."""
    enrolled(database, ["board-1", "board-2"])
    return database


@pytest.fixture
def issuer(tmp_path):
    return Issuer("lab", custody.make_key(tmp_path / "order.pem"))


def ask(connection, issuer, action, device="board-1", life_s=3600.0, now=NOW):
    row = devices.get(connection, device, lock=True)
    return commands.add(connection, issuer, row, action, life_s, now=now, who=WHO)


def said(number, state, device="board-1", reason=""):
    return device, Result(device, Boot(1, 2, NONCE), 1, number, CommandState(state), reason)


def state_of(connection, number, device="board-1"):
    return commands.get(connection, device, number).state


def test_a_command_is_signed_with_a_type_of_its_own(database, issuer):
    with database.begin() as connection:
        number = ask(connection, issuer, SelfTest())
        [waiting] = commands.unpublished(connection, NOW, 100.0, 10)
    keys = {issuer.key.keyid: issuer.key.public_hex}
    payload = json.loads(dsse.verify(waiting.envelope, dsse.COMMAND_TYPE, keys))
    assert (payload["id"], payload["device"], payload["enrolment"]) == (number, "board-1", 1)
    with pytest.raises(dsse.SignatureRefusedError, match="signed as"):
        dsse.verify(waiting.envelope, dsse.ORDER_TYPE, keys)
    envelope = json.loads(waiting.envelope)
    envelope["payload"] = base64.b64encode(json.dumps({**payload, "device": "board-2"}).encode()).decode()
    with pytest.raises(dsse.SignatureRefusedError):
        dsse.verify(json.dumps(envelope).encode(), dsse.COMMAND_TYPE, keys)


def test_it_is_sent_in_order_until_the_device_is_heard_and_while_it_is_online(database, issuer):
    with database.begin() as connection:
        first = ask(connection, issuer, SelfTest())
        second = ask(connection, issuer, Restart(), now=NOW + 1)
        assert [one.id for one in commands.unpublished(connection, NOW + 2, 100.0, 10)] == [first, second]
        commands.published(connection, [first, second], 100.0)
        assert commands.unpublished(connection, NOW + 2, 105.0, 10) == []
        commands.record(connection, [said(first, "accepted")], NOW + 3)
        again = commands.unpublished(connection, NOW + 20, 120.0, 10)
        assert [one.id for one in again] == [second]
        connection.execute(update(schema.devices).values(is_online=False))
        assert commands.unpublished(connection, NOW + 20, 120.0, 10) == []
        connection.execute(update(schema.devices).values(is_online=True, enrolment=2))
        assert commands.unpublished(connection, NOW + 20, 120.0, 10) == []


def test_what_a_device_says_moves_it_forward_only(database, issuer):
    with database.begin() as connection:
        number = ask(connection, issuer, SelfTest())
        for state, then in (
            ("running", "running"),
            ("accepted", "running"),
            ("done", "done"),
            ("failed", "done"),
        ):
            commands.record(connection, [said(number, state)], NOW + 5)
            assert state_of(connection, number) == then
        commands.record(connection, [said(number, "failed", device="board-2")], NOW + 5)
        assert state_of(connection, number) == "done"
        with pytest.raises(NotFoundError):
            commands.get(connection, "board-2", number)


def test_what_nobody_heard_or_answered_expires_and_a_late_word_still_counts(database, issuer):
    with database.begin() as connection:
        unheard, begun = ask(connection, issuer, SelfTest()), ask(connection, issuer, SelfTest())
        commands.record(connection, [said(begun, "running")], NOW)
        commands.expire(connection, NOW + 3601)
        assert (state_of(connection, unheard), state_of(connection, begun)) == ("expired", "running")
        commands.expire(connection, NOW + 3601 + commands.LATE_S)
        assert state_of(connection, begun) == "expired"
        commands.record(connection, [said(begun, "done")], NOW + 99_000)
        assert state_of(connection, begun) == "done"
        commands.expire(connection, NOW + 3601 + commands.KEPT_S)
        assert commands.of_device(connection, "board-1") == []


def test_only_so_many_are_open_and_only_of_who_can_hear(database, issuer):
    with database.begin() as connection:
        for _ in range(commands.MOST_WAITING):
            ask(connection, issuer, SelfTest())
        with pytest.raises(ConflictError, match="not over"):
            ask(connection, issuer, SelfTest())
        connection.execute(update(schema.devices).where(schema.devices.c.id == "board-2").values(enrolment=0))
        with pytest.raises(ConflictError, match="nobody would hear it"):
            ask(connection, issuer, SelfTest(), "board-2")


def test_a_board_may_fetch_what_it_is_to_measure_only_while_it_is(database, issuer, tmp_path):
    lent = bundles.read(make_bundle(tmp_path, "9", profile="p"))
    with database.begin() as connection:
        with pytest.raises(NotFoundError, match="is published here"):
            ask(connection, issuer, MeasureHere((lent.sha256,)))
        assert finalists.add(connection, lent, now=NOW, who=WHO)
        assert not finalists.add(connection, lent, now=NOW, who=WHO)
        number = ask(connection, issuer, MeasureHere((lent.sha256,)))
        assert commands.may_fetch(connection, "board-1", lent.sha256)
        assert not commands.may_fetch(connection, "board-2", lent.sha256)
        commands.record(connection, [said(number, "done")], NOW)
        assert not commands.may_fetch(connection, "board-1", lent.sha256)
        assert finalists.remove(connection, lent.sha256, now=NOW, who=WHO)
        assert not releases.is_published(connection, lent.sha256)


def statement(bundle, recipe) -> bytes:
    figure = Figure(1.0, "measured", Where("board", device="lab-1"), "ms")
    manifest = bundle.manifest
    told = BuildEvidence(
        manifest.name,
        manifest.version,
        manifest.profile,
        recipe,
        "top1",
        figure,
        figure,
        figure,
        figure,
        {},
        (),
    )
    return evidence.encode(evidence.statement("file", bundle.sha256, told))


@pytest.fixture
def pair(database, tmp_path):
    """A release with a pick and an alternate."""
    own = bundles.read(make_bundle(tmp_path / "own", "5", profile="p", seed="own"))
    other = bundles.read(make_bundle(tmp_path / "other", "5", profile="p", seed="other"))
    with database.begin() as connection:
        releases.publish(connection, own, statement(own, "onnxruntime/fp32"), now=NOW, who=WHO)
        releases.publish_alternate(connection, other, statement(other, "onnxruntime/int8"), now=NOW, who=WHO)
    return own, other


def picked(connection, pair, sha256):
    own, other = pair
    read = {one.sha256: one for one in pair}.__getitem__
    told = {one.sha256: statement(one, "onnxruntime/measured") for one in (own, other)}
    picking.pick(connection, ("digits", "5", "p"), sha256, told, read, now=NOW, who=WHO)


def test_an_alternate_becomes_the_pick_and_the_pick_an_alternate(database, pair):
    own, other = pair
    with database.begin() as connection:
        picked(connection, pair, other.sha256)
        assert releases.existing(connection, "digits", "5", "p").sha256 == other.sha256
        [release] = [one for one in releases.everything(connection) if one.version == "5"]
        assert [one.sha256 for one in release.alternates] == [own.sha256]
        for one in pair:
            assert b"onnxruntime/measured" in releases.statement(connection, one.sha256)
        picked(connection, pair, own.sha256)
        assert releases.existing(connection, "digits", "5", "p").sha256 == own.sha256


def test_what_a_device_is_ordered_to_run_stays_the_pick(database, pair):
    own, other = pair
    with database.begin() as connection:
        connection.execute(
            insert(schema.desired).values(
                device="board-1", deployment="digits", sha256=own.sha256, because="assignment", set_at=NOW
            )
        )
        with pytest.raises(ConflictError, match="board-1 is ordered to run"):
            picked(connection, pair, other.sha256)
    with database.begin() as connection:
        picked(connection, pair, own.sha256)
        assert b"onnxruntime/measured" in releases.statement(connection, own.sha256)


def test_only_bundles_of_the_release_can_be_picked_or_told_of(database, pair):
    own, _other = pair
    with database.begin() as connection:
        with pytest.raises(NotFoundError, match="has no bundle"):
            picked(connection, pair, "d" * 64)
        with pytest.raises(UsageError, match="no bundle of digits@5"):
            picking.pick(
                connection, ("digits", "5", "p"), own.sha256, {"d" * 64: b""}, lambda _: own, now=NOW, who=WHO
            )


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ("abc12", UsageError, "no digest"),
        ("ABC123", UsageError, "no digest"),
        ("abc12…", UsageError, "no digest"),
        ("abc124", NotFoundError, "begins with abc124"),
        ("abc123", ConflictError, "2 bundles begin with"),
    ],
)
def test_a_digest_is_typed_by_its_beginning(given, error, told):
    known = ["abc123" + "0" * 58, "abc123" + "1" * 58, "def" + "0" * 61]
    assert whole(("abc1230", "def000", "9" * 64), known) == (known[0], known[2], "9" * 64)
    with pytest.raises(error, match=told):
        whole((given,), known)
