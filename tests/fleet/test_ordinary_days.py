"""An ordinary day of a fleet, in the database and under the controller: boards that are moved, exchanged, written anew,
thrown away and tried again while a rollout is under way.
"""

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from fleet_support import csr_of, make_device_key
from sqlalchemy import insert, select, update
from store_support import NEW, NOW, OLD, enrolled, report, rollout_of, said, topic

from edgekit.errors import ConflictError, NotFoundError
from edgekit.trust.dsse import Envelope
from edgekit.wire import topics
from edgekit.wire.enrolment import EnrolRequest
from edgekit.wire.messages import Condition, Order, OrderOptions, decode
from edgekit.wire.states import FleetState
from fleet.publish import make_key
from fleet.rules.rollout import Rollout, Status
from fleet.server import ca, changes, ingest, parting, schema
from fleet.server.clock import Clock, same
from fleet.server.controller import Controller
from fleet.server.database import Database
from fleet.server.link import Link
from fleet.server.store import (
    assignments,
    audit,
    certificates,
    devices,
    enrolments,
    groups,
    orders,
    removal,
    rollouts,
    settings,
    troubles,
)
from fleet.server.store.audit import Who
from fleet.server.store.enrolments import Invitation, Registrar
from fleet.server.store.orders import Issuer

ADA = Who("user:ada")
FOR_Q = "9" * 64
REGISTRAR = Registrar(
    ca.create("fleet-1", datetime.fromtimestamp(NOW, UTC)),
    "fleet-1",
    lambda device, number: f"{device}-{number}",
)
LAB, ATTIC = {"site": "lab"}, {"site": "attic"}


class Day:
    """Devices that run digits@1, and a controller without a broker."""

    def __init__(self, database: Database, issuer: Issuer) -> None:
        self.database, self.issuer, self.now = database, issuer, NOW
        clock = Clock(lambda: self.now, lambda: self.now)
        link = SimpleNamespace(is_connected=False, connected_since=NOW - 100.0)
        self.controller = Controller(database, issuer, cast("Link", link), clock)
        assert self.controller.follow()
        self.seqs: dict[str, int] = {}

    def have(self, *names: str, labels: dict[str, str] = LAB, runs: str | None = OLD) -> None:
        with self.database.begin() as connection:
            is_first = connection.execute(select(schema.bundles.c.sha256)).first() is None
        if is_first:
            enrolled(self.database, names)
        else:
            row = {
                "deployments": '["digits"]', "created_at": NOW, "enrolment": 1, "profile": "p",
                "is_confirmed": True, "credential_hash": "0" * 64, "is_online": True,
            }  # fmt: skip
            with self.database.begin() as connection:
                connection.execute(insert(schema.devices), [row | {"id": n, "labels": "{}"} for n in names])
        with self.database.begin() as connection:
            text = msgspec.json.encode(labels).decode()
            connection.execute(
                update(schema.devices).where(schema.devices.c.id.in_(names)).values(labels=text)
            )
            if runs is not None:
                orders.move(
                    connection, self.issuer, ["digits"], dict.fromkeys(names, (runs,)), because="x", now=NOW
                )
        for name in names:
            self.say(name, runs or OLD)

    def say(self, name: str, digest: str = OLD, **more: Any) -> None:
        self.seqs[name] = self.seqs.get(name, 0) + 1
        with self.database.read() as connection:
            row = devices.get(connection, name)
        message = said(name, self.seqs[name], counter=row.order_counter, digest=digest, **more)
        now_is = message.payload.replace(b'"enrolment":1', b'"enrolment":%d' % row.enrolment)
        taken = ingest.take_in(self.database, [message._replace(payload=now_is)], same(self.now))
        assert not taken.dropped

    def assign(self, version: str, to: str) -> None:
        with self.database.begin() as connection:
            assignments.add(connection, "digits", version, to, "digits", moves=0, now=self.now, who=ADA)

    def begin(self, *names: str, selector: str = "site=lab", cut: str = "100%", **more: Any) -> None:
        made = rollout_of(names, cut)
        made = msgspec.structs.replace(
            made, spec=msgspec.structs.replace(made.spec, selector=selector, **more)
        )
        with self.database.begin() as connection:
            changes.begin(connection, self.issuer, made, now=same(self.now), who=ADA)

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.now += 1
            self.controller.tick(same(self.now))

    def label(self, device: str, labels: dict[str, str]) -> None:
        with self.database.begin() as connection:
            assert groups.relabel(connection, device, labels, (), now=self.now, who=ADA)

    @property
    def rollout(self) -> Rollout:
        with self.database.read() as connection:
            return rollouts.get(connection, 1)

    def wanted(self, device: str) -> tuple[str, str] | None:
        with self.database.read() as connection:
            found = orders.desired_of(connection, device).get((device, "digits"))
        return (found.sha256, found.because) if found is not None else None

    def order(self, device: str) -> Order:
        with self.database.read() as connection:
            query = select(schema.outbox.c.payload).where(schema.outbox.c.device == device)
            envelope = msgspec.json.decode(connection.execute(query).scalar_one(), type=Envelope)
        return decode(base64.b64decode(envelope.payload), Order)

    def log(self, action: str) -> list[Any]:
        with self.database.read() as connection:
            return [entry for entry in audit.entries(connection) if entry.action == action]

    def marks(self) -> int:
        with self.database.read() as connection:
            return len(groups.marked(connection, ("", 0), 100))

    def enrol(self, device: str, *deployments: str, labels: dict[str, str] = LAB, profile: str = "p") -> None:
        """As the endpoint does it."""
        with self.database.begin() as connection:
            invitation = Invitation(device, labels, deployments, self.now + 1000)
            token = enrolments.invite(connection, invitation, now=self.now, who=ADA)
        with self.database.begin() as connection:
            request = EnrolRequest(device, token, csr_of(make_device_key(), device), profile, "1")
            enrolments.enrol(connection, REGISTRAR, request, self.now)
            parting.refit(connection, device, profile)
            orders.issue(connection, self.issuer, device, self.now)


