"""Alerts from what the database holds to the receiver: found by the controller, told once, over restarts and failures."""

import logging
import shutil
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from access_support import Inside
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alert_support import SECRET, Mailbox, Receiver, mailbox, receiver
from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import OperationalError
from store_support import NEW, NONCE, NOW, OLD, enrolled, report, rollout_of, topic

from edgekit.errors import ConflictError, FleetError, UsageError
from edgekit.wire import topics
from edgekit.wire.messages import (
    Boot,
    Condition,
    DeploymentReport,
    Moments,
    Report,
    Reported,
    decode,
    encode,
)
from edgekit.wire.states import AgentState
from fleet import api
from fleet.publish import load_key, make_key
from fleet.rules import drift as drift_rules
from fleet.rules import findings
from fleet.rules.access import Role
from fleet.rules.drift import Track
from fleet.rules.history import Gauges
from fleet.rules.rollout import Command
from fleet.server import ca, changes, courier, expiries, ingest, migrations, schema, schema_access, telling
from fleet.server.alarms import Alarms, Own
from fleet.server.clock import Clock, Now, same
from fleet.server.controller import Controller
from fleet.server.courier import Courier
from fleet.server.database import Database, sqlite_url
from fleet.server.inbox import Message
from fleet.server.schema import totals
from fleet.server.schema_alerts import alerts as alert_table
from fleet.server.schema_alerts import drift as drift_table
from fleet.server.schema_alerts import messages
from fleet.server.sealing import TARGETS, Seal
from fleet.server.state import Keys
from fleet.server.store import alert_targets, alerts, audit, troubles
from fleet.server.store.orders import Issuer
from fleet.tuf import together
from fleet.tuf.online import Online

HOUR = 3600.0


class Fleet:
    """Alarms and a courier over a database, with a clock that stands until it is moved on."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.now = NOW
        self.clock = Clock(lambda: self.now, lambda: self.now)
        keys = folder / "keys"
        keys.mkdir(exist_ok=True)
        secrets = keys / "secrets.key"
        self.keys = Keys(
            make_key(keys / f"order{len(list(keys.iterdir()))}.key"),
            make_key(secrets) if not secrets.exists() else load_key(secrets),
        )
        self.seal = Seal(self.keys, TARGETS)
        self.issuer = Issuer("fleet-1", self.keys.order)
        self.own = Own("fleet-1", "127.0.0.1:1883", "http://127.0.0.1:8080")
        self.failing_since: float | None = None
        self.restart()

    def restart(self) -> None:
        """As a service that starts again, or another that takes over."""
        self.alarms = Alarms(self.own)
        self.courier = self.another_courier()

    def another_courier(self) -> Courier:
        return Courier(
            self.database,
            self.seal,
            self.clock,
            "fleet-1",
            is_leading=lambda: True,
            failing_since=lambda: self.failing_since,
        )

    def look(self, after_s: float = 61.0, *, hears_since: float | None = NOW - 1e6) -> int:
        """A look that is about everything, and then what the courier brings."""
        self.now += after_s
        self.alarms.begin_anew()
        with self.database.begin() as connection:
            self.alarms.look(connection, same(self.now), hears_since)
        return self.courier.send_due()

    def add(self, wanted: api.NewTarget) -> None:
        shown, secret = telling.check(wanted)
        with self.database.begin() as connection:
            sealed = self.seal.close(wanted.name, secret)
            alert_targets.add(connection, wanted, shown, sealed, now=self.now, who=audit.FLEET)

    def hook(self, at: Receiver, name: str = "ops", **more: Any) -> None:
        self.add(api.NewTarget(name, "webhook", api.Webhook(at.url, SECRET), **more))

    def open(self) -> list[api.AlertView]:
        with self.database.read() as connection:
            return alerts.listing(connection, is_open=True)

    def said(
        self, device: str, seq: int, *conditions: str, deployment: DeploymentReport | None = None
    ) -> None:
        """A self-description of the device, through ingest."""
        since = datetime.fromtimestamp(self.now, UTC)
        found = tuple(Condition(code, f"{code} it is", since) for code in conditions)
        idle = DeploymentReport(AgentState.IDLE, OLD, OLD, OLD)
        reported = Reported(
            device=device, boot=Boot(1, 2, NONCE), seq=seq, order_counter=0, deployments={"digits": deployment or idle},
            profile="p", isa=(), engines={}, agent_version="1", bundle_format=1, free_bytes=1, conditions=found,
        )  # fmt: skip
        message = Message(topic(device, topics.REPORTED), encode(reported))
        taken = ingest.take_in(self.database, [message], same(self.now))
        assert not taken.dropped


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite database, to be copied: migrating takes longer than most tests here."""
    folder = tmp_path_factory.mktemp("migrated")
    Database(sqlite_url(folder)).close()
    return folder / "fleet.db"


@pytest.fixture
def fleet(migrated: Path, tmp_path: Path) -> Iterator[Fleet]:
    shutil.copy(migrated, tmp_path / "fleet.db")
    made = Database(sqlite_url(tmp_path))
    yield Fleet(made, tmp_path)
    made.close()


