"""Several deployments that move together, in the database and under the controller."""

import base64
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from msgspec.structs import replace
from sqlalchemy import insert, select, update
from store_support import NEW, NOW, OLD, WINDOW_S, enrolled, report, said

from edgekit.errors import ConflictError, UsageError
from edgekit.trust.dsse import Envelope
from edgekit.wire.messages import DeploymentReport, Order, Report, Reported, decode, encode
from edgekit.wire.states import AgentState
from fleet import api
from fleet.publish import make_key
from fleet.rules import windows
from fleet.rules.evidence import Arm
from fleet.rules.members import BAD
from fleet.rules.pace import Pace
from fleet.rules.rollout import Command, Rollout, Status
from fleet.server import changes, ingest, planning, schema
from fleet.server.api import blocked
from fleet.server.api.context import Context
from fleet.server.api.rollouts import _check_still_its_own
from fleet.server.clock import Clock, same
from fleet.server.controller import Controller
from fleet.server.database import Database
from fleet.server.link import Link
from fleet.server.store import audit, devices, groups, news, orders, rollouts
from fleet.server.store.orders import Issuer
from fleet.server.watched import Watched

OLD_N, NEW_N = "c" * 64, "d" * 64
WANTED = api.NewRollout(
    "digits@2 faces@2", "all", stages="100%", gates=("error_rate < 5%",), holdback="0", soak="1m"
)
BOTH = {"digits": OLD, "faces": OLD_N}


class Pair:
    """Devices that run digits@1 and faces@1, and a controller without a broker."""

    def __init__(self, database: Database, issuer: Issuer) -> None:
        self.database, self.issuer, self.now, self.seq = database, issuer, NOW, 0
        link = SimpleNamespace(is_connected=False, connected_since=NOW - 100.0)
        clock = Clock(lambda: self.now, lambda: self.now)
        self.controller = Controller(database, issuer, cast("Link", link), clock)
        assert self.controller.follow()
        enrolled(database, ["a", "b", "alone"])
        with database.begin() as connection:
            one = connection.execute(select(schema.bundles).where(schema.bundles.c.sha256 == OLD)).one()
            rows = [
                {**one._asdict(), "name": "faces", "sha256": sha256, "version": version}
                for sha256, version in ((OLD_N, "1"), (NEW_N, "2"))
            ]
            connection.execute(insert(schema.bundles), rows)
        self.have("a", "b", deployments='["digits","faces"]')
        self.have("alone", deployments='["digits"]')
        for name in ("a", "b", "alone"):
            self.run(name, BOTH if name != "alone" else {"digits": OLD})

    def have(self, *names: str, deployments: str) -> None:
        with self.database.begin() as connection:
            chosen = schema.devices.c.id.in_(names)
            connection.execute(update(schema.devices).where(chosen).values(deployments=deployments))

    def run(self, name: str, digests: dict[str, str]) -> None:
        with self.database.begin() as connection:
            orders.move(
                connection, self.issuer, list(digests), {name: list(digests.values())}, because="x", now=self.now - 50
            )  # fmt: skip
        self.say(name, digests)

    def say(self, name: str, digests: dict[str, str], **reports: DeploymentReport) -> None:
        """It has followed its newest order, and is at rest with these, or says so."""
        self.seq += 1
        with self.database.read() as connection:
            counter = devices.get(connection, name).order_counter
        message = said(name, self.seq, counter=counter)
        shown = {one: DeploymentReport(AgentState.IDLE, sha, sha, sha) for one, sha in digests.items()}
        payload = encode(replace(decode(message.payload, Reported), deployments=shown | reports))
        assert not ingest.take_in(self.database, [message._replace(payload=payload)], same(self.now)).dropped

    def serve(self, name: str, digests: dict[str, str], errors: dict[str, int]) -> None:
        """A window of each."""
        self.seq += 1
        message = report(name, self.seq, self.now)
        whole = decode(message.payload, Report)
        [window] = whole.deployments
        windows = tuple(
            replace(window, deployment=one, digest=digest, errors=errors[one])
            for one, digest in digests.items()
        )
        payload = encode(replace(whole, deployments=windows))
        assert not ingest.take_in(self.database, [message._replace(payload=payload)], same(self.now)).dropped

    def ask(self, **more: Any) -> Rollout:
        wanted = replace(WANTED, **more)
        with self.database.begin() as connection:
            planned, _ = planning.plan(connection, wanted, same(self.now))
            return changes.begin(
                connection, self.issuer, planned, now=same(self.now), who=audit.FLEET, wanted=wanted
            )

    def plan(self, **more: Any) -> api.Plan:
        with self.database.begin() as connection:
            return planning.plan(connection, replace(WANTED, **more), same(self.now))[1]

    def tell(self, verb: Any) -> None:
        with self.database.begin() as connection:
            changes.apply(
                connection, self.issuer, rollouts.load(connection, 1), Command(verb), now=same(self.now)
            )

    def tick(self, after_s: float = 1.0) -> None:
        self.now += after_s
        self.controller.tick(same(self.now))

    @property
    def rollout(self) -> Rollout:
        with self.database.read() as connection:
            return rollouts.get(connection, 1)

    def order(self, device: str) -> Order:
        with self.database.read() as connection:
            query = select(schema.outbox.c.payload).where(schema.outbox.c.device == device)
            envelope = msgspec.json.decode(connection.execute(query).scalar_one(), type=Envelope)
        return decode(base64.b64decode(envelope.payload), Order)

    def wants(self, device: str) -> dict[str, str]:
        """What its newest order says."""
        return {one: bundle.sha256 for one, bundle in self.order(device).deployments.items()}

    def complete(self) -> None:
        """The rollout's devices arrive, serve well, and it completes."""
        new = {"digits": NEW, "faces": NEW_N}
        self.tick()
        for name in self.rollout.members:
            self.say(name, new)
        for _ in range(6):
            self.tick(WINDOW_S)
            for name in ("a", "b", "alone"):
                there = new if name in self.rollout.members else {"digits": OLD}
                self.serve(name, there, dict.fromkeys(there, 0))
        self.tick()
        assert self.rollout.status is Status.COMPLETED, self.rollout.reason