@pytest.fixture
def day(database: Database, tmp_path: Path) -> Iterator[Day]:
    made = Day(database, Issuer("fleet-1", make_key(tmp_path / "order.key")))
    yield made
    made.controller.stop()


def test_a_board_that_joins_in_the_middle_of_a_rollout_gets_its_assignment_first(day: Day) -> None:
    day.have("a", "b")
    day.assign("1", "all")
    day.begin("a", "b", selector="all", cut="1,100%")
    day.tick()
    day.have("late", runs=None)
    day.tick()
    assert day.wanted("late") == (OLD, "assignment digits@1")
    day.tick()
    assert "late" not in day.rollout.members, "it has not come to rest with it"
    day.say("late")
    day.tick()
    joined = day.rollout.members["late"]
    assert (joined.previous, joined.target) == (OLD, NEW)


def test_a_relabelled_device_leaves_the_rollout_and_follows_the_new_groups_assignment(day: Day) -> None:
    day.have("a", "b", "c")
    day.assign("1", "site=attic")
    day.begin("a", "b", "c")
    day.tick()
    assert day.wanted("a") == (NEW, "rollout r1")
    day.label("a", ATTIC)
    day.tick(2)
    assert sorted(day.rollout.members) == ["b", "c"]
    assert day.wanted("a") == (OLD, "left rollout r1")
    assert day.order("a").deployments["digits"].sha256 == OLD
    assert day.marks() == 0
    [entry] = day.log("device.label")
    assert (entry.actor, entry.before, entry.after) == ("user:ada", '{"site":"lab"}', '{"site":"attic"}')


def test_without_an_assignment_a_relabelled_device_goes_back_to_what_it_ran(day: Day) -> None:
    day.have("a", "b")
    day.begin("a", "b")
    day.tick()
    day.label("b", ATTIC)
    day.tick()
    assert (sorted(day.rollout.members), day.wanted("b")) == (["a"], (OLD, "left rollout r1"))


def test_a_device_in_no_rollout_follows_its_new_group_and_stays_where_nothing_is_assigned(day: Day) -> None:
    day.have("a")
    day.assign("2", "site=attic")
    day.tick()
    assert day.wanted("a") == (OLD, "x")
    day.label("a", {"site": "roof"})
    day.tick()
    assert (day.wanted("a"), day.marks()) == ((OLD, "x"), 0)
    day.label("a", ATTIC)
    day.tick()
    assert (day.wanted("a"), day.marks()) == ((NEW, "assignment digits@2"), 0)