@pytest.fixture
def either(database: Database, tmp_path: Path) -> Fleet:
    """The same on each kind of database, for what SQL says differently."""
    return Fleet(database, tmp_path)


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


@pytest.fixture
def mails() -> Iterator[Mailbox]:
    with mailbox() as made:
        yield made


def lively(fleet: Fleet, names: list[str], **values: Any) -> None:
    """Devices that were heard just now."""
    enrolled(fleet.database, names)
    with fleet.database.begin() as connection:
        connection.execute(update(schema.devices).values(last_seen_at=fleet.now, **values))


def heard(fleet: Fleet, *names: str, at: float | None = None) -> None:
    with fleet.database.begin() as connection:
        change = update(schema.devices).values(last_seen_at=fleet.now if at is None else at)
        connection.execute(change.where(schema.devices.c.id.in_(names)))


# -- from a device's word to the receiver ----------------------------------------------------------------------------


def test_a_devices_condition_is_told_once_signed_and_once_when_it_is_over(
    either: Fleet, hook: Receiver
) -> None:
    lively(either, ["d1", "d2"])
    either.hook(hook)
    either.said("d1", 1, "storage-full")
    either.look()
    assert hook.got == [], "it may pass"
    for _ in range(5):
        heard(either, "d1", "d2")
        either.look()
    [one] = hook.got
    assert one.is_signed()
    assert not one.is_signed("another secret, as long as that")
    assert abs(int(one.headers["webhook-timestamp"]) - either.now) < 1000
    [alert] = one.content["opened"]
    assert (alert["kind"], alert["subject"]) == ("device-condition", "d1: storage-full")
    assert alert["about"] == {"device": "d1", "code": "storage-full"}
    assert "d1 reports storage-full: storage-full it is" in one.content["text"]
    assert alert["what_to_do"] in one.content["text"]
    [view] = either.open()
    assert (view.id, view.told) == (alert["id"], ("ops",))
    either.said("d1", 2)
    for _ in range(8):
        heard(either, "d1", "d2")
        either.look()
    assert [len(m.content["ended"]) for m in hook.got] == [0, 1]
    assert either.open() == []
    with either.database.read() as connection:
        [over] = alerts.listing(connection, is_open=False)
    assert over.ended is not None


def test_ten_thousand_devices_make_one_message(fleet: Fleet, hook: Receiver) -> None:
    names = [f"d{n:05}" for n in range(10_000)]
    text = '[{"code":"storage-full","detail":"no room","deployment":"","digest":""}]'
    lively(fleet, names, troubles=text)
    fleet.hook(hook)
    for _ in range(4):
        heard_all(fleet)
        fleet.look()
    [one] = hook.got
    [alert] = one.content["opened"]
    assert alert["count"] == 10_000
    assert alert["words"].startswith("10000 devices (storage-full)")
    assert len(one.body) < 20_000
    with fleet.database.read() as connection:
        assert connection.execute(select(func.count()).select_from(alert_table)).scalar_one() == 1


def heard_all(fleet: Fleet) -> None:
    with fleet.database.begin() as connection:
        connection.execute(update(schema.devices).values(last_seen_at=fleet.now + 61))


def test_ten_thousand_devices_that_fall_silent_are_one_message_by_their_site(
    either: Fleet, hook: Receiver
) -> None:
    lively(either, [f"d{n:05}" for n in range(10_000)], labels='{"site": "lab"}')
    either.hook(hook)
    for _ in range(10):
        either.look()
    either.look(4000)
    [one] = hook.got
    [alert] = one.content["opened"]
    assert (alert["kind"], alert["subject"]) == ("site-silent", "lab")
    assert "none of its 10000 devices was heard since 2026-09-2" in alert["words"]


def test_a_release_that_a_device_refuses_is_told_of_with_its_reason(either: Fleet, hook: Receiver) -> None:
    lively(either, ["d1"])
    either.hook(hook)
    failed = DeploymentReport(AgentState.FAILED, OLD, OLD, NEW, reason="self-test: other outputs")
    either.said("d1", 1, deployment=failed)
    either.look()
    either.look()
    [alert] = hook.got[0].content["opened"]
    assert (alert["kind"], alert["subject"]) == ("release-refused", "digits@2")
    assert alert["words"] == "1 device does not run digits@2 (d1): self-test: other outputs"


def test_silence_that_is_the_fleets_own_deafness_is_nobodys(fleet: Fleet) -> None:
    lively(fleet, ["d1", "d2"], labels='{"site": "lab"}')
    fleet.now += HOUR
    fleet.look(hears_since=None)
    fleet.look(hears_since=fleet.now)
    assert fleet.open() == []
    since = fleet.now
    fleet.look(400, hears_since=since)
    fleet.look(hears_since=since)
    assert [one.kind for one in fleet.open()] == ["site-silent"]