@pytest.fixture
def pair_of(database: Database, tmp_path: Path) -> Iterator[Pair]:
    made = Pair(database, Issuer("fleet-1", make_key(tmp_path / "order.key")))
    yield made
    made.controller.stop()


def test_only_devices_that_can_run_all_are_eligible_and_one_order_says_all(pair_of: Pair) -> None:
    plan = pair_of.plan()
    assert plan.eligible == {"p": plan.eligible["p"]}
    assert sorted(plan.eligible["p"]) == ["a", "b"]
    assert [(one.device, one.reason) for one in plan.ineligible] == [
        ("alone", "is not enrolled for deployment faces")
    ]
    assert (plan.release, plan.deployment) == ("digits@2 faces@2", "digits faces")
    assert any("move together" in note for note in plan.notes)
    made = pair_of.ask()
    assert [gate.text for gate in made.spec.gates] == ["digits: error_rate < 5%", "faces: error_rate < 5%"]
    assert pair_of.wants("a") == {"digits": NEW, "faces": NEW_N}
    assert pair_of.rollout == replace(made, given=pair_of.rollout.given)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"release": "digits@2 digits@1"}, "two releases to the deployment digits"),
        ({"deployment": "digits"}, "say it of each"),
        ({"release": "digits@2=digits", "deployment": "digits"}, "say it of each"),
        ({"gates": ("faces: error_rate < 5%",)}, "judged by of digits"),
        ({"gates": ("error_rate < 5%", "faces: error_rate < 1%", "faces: error_rate < 2%")}, "limited twice"),
        ({"release": "digits@2 faces@2=ocr"}, "is not enrolled for deployment ocr: 3"),
    ],
)
def test_what_cannot_move_together_is_refused_with_the_reason(
    pair_of: Pair, more: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        pair_of.plan(**more)


def test_a_device_for_which_one_has_no_bundle_or_no_room_stays_out_with_the_deployments_name(
    pair_of: Pair,
) -> None:
    with pair_of.database.begin() as connection:
        change = update(schema.bundles).where(schema.bundles.c.sha256 == NEW_N)
        connection.execute(change.values(profile="q"))
    with pytest.raises(UsageError, match=r"faces: no bundle for profile p \(there is q\): 2"):
        pair_of.plan()
    with pair_of.database.begin() as connection:
        # Each has room by itself (10 GB are free), both have not.
        connection.execute(change.values(profile="p", length=4 * 10**9))
        connection.execute(
            update(schema.bundles).where(schema.bundles.c.sha256 == NEW).values(length=4 * 10**9)
        )
    with pytest.raises(UsageError, match="faces: not enough space"):
        pair_of.plan()
    assert sorted(pair_of.plan(release="faces@2").eligible["p"]) == ["a", "b"]


def test_one_that_is_there_already_counts_as_eligible_for_the_other(pair_of: Pair) -> None:
    pair_of.run("a", {"digits": NEW, "faces": OLD_N})
    made = pair_of.ask()
    assert {name: [(p.previous, p.target) for p in m.parts] for name, m in made.members.items()} == {
        "a": [(NEW, NEW), (OLD_N, NEW_N)],
        "b": [(OLD, NEW), (OLD_N, NEW_N)],
    }
    pair_of.tell("rollback")
    assert (pair_of.wants("a"), pair_of.wants("b")) == ({"digits": NEW, "faces": OLD_N}, BOTH)


@pytest.mark.parametrize("release", ["digits@1", "faces@1", "faces@1 digits@1"])
def test_a_rollout_of_any_of_them_is_in_the_way_of_another(pair_of: Pair, release: str) -> None:
    pair_of.ask()
    with pytest.raises(ConflictError, match=r"r1 of digits@2 faces@2 is running on 2 of these devices"):
        pair_of.plan(release=release)


def evidence(pair_of: Pair) -> dict[str, dict[str, Any]]:
    with pair_of.database.begin() as connection:
        head, revision = rollouts.lock(connection, 1)
        kept = Watched.load(connection, head, revision)
        found = kept.evidence(connection, (), deaf=(0.0, 0.0), heard_since=0.0, now=pair_of.now)
    return {"digits": dict(found.devices), **{name: dict(some) for name, some in found.beside.items()}}


def test_what_devices_do_is_added_up_in_each_deployment_apart(pair_of: Pair) -> None:
    pair_of.ask(stages="1,100%")
    pair_of.tick()
    [moved] = [m.device for m in pair_of.rollout.members.values() if m.order_counter]
    [stayed] = {"a", "b"} - {moved}
    new = {"digits": NEW, "faces": NEW_N}
    pair_of.say(moved, new)
    for _ in range(3):
        pair_of.tick(WINDOW_S + 5)
        pair_of.serve(moved, new, {"digits": 0, "faces": 7})
        pair_of.serve(stayed, BOTH, {"digits": 1, "faces": 2})
    seen = evidence(pair_of)
    figures = {
        (name, one): (found.arm, found.windows, found.errors, found.installed)
        for one, some in seen.items()
        for name, found in some.items()
    }
    assert figures == {
        (moved, "digits"): (Arm.CANARY, 2, 0, True),
        (moved, "faces"): (Arm.CANARY, 2, 14, True),
        (stayed, "digits"): (Arm.CONTROL, 2, 2, None),
        (stayed, "faces"): (Arm.CONTROL, 2, 4, None),
    }


def test_the_same_release_in_two_deployments_is_told_apart(pair_of: Pair) -> None:
    pair_of.run("a", {"digits": OLD, "faces": OLD})
    pair_of.ask(release="digits@2 digits@2=faces", to="device in (a)")
    pair_of.tick()
    new = {"digits": NEW, "faces": NEW}
    pair_of.say("a", new)
    for _ in range(3):
        pair_of.tick(WINDOW_S + 5)
        pair_of.serve("a", new, {"digits": 0, "faces": 7})
    errors = {one: (some["a"].windows, some["a"].errors) for one, some in evidence(pair_of).items()}
    assert errors == {"digits": (2, 0), "faces": (2, 14)}


def test_a_harm_in_the_second_turns_both_back(pair_of: Pair) -> None:
    pair_of.ask()
    pair_of.tick()
    new = {"digits": NEW, "faces": NEW_N}
    for name in ("a", "b"):
        pair_of.say(name, new)
    for _ in range(4):
        pair_of.tick(WINDOW_S + 5)
        for name in ("a", "b"):
            pair_of.serve(name, new, {"digits": 0, "faces": 60})
    pair_of.tick()
    assert pair_of.rollout.status is Status.ROLLING_BACK
    assert pair_of.rollout.reason.startswith("faces: error_rate < 5%")
    assert (pair_of.wants("a"), pair_of.wants("b")) == (BOTH, BOTH)


def test_a_line_is_shared_by_the_downloads_of_all(pair_of: Pair) -> None:
    made = pair_of.ask(site_bandwidth="1MB/s")
    assert {one.fetch_bytes_s for one in changes._options(made, ["a", "b"]).values()} == {2.5e5}


def test_blocking_the_second_release_pauses_the_rollout(pair_of: Pair) -> None:
    pair_of.ask(stages="1,100%")
    ctx = SimpleNamespace(issuer=pair_of.issuer, time=SimpleNamespace(now=lambda: same(pair_of.now)))
    for subject, status in (("faces@1", Status.RUNNING), (NEW_N, Status.PAUSED)):
        with pair_of.database.begin() as connection:
            under_way = [rollouts.load(connection, 1)]
            blocked._pause(connection, cast("Context", ctx), subject, under_way, audit.FLEET)
        assert pair_of.rollout.status is status


def test_who_joins_first_gets_what_is_assigned_in_each(pair_of: Pair) -> None:
    pair_of.ask(to="device in (a, b, alone)", stages="1,100%")
    pair_of.have("alone", deployments='["digits","faces"]')
    with pair_of.database.begin() as connection:
        groups.mark(connection, ["alone"], ["digits"])
    row = {
        "deployment": "faces",
        "selector": "all",
        "name": "faces",
        "version": "1",
        "rollout": 0,
        "set_at": NOW,
    }
    with pair_of.database.begin() as connection:
        connection.execute(insert(schema.assignments).values(row))
    pair_of.say("alone", {"digits": OLD})
    pair_of.tick()
    assert "alone" not in pair_of.rollout.members, "it is to run faces@1 first"
    assert pair_of.wants("alone") == BOTH
    pair_of.say("alone", BOTH)
    pair_of.tick()
    assert [part.previous for part in pair_of.rollout.members["alone"].parts] == [OLD, OLD_N]


def test_what_it_leaves_is_given_whole_or_not_at_all_and_a_rollback_takes_both_away(pair_of: Pair) -> None:
    pair_of.ask()
    pair_of.complete()
    pair_of.tick()
    assert pair_of.wants("alone") == {"digits": OLD}, "it lacks a deployment, and keeps what it has"
    before = pair_of.order("alone").counter
    pair_of.have("alone", deployments='["digits","faces"]')
    pair_of.say("alone", {"digits": OLD})
    pair_of.tick()
    late = pair_of.order("alone")
    assert pair_of.wants("alone") == {"digits": NEW, "faces": NEW_N}
    assert late.counter > before
    pair_of.tell("rollback")
    pair_of.tick()
    assert [pair_of.wants(name) for name in ("a", "b")] == [BOTH, BOTH]
    assert pair_of.wants("alone") == {}, "nothing was assigned before"


def test_what_it_leaves_waits_until_a_rollout_of_one_of_them_is_over(pair_of: Pair) -> None:
    pair_of.ask()
    pair_of.complete()
    pair_of.have("alone", deployments='["digits","faces"]')
    pair_of.ask(release="faces@1", to="device in (alone)", approve="1")
    pair_of.say("alone", {"digits": OLD})
    pair_of.tick()
    assert pair_of.wants("alone") == {"digits": OLD}
    with pair_of.database.begin() as connection:
        second = rollouts.load(connection, 2)
        changes.apply(connection, pair_of.issuer, second, Command("abort"), now=same(pair_of.now))
    for _ in range(3):
        pair_of.tick()
    assert pair_of.wants("alone") == {"digits": NEW, "faces": NEW_N}


def test_what_it_leaves_waits_for_its_window_as_one(pair_of: Pair) -> None:
    """What runs nothing waits for nothing; but half of a pair is not given for that."""
    pair_of.ask()
    pair_of.complete()
    opens = datetime.fromtimestamp(pair_of.now, UTC) + timedelta(hours=2)
    span = windows.parse(f"{opens:%H:%M}-{opens + timedelta(hours=1):%H:%M}")
    with pair_of.database.begin() as connection:
        done = rollouts.load(connection, 1)
        later = replace(done, spec=replace(done.spec, pace=Pace(windows=(span,))))
        rollouts.save(connection, later, done, pair_of.now)
    pair_of.have("alone", deployments='["digits","faces"]')
    pair_of.say("alone", {"digits": OLD})
    pair_of.tick()
    assert pair_of.wants("alone") == {"digits": OLD}
    pair_of.tick(7300)
    assert pair_of.wants("alone") == {"digits": NEW, "faces": NEW_N}


def test_one_that_failed_stays_where_it_went_back_to_when_the_rollout_completes(pair_of: Pair) -> None:
    pair_of.ask(gates=("error_rate < 5%", "lost <= 60%", "install_failures <= 60%"), soak="3m")
    pair_of.tick()
    new = {"digits": NEW, "faces": NEW_N}
    failed = DeploymentReport(AgentState.FAILED, OLD_N, OLD_N, NEW_N, reason="self-test")
    pair_of.say("a", new)
    pair_of.say("b", {"digits": NEW}, faces=failed)
    pair_of.tick()
    assert (pair_of.rollout.members["b"].reason, pair_of.wants("b")) == ("faces: self-test", BOTH)
    pair_of.say("b", BOTH)
    for _ in range(6):
        pair_of.tick(WINDOW_S)
        pair_of.serve("a", new, dict.fromkeys(new, 0))
        pair_of.serve("b", BOTH, dict.fromkeys(new, 0))
    pair_of.tick()
    assert pair_of.rollout.status is Status.COMPLETED, pair_of.rollout.reason
    assert pair_of.rollout.members["b"].state in BAD
    for _ in range(3):
        pair_of.say("b", BOTH)
        pair_of.tick()
    assert pair_of.wants("b") == BOTH, "the assignment does not bring it there again"
    with pair_of.database.read() as connection:
        _check_still_its_own(connection, pair_of.rollout)
    pair_of.tell("rollback")
    assert (pair_of.wants("a"), pair_of.wants("b")) == (BOTH, BOTH)


def test_one_that_loses_a_deployment_leaves_and_goes_back_in_what_is_left(pair_of: Pair) -> None:
    pair_of.ask()
    pair_of.tick()
    pair_of.have("b", deployments='["digits"]')
    with pair_of.database.begin() as connection:
        groups.mark(connection, ["b"], ["digits", "faces"])
        orders.set_desired(connection, "b", "faces", None, because="gone", now=pair_of.now)
    pair_of.say("b", {"digits": NEW})
    pair_of.tick()
    assert (sorted(pair_of.rollout.members), pair_of.wants("b")) == (["a"], {"digits": OLD})


def test_other_hardware_goes_on_with_both_or_leaves(pair_of: Pair) -> None:
    q = {(name, v): f"{n}{v}" * 32 for n, name in ((8, "digits"), (9, "faces")) for v in (1, 2)}
    with pair_of.database.begin() as connection:
        one = connection.execute(select(schema.bundles).where(schema.bundles.c.sha256 == OLD)).one()
        rows = [
            {**one._asdict(), "name": name, "version": str(v), "sha256": sha, "profile": "q"}
            for (name, v), sha in q.items()
        ]
        connection.execute(insert(schema.bundles), rows)
    pair_of.ask()
    pair_of.tick()
    with pair_of.database.begin() as connection:
        connection.execute(update(schema.devices).where(schema.devices.c.id == "b").values(profile="q"))
        groups.mark(connection, ["b"], ["faces"])
        news.note(connection, ["b"])
    pair_of.tick()
    assert [(p.target, p.previous) for p in pair_of.rollout.members["b"].parts] == [
        (q["digits", 2], q["digits", 1]),
        (q["faces", 2], q["faces", 1]),
    ]