def test_a_freeze_keeps_a_relabelled_device_where_it_is_until_it_is_over(day: Day) -> None:
    day.have("a", "b")
    day.assign("1", "site=attic")
    day.begin("a", "b")
    day.tick()
    with day.database.begin() as connection:
        settings.set_frozen(connection, True)
    day.label("a", ATTIC)
    day.tick(2)
    assert ("a" in day.rollout.members, day.wanted("a")) == (True, (NEW, "rollout r1"))
    with day.database.begin() as connection:
        settings.set_frozen(connection, False)
    day.say("a")
    day.tick()
    assert ("a" in day.rollout.members, day.wanted("a")) == (False, (OLD, "left rollout r1"))


@pytest.mark.parametrize("name", ["device", "profile"])
def test_a_built_in_label_and_one_that_is_not_there_are_refused(day: Day, name: str) -> None:
    day.have("a")
    with day.database.begin() as connection:
        with pytest.raises(ConflictError, match="built in"):
            groups.relabel(connection, "a", {name: "x"}, (), now=NOW, who=ADA)
        with pytest.raises(NotFoundError, match="has no label 'floor'; it has site"):
            groups.relabel(connection, "a", {}, ("floor",), now=NOW, who=ADA)
        assert not groups.relabel(connection, "a", LAB, (), now=NOW, who=ADA)
    assert day.log("device.label") == []


def test_a_card_written_anew_in_the_middle_gets_the_same_with_the_rollouts_own_probation(day: Day) -> None:
    day.have("a", "b")
    day.begin("a", "b", probation_s=1.0)
    before = day.order("a")
    assert (before.options.probation_s, before.enrolment) == (1.0, 1)
    day.enrol("a", "digits")
    after = day.order("a")
    assert (after.options, after.enrolment, after.deployments) == (before.options, 2, before.deployments)
    assert day.marks() == 0, "nothing about it has changed"
    day.tick()
    assert "a" in day.rollout.members


def test_what_the_board_before_complained_of_is_not_said_of_the_new_one(day: Day) -> None:
    day.have("a")
    said = Condition("storage-full", "no space left", datetime.now(UTC))
    day.say("a", conditions=(said,))
    with day.database.read() as connection:
        assert [name for name, _ in troubles.everyones(connection)] == ["a"]
    day.enrol("a", "digits")
    with day.database.read() as connection:
        assert list(troubles.everyones(connection)) == []


def test_an_order_said_again_does_not_ask_for_a_retry_again(day: Day) -> None:
    day.have("a")
    with day.database.begin() as connection:
        orders.issue(connection, day.issuer, "a", NOW, OrderOptions(probation_s=3.0, retry=True))
        orders.issue(connection, day.issuer, "a", NOW)
    assert day.order("a").options == OrderOptions(probation_s=3.0)


def for_q(day: Day, version: str, sha256: str) -> None:
    bundle = {
        "name": "digits", "version": version, "profile": "q", "length": 10, "engine": "onnxruntime",
        "engine_versions": ">=1", "format": 1, "published_at": NOW, "sha256": sha256,
    }  # fmt: skip
    with day.database.begin() as connection:
        connection.execute(insert(schema.bundles), [bundle])


def test_other_hardware_under_the_same_name_goes_on_in_the_rollout_as_what_it_is(day: Day) -> None:
    day.have("a", "b")
    for_q(day, "2", FOR_Q)
    day.begin("a", "b")
    day.tick()
    day.enrol("a", "digits", profile="q")
    assert day.order("a").deployments["digits"].target == f"digits/2/q/{FOR_Q}.edgekit"
    day.tick()
    member = day.rollout.members["a"]
    assert (member.profile, member.target, member.previous) == ("q", FOR_Q, None)
    assert day.rollout.members["b"].target == NEW


def test_hardware_that_the_release_has_no_bundle_for_leaves_the_rollout(day: Day) -> None:
    day.have("a", "b")
    for_q(day, "1", FOR_Q)
    day.begin("a", "b")
    day.tick()
    day.enrol("a", "digits", profile="q")
    assert day.order("a").deployments == {}, "nothing that it cannot run"
    day.tick()
    assert sorted(day.rollout.members) == ["b"]
    assert day.wanted("a") == (FOR_Q, "left rollout r1"), "what it ran before, for what it is now"