def test_a_silent_device_among_others_is_told_of_after_an_hour_and_the_site_is_not(fleet: Fleet) -> None:
    lively(fleet, ["d1", "d2"], labels='{"site": "lab"}')
    fleet.now += HOUR
    heard(fleet, "d2")
    fleet.look()
    [one] = fleet.open()
    assert (one.kind, one.subject) == ("device-silent", "d1")
    assert one.words.startswith("d1 at site lab was not heard since")
    heard(fleet, "d1", "d2")
    fleet.look()
    heard(fleet, "d1", "d2")
    fleet.look(301)
    assert fleet.open() == []


def test_a_copied_card_is_told_of_at_once(fleet: Fleet) -> None:
    lively(fleet, ["d1"], is_duplicate=True)
    fleet.look(1)
    assert [(one.kind, one.severity) for one in fleet.open()] == [("device-copied", "critical")]


def test_a_rollout_that_the_fleet_turned_is_told_of_and_one_that_an_operator_turned_is_not(
    either: Fleet,
) -> None:
    lively(either, ["d1", "d2"])
    ann = audit.Who("user:ann")
    with either.database.begin() as connection:
        made = changes.begin(
            connection, either.issuer, rollout_of(["d1", "d2"]), now=same(either.now), who=ann
        )
        paused = changes.apply(
            connection, either.issuer, made, Command("pause", "lunch"), now=same(either.now), who=ann
        )
    either.look(1)
    assert either.open() == []
    with either.database.begin() as connection:
        back = changes.apply(
            connection,
            either.issuer,
            paused,
            Command("rollback", "error_rate < 1%: 7 %"),
            now=same(either.now),
        )
    assert back.status.value == "rolling_back"
    heard(either, "d1", "d2")
    either.look(1)
    [one] = either.open()
    assert (one.kind, one.subject, one.severity) == ("rollout-stopped", "r1", "critical")
    assert "error_rate < 1%: 7 %" in one.words


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"is_connected": lambda: False}, "broker-lost"),
        ({"late_since": lambda: NOW - 100}, "ingest-late"),
        ({"has_workers": True}, "no-workers"),
        ({"is_audit_whole": lambda: False}, "audit-broken"),
        ({"disks": (Path("/no/such/place"),)}, "storage"),
    ],
)
def test_what_is_wrong_with_the_service_itself_is_told_of(
    fleet: Fleet, change: dict[str, Any], kind: str
) -> None:
    values = {name: getattr(fleet.own, name) for name in Own.__dataclass_fields__} | change
    fleet.alarms = Alarms(Own(**values))
    fleet.look()
    fleet.look()
    assert [one.kind for one in fleet.open()] == [kind]
    fleet.alarms = Alarms(fleet.own)
    fleet.look()
    fleet.look(301)
    assert fleet.open() == []


def test_reports_that_were_left_out_are_told_of(fleet: Fleet) -> None:
    count = 0
    values = {name: getattr(fleet.own, name) for name in Own.__dataclass_fields__}
    fleet.alarms = Alarms(Own(**values | {"overflowed": lambda: count}))
    fleet.look()
    count = 500
    with fleet.database.begin() as connection:
        fleet.alarms._rhythm = type(fleet.alarms._rhythm)()
        fleet.alarms.look(connection, same(fleet.now + 61), None)
    assert [one.words.partition(":")[0] for one in fleet.open()] == ["500 reports were left out in a minute"]


def test_tokens_and_device_certificates_that_run_out_are_told_of(either: Fleet, tmp_path: Path) -> None:
    lively(either, ["d1", "d2"])
    ends = {"d1": NOW + 86_400 * 5, "d2": NOW + 86_400 * 60}
    with either.database.begin() as connection:
        row = {"enrolment": 1, "public_key": "k", "issued_at": NOW, "pem": "", "reason": ""}
        connection.execute(
            insert(schema.certificates),
            [row | {"serial": f"s{n}", "device": n, "not_after": at} for n, at in ends.items()],
        )
        # An older certificate of a device that has renewed.
        connection.execute(
            insert(schema.certificates),
            [row | {"serial": "old", "device": "d2", "not_after": NOW - 5}],
        )
        token = {"hash": "h", "role": "viewer", "scope": "", "created_at": NOW, "created_by": "x"}
        connection.execute(
            insert(schema_access.access_tokens),
            [
                token | {"hash": "1", "name": "soon", "expires_at": NOW + 86_400, "last_used_at": NOW},
                token | {"hash": "2", "name": "later", "expires_at": NOW + 30 * 86_400, "last_used_at": NOW},
                token | {"hash": "3", "name": "idle", "expires_at": NOW + 86_400, "last_used_at": None},
            ],
        )
    either.look(1)
    found = {one.subject: one for one in either.open()}
    assert set(found) == {"device certificates", "token soon"}
    assert "1 devices have not renewed theirs in time: d1" in found["device certificates"].words
    assert found["token soon"].severity == "critical"


# -- drift -----------------------------------------------------------------------------------------------------------


def drifting(fleet: Fleet, levels: dict[str, float]) -> None:
    """A day of blocks for each device, and what it said last."""
    rows, said = [], []
    for number, (device, level) in enumerate(sorted(levels.items())):
        blocks = tuple(level * (1 + 0.1 * ((hour + number) % 5)) for hour in range(30))
        rows.append(
            {
                "device": device,
                "deployment": "digits",
                "digest": OLD,
                "track": msgspec.json.encode(Track(blocks)).decode(),
                "blocks": 30,
                "seen_at": fleet.now,
                "chance": drift_rules.chance(blocks),
                "level": Track(blocks).level,
            }
        )
        gauges = msgspec.json.encode(Gauges(drift={"inputs/image": level, "outputs/logits": 0.1})).decode()
        key = {"device": device, "deployment": "digits", "digest": OLD}
        said.append(key | {"windows": 1, "requests": 1, "errors": 0, "infer_ms": "{}", "gauges": gauges})
    with fleet.database.begin() as connection:
        connection.execute(insert(drift_table), rows)
        connection.execute(insert(totals), said)


def test_drift_is_told_by_release_and_whom_trains_models_learns_where_and_since_when(
    either: Fleet, hook: Receiver
) -> None:
    names = [f"d{n:03}" for n in range(60)]
    lively(either, names, labels='{"site": "lab"}')
    either.hook(hook)
    either.hook(hook, "training", events=("retraining",))
    drifting(either, {name: 0.6 if name < "d005" else 0.03 for name in names})
    heard_all(either)
    either.look()
    either.look(1)
    either.restart()
    heard_all(either)
    either.look()
    told, training = sorted(hook.got, key=lambda one: one.content["type"])
    [alert] = told.content["opened"]
    assert (alert["kind"], alert["subject"], alert["count"]) == ("drift", "digits@1", 5)
    assert "drifted at 5 of 60 devices (lab 5)" in alert["words"]
    found = training.content
    assert training.is_signed()
    assert (found["type"], found["release"], found["deployment"]) == ("retraining", "digits@1", "digits")
    assert (found["devices"], found["measured"], found["sites"]) == (5, 60, {"lab": 5})
    assert found["digests"] == [OLD]
    assert found["level"] == pytest.approx(0.71, rel=0.05)
    assert (found["inputs"], found["outputs"], found["limit"]) == (["image"], [], drift_rules.LIMIT)
    assert alert["words"].startswith("input image of digits@1 drifted")
    assert found["since"].startswith("2026-09-2")


def test_blocks_of_drift_come_from_what_reports_added_up(either: Fleet) -> None:
    lively(either, ["d1"])
    sent = 0

    def windows(count: int, psi: float) -> None:
        nonlocal sent
        batch = []
        for _ in range(count):
            sent += 1
            batch.append(drifted_report("d1", sent, either.now, psi))
        assert not ingest.take_in(either.database, batch, same(either.now)).dropped

    windows(60, 0.3)
    either.look(1)
    windows(20, 0.9)
    either.look(1)
    with either.database.read() as connection:
        row = connection.execute(select(drift_table)).one()
    assert row.blocks == 1, "a block counts once, and only when it is whole"
    assert msgspec.json.decode(row.track, type=Track).blocks == pytest.approx((0.3,))
    windows(40, 0.9)
    either.look(1)
    with either.database.read() as connection:
        row = connection.execute(select(drift_table)).one()
    assert msgspec.json.decode(row.track, type=Track).blocks == pytest.approx((0.3, 0.9))
    assert row.chance is None, "too few yet"


def drifted_report(device: str, seq: int, ended: float, psi: float) -> Message:
    plain = decode(report(device, seq, ended).payload, Report)
    window = msgspec.structs.replace(plain.deployments[0], metrics={"drift_psi": Moments(1, psi)})
    return Message(topic(device), encode(msgspec.structs.replace(plain, deployments=(window,))))


# -- the courier -----------------------------------------------------------------------------------------------------


def storm(fleet: Fleet) -> None:
    """One alert that opens at the next look."""
    lively(fleet, ["d1"], is_duplicate=True)


def test_a_receiver_that_fails_is_tried_again_ever_more_seldom_with_the_same_id(
    fleet: Fleet, hook: Receiver
) -> None:
    storm(fleet)
    fleet.hook(hook)
    hook.first = [503, 500, 429]
    fleet.look(1)
    assert len(hook.got) == 1
    pauses = []
    before = fleet.now
    while not hook.taken:
        fleet.now += 1
        if fleet.courier.send_due() or len(hook.got) > len(pauses) + 1:
            pauses.append(fleet.now - before)
            before = fleet.now
    assert pauses == [5, 10, 20]
    assert len({one.id for one in hook.got}) == 1
    assert all(one.is_signed() for one in hook.got)
    assert len({one.headers["webhook-timestamp"] for one in hook.got}) == 4, "each try is signed anew"
    for _ in range(3):
        fleet.now += 1000
        assert fleet.courier.send_due() == 0
    assert len(hook.taken) == 1