def test_a_board_enrolled_with_fewer_deployments_leaves_what_is_about_the_others(day: Day) -> None:
    day.have("a", "b")
    day.begin("a", "b")
    day.tick()
    day.enrol("a", "faces")
    assert day.order("a").deployments == {}
    day.tick(2)
    assert (sorted(day.rollout.members), day.wanted("a"), day.marks()) == (["b"], None, 0)


def test_a_board_enrolled_with_more_deployments_gets_what_is_assigned_to_each(day: Day) -> None:
    day.have("a")
    day.enrol("a", "faces")
    day.assign("1", "all")
    day.say("a")
    day.tick()
    assert day.wanted("a") is None
    day.enrol("a", "faces", "digits")
    day.say("a")
    day.tick()
    assert (day.wanted("a"), day.marks()) == ((OLD, "assignment digits@1"), 0)


def failed(day: Day, device: str, reason: str = "no space left") -> None:
    with day.database.begin() as connection:
        before = rollouts.load(connection, 1)
        member = msgspec.structs.replace(before.members[device], state=FleetState.FAILED, reason=reason)
        after = msgspec.structs.replace(before, members=before.members | {device: member})
        rollouts.save(connection, after, before, day.now)


def test_a_retry_orders_the_failed_again_and_writes_what_they_had_said(day: Day) -> None:
    day.have("a", "b")
    day.begin("a", "b", probation_s=2.0)
    day.tick()
    failed(day, "a")
    before = day.order("a").counter
    with day.database.begin() as connection:
        rollout = rollouts.load(connection, 1)
        told = changes.retry(connection, day.issuer, rollout, ["a", "b"], now=same(day.now), who=ADA)
    assert told == ("a",)
    order = day.order("a")
    assert (order.options, order.counter > before) == (OrderOptions(probation_s=2.0, retry=True), True)
    member = day.rollout.members["a"]
    assert (member.state, member.order_counter) == (FleetState.PENDING, order.counter)
    [entry] = day.log("rollout.retry")
    assert entry.before == '{"a":{"state":"failed","reason":"no space left"}}'
    day.tick()
    assert (day.rollout.status, day.rollout.members["a"].state) == (Status.RUNNING, FleetState.PENDING)


def test_an_assignment_moves_who_matches_when_no_rollout_has_them(day: Day) -> None:
    day.have("a", "b")
    day.begin("a", selector="device=a")
    with day.database.begin() as connection:
        groups.mark(connection, ["a", "b"], ["digits"])
    day.assign("2", "all")
    day.tick()
    assert day.wanted("b") == (NEW, "assignment digits@2")
    assert (day.wanted("a"), day.marks()) == ((NEW, "rollout r1"), 1)
    [entry] = day.log("assignment.add")
    assert (entry.subject, "digits@2" in entry.after) == ("a1", True)


def test_more_marks_than_one_pass_takes_are_all_settled(day: Day, monkeypatch: pytest.MonkeyPatch) -> None:
    from fleet.server import placing

    monkeypatch.setattr(placing, "AT_ONCE", 2)
    names = [f"d{n}" for n in range(5)]
    day.have(*names)
    day.assign("2", "all")
    with day.database.begin() as connection:
        groups.mark(connection, names, ["digits"])
    day.tick(4)
    assert {day.wanted(name) for name in names} == {(NEW, "assignment digits@2")}
    assert day.marks() == 0


def test_a_mark_made_after_the_look_outlives_it(day: Day) -> None:
    day.have("a")
    with day.database.begin() as connection:
        groups.mark(connection, ["a"], ["digits"])
        read = groups.marked(connection, ("", 0), 10)
        groups.mark(connection, ["a"], ["digits"])
        groups.settle(connection, read)
        assert len(groups.marked(connection, ("", 0), 10)) == 1


def test_an_assignment_is_taken_away_and_an_older_one_holds_again(day: Day) -> None:
    day.assign("1", "all")
    day.assign("2", "all")
    with day.database.begin() as connection:
        with pytest.raises(NotFoundError, match="no assignment"):
            assignments.remove(connection, "a7", "", now=NOW, who=ADA)
        assignments.remove(connection, "a2", "a mistake", now=NOW, who=ADA)
        found = assignments.newest_first(connection).holding({}, "digits", ["digits"])
    assert found is not None
    assert found.version == "1"
    [entry] = day.log("assignment.remove")
    assert (entry.detail, "digits@2" in entry.before) == ("a mistake", True)