def test_a_restart_between_two_tries_changes_nothing_and_what_arrived_is_not_sent_again(
    fleet: Fleet, hook: Receiver
) -> None:
    storm(fleet)
    fleet.hook(hook)
    hook.first = [503]
    fleet.look(1)
    fleet.restart()
    fleet.now += 6
    assert fleet.courier.send_due() == 1
    fleet.restart()
    for _ in range(3):
        heard_all(fleet)
        fleet.look()
    assert len(hook.taken) == 1


def test_two_services_that_both_think_they_lead_send_a_message_once(either: Fleet, hook: Receiver) -> None:
    storm(either)
    either.hook(hook)
    hook.status = 503
    either.look(1)
    hook.status = 204
    either.now += 6
    with either.database.read() as connection:
        [row] = alerts.due(connection, either.now)
    other = either.another_courier()
    results: list[bool] = []
    both = [
        threading.Thread(target=lambda c=c: results.append(c._send(row))) for c in (either.courier, other)
    ]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert sorted(results) == [False, True]
    assert len(hook.taken) == 1


def test_a_receiver_that_never_answers_is_given_up_after_a_day_and_the_others_hear_of_it(
    fleet: Fleet, hook: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    storm(fleet)
    fleet.hook(hook, "dead")
    hook.status = 500
    fleet.add(api.NewTarget("log", "log"))
    fleet.look(1)
    heard_all(fleet)
    fleet.look(1000)
    heard_all(fleet)
    fleet.look(61)
    assert "target-failing" in {one.kind for one in fleet.open()}
    assert "alerts do not reach the target dead: it answered 500" in caplog.text
    fleet.now += courier.GIVE_UP_S
    fleet.courier.send_due()
    with fleet.database.read() as connection:
        [view] = [one for one in alert_targets.listing(connection) if one.name == "dead"]
    assert (view.last_error, view.last_sent) == ("it answered 500", None)
    with fleet.database.read() as connection:
        states = set(
            connection.execute(select(messages.c.state).where(messages.c.target == "dead")).scalars()
        )
    assert "failed" in states
    assert hook.url not in caplog.text
    assert "s3cret-path" not in caplog.text
    assert SECRET not in caplog.text


def test_messages_to_one_target_arrive_in_their_order_and_another_is_not_held_up(
    fleet: Fleet, hook: Receiver
) -> None:
    with receiver() as other:
        storm(fleet)
        fleet.hook(hook)
        fleet.hook(other, "other")
        hook.status = 500
        fleet.look(1)
        assert len(other.taken) == 1
        with fleet.database.begin() as connection:
            connection.execute(update(schema.devices).values(is_duplicate=False))
        heard_all(fleet)
        fleet.look(1)
        heard_all(fleet)
        fleet.look(400)
        hook.status = 204
        for _ in range(3):
            fleet.now += 1000
            fleet.courier.send_due()
        assert [bool(one.content["opened"]) for one in hook.taken] == [True, False]
        assert [bool(one.content["ended"]) for one in hook.taken] == [False, True]


def test_a_target_hears_only_of_what_is_grave_enough(fleet: Fleet, hook: Receiver) -> None:
    lively(fleet, ["d1", "d2"])
    fleet.hook(hook, severity="critical")
    fleet.said("d1", 1, "storage-full")
    fleet.look()
    heard_all(fleet)
    fleet.look()
    assert [one.severity for one in fleet.open()] == ["warning"]
    assert hook.got == []
    with fleet.database.begin() as connection:
        connection.execute(
            update(schema.devices).where(schema.devices.c.id == "d2").values(is_duplicate=True)
        )
    heard_all(fleet)
    fleet.look()
    assert hook.kinds() == ["device-copied"]


def test_a_database_that_takes_nothing_is_told_of_once_without_it(fleet: Fleet, hook: Receiver) -> None:
    fleet.hook(hook)
    fleet.courier.round()
    fleet.failing_since = fleet.now
    for _ in range(3):
        fleet.now += 10
        fleet.courier.round()
    for _ in range(5):
        fleet.now += 10
        fleet.courier.round()
    [one] = hook.got
    assert "the database takes no changes" in one.content["text"]
    assert one.is_signed()
    fleet.failing_since = None
    fleet.courier.round()
    fleet.courier.round()
    assert [("over:" in each.content["text"]) for each in hook.got] == [False, True]


def test_the_controller_says_since_when_the_database_refuses(database: Database, tmp_path: Path) -> None:
    clock = Clock(lambda: NOW, lambda: NOW)
    link: Any = SimpleNamespace(is_connected=False, connected_since=NOW - 100.0)
    controller = Controller(database, Issuer("fleet-1", make_key(tmp_path / "order.key")), link, clock)
    controller._chores = lambda: setattr(controller, "_stopping", True)

    def fails(_now: Now) -> None:
        raise OperationalError("INSERT", {}, Exception("database or disk is full"))

    assert controller.follow()
    whole, controller.tick = controller.tick, fails  # type: ignore[method-assign]
    controller._run()
    assert controller.failing_since == NOW
    controller.tick = whole  # type: ignore[method-assign]
    controller._stopping = False
    controller._run()
    assert controller.failing_since is None
    controller.stop()


def test_a_full_disk_is_failing_for_as_long_as_nothing_can_be_written_not_only_when_it_was_due(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen on a real full disk: ticks between two writes succeeded, and each took the failure back."""
    clock = Clock(lambda: NOW, lambda: NOW)
    link: Any = SimpleNamespace(is_connected=False, connected_since=NOW - 100.0)
    controller = Controller(database, Issuer("fleet-1", make_key(tmp_path / "order.key")), link, clock)
    assert controller.follow()
    controller._chores = lambda: setattr(controller, "_stopping", True)

    def full(*_: Any, **__: Any) -> None:
        raise OperationalError("INSERT", {}, Exception("database or disk is full"))

    with monkeypatch.context() as broken:
        broken.setattr(clock, "keep", full)
        for _ in range(3):
            controller._stopping = False
            controller._run()
            assert controller.failing_since == NOW
    controller._stopping = False
    controller._run()
    assert controller.failing_since is None
    controller.stop()


# -- mail and log ----------------------------------------------------------------------------------------------------


def mail(at: Mailbox, **more: Any) -> api.NewTarget:
    server = f"smtp://127.0.0.1:{at.port}"
    wanted = api.Mail(server, "fleet@example.org", ("ops@example.org", "night@example.org"), **more)
    return api.NewTarget("mail", "smtp", mail=wanted)


def test_a_mail_arrives_once_also_where_the_server_is_busy_first(fleet: Fleet, mails: Mailbox) -> None:
    storm(fleet)
    fleet.add(mail(mails))
    mails.refuses = 1
    fleet.look(1)
    assert mails.mails == []
    fleet.now += 6
    assert fleet.courier.send_due() == 1
    heard_all(fleet)
    fleet.look()
    [(to, found)] = mails.mails
    assert to == ["ops@example.org", "night@example.org"]
    assert found["subject"] == "fleet-1: 1 new"
    assert found["auto-submitted"] == "auto-generated"
    assert found["message-id"].startswith("<msg_")
    assert "two boards speak as d1" in str(found.get_payload())


def test_a_mail_server_is_spoken_to_over_tls_that_is_pinned_and_told_its_password(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    authority = ca.create("fleet-1", now)
    key = ca.make_key()
    certificate = authority.server(key.public_key(), ["127.0.0.1"], "fleet-1", now)
    (tmp_path / "both.pem").write_bytes(ca.key_pem(key) + ca.pem(certificate).encode())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    body = '{"type":"test","id":"msg_1","fleet":"f","text":"one"}'
    with mailbox(ssl_context=context, has_login=True, auth_require_tls=False) as mails:
        given: dict[str, Any] = {"user": "fleet", "password": "right", "ca": authority.pem}
        good = api.Mail(f"smtps://127.0.0.1:{mails.port}", "a@example.org", ("b@example.org",), **given)
        assert telling._mail(good, body, NOW) == "taken"
        assert mails.logins == [(b"fleet", b"right")]
        with pytest.raises(telling.NotToldError, match="refuses the login"):
            telling._mail(msgspec.structs.replace(good, password="wrong"), body, NOW)
        with pytest.raises(telling.NotToldError, match="its certificate is not trusted"):
            telling._mail(msgspec.structs.replace(good, ca=""), body, NOW)
        assert len(mails.mails) == 1


def test_a_log_target_writes_one_line(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    storm(fleet)
    fleet.add(api.NewTarget("log", "log"))
    with caplog.at_level(logging.WARNING, "fleet.alerts"):
        fleet.look(1)
    [line] = [one.getMessage() for one in caplog.records if one.name == "fleet.alerts"]
    assert "two boards speak as d1" in line
    assert "\n" not in line


def test_a_subject_of_a_mail_cannot_be_given_more_headers(mails: Mailbox) -> None:
    wanted = mail(mails)
    assert wanted.mail is not None
    body = msgspec.json.encode(
        {"type": "alerts", "id": "msg_1", "fleet": "f", "text": "one\r\nBcc: x@example.org\n"}
    )
    telling._mail(wanted.mail, body.decode(), NOW)
    [(to, found)] = mails.mails
    assert found["bcc"] is None
    assert "x@example.org" not in to


# -- secrets ---------------------------------------------------------------------------------------------------------


def test_a_secret_is_not_in_the_database_and_another_home_cannot_open_it(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    fleet = Fleet(database, tmp_path)
    with receiver() as hook:
        fleet.hook(hook)
    with database.read() as connection:
        [row] = alert_targets.everything(connection)
    assert "s3cret-path" not in row.shown
    assert row.shown == f"http://127.0.0.1:{hook.port}/…"
    database.close()
    for file in tmp_path.glob("fleet.db*"):
        data = file.read_bytes()
        assert SECRET.encode() not in data
        assert b"s3cret-path" not in data
    other = Seal(Keys(fleet.keys.order, make_key(tmp_path / "other.key")), TARGETS)
    with pytest.raises(FleetError, match="another home"):
        other.open("ops", row.sealed)
    with pytest.raises(FleetError, match="another home"):
        fleet.seal.open("not ops", row.sealed)
    assert SECRET.encode() in fleet.seal.open("ops", row.sealed)


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    made = Inside(tmp_path / "fleet")
    yield made
    made.close()


def test_targets_are_added_tried_and_removed_by_admins_and_tell_no_secret(
    inside: Inside, hook: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    admin, viewer = (
        inside.client(inside.token("root", Role.ADMIN)),
        inside.client(inside.token("eye", Role.VIEWER)),
    )
    wanted = {"name": "ops", "kind": "webhook", "webhook": {"url": hook.url, "secret": SECRET}}
    assert viewer.post("/api/v1/alert-targets", json=wanted).status_code == 403
    answers = [
        admin.post("/api/v1/alert-targets", json=wanted),
        admin.post("/api/v1/alert-targets", json=wanted),
    ]
    assert [one.status_code for one in answers] == [201, ConflictError.http_status]
    tried = admin.post("/api/v1/alert-targets/ops/test")
    assert tried.json() == {"name": "ops", "has_arrived": True, "words": "it answered 204"}
    [one] = hook.got
    assert one.is_signed()
    assert one.content["type"] == "test"
    hook.status = 418
    refused = admin.post("/api/v1/alert-targets/ops/test")
    assert refused.json()["has_arrived"] is False
    assert refused.json()["words"] == "it answered 418"
    listed = viewer.get("/api/v1/alert-targets")
    assert listed.json()[0]["where"] == f"http://127.0.0.1:{hook.port}/…"
    log = admin.get("/api/v1/audit").text
    assert "alert-target.add" in log
    gone = admin.post("/api/v1/alert-targets/ops/remove")
    assert gone.status_code == 200
    assert viewer.get("/api/v1/alert-targets").json() == []
    said = "".join(each.text for each in (*answers, tried, refused, listed, gone)) + log + caplog.text
    assert SECRET not in said
    assert "s3cret-path" not in said


def test_an_alert_is_acknowledged_by_an_operator_and_stands(inside: Inside) -> None:
    fleet = Fleet(inside.database, inside.path)
    storm(fleet)
    fleet.look(1)
    viewer, operator = (
        inside.client(inside.token("eye", Role.VIEWER)),
        inside.client(inside.token("op", Role.OPERATOR)),
    )
    [found] = viewer.get("/api/v1/alerts").json()
    path = f"/api/v1/alerts/{found['id']}/acknowledge"
    assert viewer.post(path).status_code == 403
    assert operator.post(path, json={"reason": "on my way"}).json() == {
        "name": found["id"],
        "is_changed": True,
    }
    assert operator.post(path).json()["is_changed"] is False
    assert operator.post("/api/v1/alerts/a999/acknowledge").status_code == 404
    assert operator.post("/api/v1/alerts/nonsense/acknowledge").status_code == 404
    heard_all(fleet)
    fleet.look()
    [after] = viewer.get("/api/v1/alerts").json()
    assert (after["acknowledged_by"], after["ended"]) == ("token:op", None), "a look leaves it as it is"
    assert viewer.get("/api/v1/alerts?ended=true").json() == []


# -- addresses -------------------------------------------------------------------------------------------------------


def _hook(url: str, secret: str = SECRET) -> api.NewTarget:
    return api.NewTarget("x", "webhook", api.Webhook(url, secret))


def _mail(server: str, **more: Any) -> api.NewTarget:
    given: dict[str, Any] = {"sender": "a@example.org", "recipients": ("b@example.org",)} | more
    return api.NewTarget("x", "smtp", mail=api.Mail(server, **given))


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (lambda: _hook("http://alerts.example/x"), "only to this machine"),
        (lambda: _hook("ftp://alerts.example/x"), "https://"),
        (lambda: _hook("https://user:pw@alerts.example/"), "no user or password"),
        (lambda: _hook("https://alerts.example/#x"), "never sent"),
        (lambda: _hook("https://alerts.example/a b"), "https://"),
        (lambda: _hook("https://alerts.example:99999/"), "no address"),
        (lambda: _hook("https://alerts.example/", "short"), "at least 16"),
        (lambda: _hook("https://alerts.example/", "whsec_not base64 at all"), "base64"),
        (lambda: _mail("https://mail.example"), "smtp://"),
        (lambda: _mail("smtp://user@mail.example"), "nothing else"),
        (lambda: _mail("smtp://localhost:25", user="a", password="b"), "no password"),
        (lambda: _mail("smtps://mail.example", user="a"), "go together"),
        (lambda: _mail("smtps://mail.example", recipients=("b@example.org\nBcc: c@d",)), "no mail address"),
        (lambda: api.NewTarget("x", "log", api.Webhook("https://a.example", SECRET)), "exactly what"),
        (lambda: api.NewTarget("x", "webhook"), "exactly what"),
    ],
)
def test_an_address_that_would_tell_a_secret_or_is_none_is_refused(
    wanted: Callable[[], api.NewTarget], why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        telling.check(wanted())


def test_what_is_shown_of_an_address_holds_no_secret() -> None:
    shown, _ = telling.check(_hook("https://hooks.example:8443/services/T0/B0/XXXX?token=1"))
    assert shown == "https://hooks.example:8443/…"
    shown, _ = telling.check(_mail("smtps://mail.example", user="u", password="p"))
    assert shown == "b@example.org by smtps://mail.example:465"
    telling.check(_hook("http://[::1]:9000/x"))


def test_a_webhook_follows_no_redirect_and_shows_nothing_of_an_answer(hook: Receiver) -> None:
    with receiver() as inner:
        hook.status, hook.location = 307, inner.url
        _, secret = telling.check(_hook(hook.url))
        found = msgspec.json.decode(secret, type=api.Webhook)
        body = '{"type":"test","id":"msg_1","fleet":"f","text":"t"}'
        with pytest.raises(telling.NotToldError, match="it answered 307"):
            telling._webhook(found, body, NOW)
        assert inner.got == []


def test_the_signature_is_that_of_the_specification() -> None:
    """The example of Standard Webhooks' own libraries."""
    key = telling.addresses.signing_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    found = telling.signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_receiver_that_is_not_there_is_said_so_without_its_address() -> None:
    _, secret = telling.check(_hook("http://127.0.0.1:9/s3cret-path"))
    found = msgspec.json.decode(secret, type=api.Webhook)
    with pytest.raises(telling.NotToldError) as told:
        telling._webhook(found, '{"type":"test","id":"m","fleet":"f","text":"t"}', NOW)
    assert str(told.value) == "Connection refused"


# -- what the home knows of ends, and what older databases hold ------------------------------------------------------


def test_certificates_and_metadata_of_the_home_are_told_of_before_they_end(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    authority = ca.create("fleet-1", now)
    key = ca.make_key()
    (tmp_path / "ca.pem").write_text(authority.pem)
    server = authority.server(key.public_key(), ["127.0.0.1"], "fleet-1", now - timedelta(days=350))
    (tmp_path / "server.pem").write_text(ca.pem(server))
    (tmp_path / "spoilt.pem").write_text("no certificate")
    found = expiries.of_files(
        tmp_path / "ca.pem", [tmp_path / "server.pem", tmp_path / "spoilt.pem"], tmp_path / "not-there.pem"
    )
    assert [one.subject for one in found] == [
        "the fleet's certificate authority",
        "the service's certificate server.pem",
    ]
    [soon] = findings.of_expiries(found, now.timestamp())
    assert soon.words.startswith("the service's certificate server.pem runs out in 2.")
    tuf = Online(tmp_path / "tuf")
    together.start(tmp_path, tuf, now)
    roles = expiries.of_metadata(tuf)
    assert {one.subject for one in roles} >= {
        "signed metadata root",
        "signed metadata targets",
        "signed metadata timestamp",
    }
    assert findings.of_expiries(roles, now.timestamp()) == []
    later = findings.of_expiries(roles, (now + timedelta(days=340)).timestamp())
    assert "signed metadata root" in {one.subject for one in later}
    (tmp_path / "tuf" / "metadata" / "timestamp.json").write_bytes(b"spoilt")
    assert expiries.of_metadata(tuf) == [], "what cannot be read is logged, and no reason to see nothing else"
    assert expiries.of_metadata(Online(tmp_path / "empty")) == []


def test_what_devices_reported_before_the_migration_is_known_after_it(migrated: Path, tmp_path: Path) -> None:
    shutil.copy(migrated, tmp_path / "fleet.db")
    made = Database(sqlite_url(tmp_path))
    fleet = Fleet(made, tmp_path)
    lively(fleet, ["d1", "d2"])
    fleet.said("d1", 1, "storage-full")
    fleet.said("d2", 1)
    back_to_before(made, "0016")
    made.close()
    again = Database(sqlite_url(tmp_path))
    with again.read() as connection:
        found = dict(troubles.everyones(connection))
    assert {name: [one.code for one in some] for name, some in found.items()} == {"d1": ["storage-full"]}
    again.close()


def back_to_before(database: Database, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with database.engine.connect() as connection, connection.begin():
        config.attributes["connection"] = connection
        before = ScriptDirectory.from_config(config).get_revision(revision).down_revision
        command.downgrade(config, str(before))


def test_one_broken_look_harms_nothing_else(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(lambda: NOW, lambda: NOW)
    link: Any = SimpleNamespace(is_connected=False, connected_since=NOW - 100.0)
    alarms: Any = SimpleNamespace(begin_anew=lambda: None, look=lambda *_: 1 / 0)
    controller = Controller(
        database, Issuer("fleet-1", make_key(tmp_path / "order.key")), link, clock, alarms=alarms
    )
    assert controller.follow()
    controller.tick(same(NOW))
    assert "looking for what is wrong failed" in caplog.text
    controller.stop()