def delete(day: Day, device: str) -> None:
    with day.database.begin() as connection:
        removal.revoke(connection, device, reason="scrapped", now=day.now, who=ADA)
        removal.forget(connection, device, "scrapped", now=day.now, who=ADA)


def test_a_deleted_device_is_gone_and_its_name_is_free_but_never_its_numbers(day: Day) -> None:
    day.have("a", "b")
    day.enrol("a", "digits")
    first = day.order("a").counter
    day.begin("a", "b")
    day.tick()
    delete(day, "a")
    day.tick()
    assert sorted(day.rollout.members) == ["b"]
    with day.database.begin() as connection:
        assert [row.id for row in devices.everyone(connection)] == ["b"]
        with pytest.raises(NotFoundError):
            devices.get(connection, "a")
        assert len(certificates.revoked(connection, day.now)) == 1
        invitation = Invitation("", {}, ("digits",), day.now + 1000, max_uses=9)
        token = enrolments.invite(connection, invitation, now=day.now, who=ADA)
    with day.database.begin() as connection:
        request = EnrolRequest("a", token, csr_of(make_device_key(), "a"), "p", "1")
        answer = enrolments.enrol(connection, REGISTRAR, request, day.now)
        assert answer.enrolment == 3
        assert orders.issue(connection, day.issuer, "a", NOW - 10_000) > first
    [entry] = day.log("device.delete")
    assert (entry.detail, '"enrolment":2' in entry.before) == ("scrapped", True)


def test_a_device_that_never_enrolled_leaves_nothing_when_it_is_deleted(day: Day) -> None:
    with day.database.begin() as connection:
        invitation = Invitation("typo", LAB, ("digits",), NOW + 1000)
        enrolments.invite(connection, invitation, now=NOW, who=ADA)
    delete(day, "typo")
    with day.database.begin() as connection:
        assert devices.find(connection, "typo") is None


def heard_of_before(day: Day, enrolment: int, at: float) -> None:
    message = report("a", 1, at, incarnation=5)
    text = message.payload.replace(b'"enrolment":1', b'"enrolment":%d' % enrolment)
    taken = ingest.take_in(day.database, [message._replace(payload=text, received=at)], same(at))
    assert taken.dropped == {"of another enrolment": 1}


def former(day: Day) -> tuple[int, float | None]:
    with day.database.read() as connection:
        row = devices.get(connection, "a")
    return row.former_enrolment, row.former_at


def test_an_older_board_that_keeps_coming_is_told_from_the_new_one_and_marked_once(day: Day) -> None:
    day.have("a")
    day.enrol("a", "digits")
    heard_of_before(day, 1, NOW + 5)
    assert former(day) == (0, None), "the new board has not been heard of yet"
    with day.database.begin() as connection:
        enrolments.confirm(connection, devices.get(connection, "a"))
    heard_of_before(day, 1, NOW - 5)
    assert former(day) == (0, None), "of before the new board"
    for later in (5.0, 6.0, 100.0):
        heard_of_before(day, 1, NOW + later)
    assert former(day) == (1, NOW + 100)
    heard_of_before(day, 3, NOW + 200)
    assert former(day) == (1, NOW + 100), "a later enrolment than the present one is nobody's"
    [entry] = day.log("device.former")
    assert "identity of enrolment 1" in entry.detail
    day.enrol("a", "digits")
    assert former(day) == (0, None)


def test_what_an_older_board_leaves_on_its_topics_is_no_sign_of_it(day: Day) -> None:
    day.have("a")
    day.enrol("a", "digits")
    with day.database.begin() as connection:
        enrolments.confirm(connection, devices.get(connection, "a"))
    kept = said("a", 9)._replace(received=NOW + 5, is_retained=True)
    assert kept.topic == topic("a", topics.REPORTED)
    ingest.take_in(day.database, [kept], same(NOW + 5))
    assert former(day) == (0, None)


def test_an_older_board_that_asks_to_renew_is_marked_too(day: Day) -> None:
    from fleet.server.store import former as store

    day.have("a")
    day.enrol("a", "digits")
    for later in (0.0, 1.0):
        with day.database.begin() as connection:
            store.asked(connection, devices.get(connection, "a"), 1, NOW + later, "192.0.2.9")
    assert former(day) == (1, NOW)
    [entry] = day.log("device.former")
    assert entry.origin == "192.0.2.9"
