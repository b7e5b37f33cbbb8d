"""Experiments through the tables: who takes part, their orders, what is added up, and how they end."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest
from access_support import Inside
from click.testing import CliRunner
from sqlalchemy import select
from store_support import NEW, NONCE, NOW, OLD, WINDOW_S, enrolled, rollout_of, said, topic

from edgekit.errors import ConflictError, UsageError
from edgekit.wire.messages import Boot, DeploymentWindow, Moments, Report, encode
from fleet import api
from fleet.client import experiment_cli
from fleet.client.config import Access
from fleet.client.rest import Client
from fleet.publish import make_key
from fleet.rules import gates
from fleet.rules.access import Role
from fleet.rules.experiment import Outcome, Verdict
from fleet.rules.rollout import Status
from fleet.server import changes, ingest, planning, schema, trials
from fleet.server.clock import Clock, same
from fleet.server.controller import Controller
from fleet.server.database import Database
from fleet.server.inbox import Message
from fleet.server.link import Link
from fleet.server.store import audit, experiments, orders, rollouts, settings
from fleet.server.store.orders import Issuer

NAMES = [f"d{n:02}" for n in range(48)]
WANTED = api.NewExperiment(a="digits@1", b="digits@2", to="all", goal="metric:sold")


@pytest.fixture
def controller(database: Database, tmp_path: Path) -> Iterator[Controller]:
    link = cast("Link", SimpleNamespace(is_connected=False, connected_since=NOW - 100.0))
    issuer = Issuer("fleet-1", make_key(tmp_path / "order.key"))
    made = Controller(database, issuer, link, Clock(lambda: NOW, lambda: NOW))
    assert made.follow()
    yield made
    made.stop()


def window(device: str, seq: int, ended: float, digest: str, mean: float) -> Message:
    own = DeploymentWindow("digits", digest, 100, 1, metrics={"metric:sold": Moments(20, 20 * mean)})
    started = datetime.fromtimestamp(ended - WINDOW_S, UTC)
    boot = Boot(1, 2, NONCE)
    return Message(topic(device), encode(Report(device, boot, seq, started, WINDOW_S, True, (own,))))


def begun(database: Database, names: list[str] = NAMES) -> None:
    enrolled(database, names)
    ingest.take_in(database, [said(name, 1) for name in names], same(NOW))
    with database.begin() as connection:
        trials.start(connection, WANTED, now=same(NOW), who=audit.FLEET)


def arms(database: Database) -> dict[str, str]:
    with database.read() as connection:
        return {row.device: row.arm for row in experiments.rows_of(connection, 1)}


def runs(database: Database) -> dict[str, str]:
    with database.read() as connection:
        return {device: row.sha256 for (device, _), row in orders.desired_of(connection).items()}


def verdict(database: Database, now: float) -> Verdict:
    with database.read() as connection:
        return trials.verdict(connection, experiments.get(connection, 1), same(now))


def test_each_device_is_ordered_its_arm_and_keeps_it(database: Database, controller: Controller) -> None:
    begun(database)
    controller.tick(same(NOW + 1))
    expected = {device: OLD if arm == "A" else NEW for device, arm in arms(database).items()}
    assert runs(database) == expected
    assert set(expected.values()) == {OLD, NEW}
    controller.tick(same(NOW + 2))
    with database.read() as connection:
        assert len(list(connection.execute(select(schema.orders)))) == len(NAMES), "none twice"


def test_what_devices_report_on_their_arm_decides(database: Database, controller: Controller) -> None:
    begun(database)
    controller.tick(same(NOW + 1))
    mine = arms(database)
    batch = []
    for at, (name, arm) in enumerate(mine.items()):
        mean = 0.5 + 0.01 * (at % 5) + (0.2 if arm == "B" else 0.0)
        batch.append(window(name, 1, NOW + 200, OLD if arm == "A" else NEW, mean))
        # Of the other arm's release, and of before it began: neither counts.
        batch.append(window(name, 2, NOW + 300, NEW if arm == "A" else OLD, 9.0))
        batch.append(window(name, 3, NOW + 30, OLD if arm == "A" else NEW, 9.0))
    ingest.take_in(database, [*batch, *batch], same(NOW + 300))
    found = verdict(database, NOW + 400)
    assert found.outcome is Outcome.BETTER_B
    assert found.difference == pytest.approx(0.2, abs=0.02)
    assert (found.a.reporting, found.b.reporting) == (found.a.assigned, found.b.assigned)


def test_its_devices_are_in_no_rollout_and_no_other_experiment(
    database: Database, controller: Controller
) -> None:
    begun(database)
    wanted = api.NewRollout(release="digits@2", to="all", gates=("error_rate < 1%",), holdback="0")
    with database.begin() as connection, pytest.raises(ConflictError, match="experiment e1 has"):
        planning.plan(connection, wanted, same(NOW + 1))
    with database.begin() as connection, pytest.raises(UsageError, match="0 devices could take part"):
        trials.start(connection, WANTED, now=same(NOW + 1), who=audit.FLEET)


def test_a_device_that_matches_later_joins(database: Database, controller: Controller) -> None:
    begun(database, NAMES[:-1])
    controller.tick(same(NOW + 1))
    row = {
        "id": NAMES[-1], "labels": "{}", "deployments": '["digits"]', "created_at": NOW, "enrolment": 1, "profile": "p",
        "is_confirmed": True, "credential_hash": "0" * 64, "is_online": True,
    }  # fmt: skip
    with database.begin() as connection:
        connection.execute(schema.devices.insert().values(row))
    ingest.take_in(database, [said(NAMES[-1], 1)], same(NOW + 2))
    controller.tick(same(NOW + 3))
    assert NAMES[-1] in arms(database)
    assert NAMES[-1] in runs(database)


def test_stopped_every_device_goes_back_to_what_it_ran(database: Database, controller: Controller) -> None:
    begun(database)
    controller.tick(same(NOW + 1))
    with database.begin() as connection:
        stopped = trials.stop(connection, 1, now=same(NOW + 2), who=audit.FLEET)
        assert stopped.status == "stopped"
    controller.tick(same(NOW + 3))
    assert runs(database) == {}, "they ran no ordered model before"
    with database.begin() as connection, pytest.raises(ConflictError, match="stopped"):
        trials.stop(connection, 1, now=same(NOW + 4), who=audit.FLEET)


def test_adopted_all_follow_the_better_arm_and_so_do_those_who_come(
    database: Database, controller: Controller
) -> None:
    begun(database)
    controller.tick(same(NOW + 1))
    with database.begin() as connection:
        trials.adopt(connection, 1, "B", now=same(NOW + 2), who=audit.FLEET)
    controller.tick(same(NOW + 3))
    assert set(runs(database).values()) == {NEW}
    with database.read() as connection:
        assigned = connection.execute(select(schema.assignments)).one()
        entries = [entry.action for entry in audit.entries(connection)]
    assert (assigned.name, assigned.version, assigned.selector) == ("digits", "2", "all")
    assert entries == ["experiment.start", "experiment.adopt"]


def test_a_frozen_fleet_gets_no_orders(database: Database, controller: Controller) -> None:
    begun(database)
    with database.begin() as connection:
        settings.set_frozen(connection, True)
    controller.tick(same(NOW + 1))
    assert runs(database) == {}


def test_too_few_devices_and_two_equal_releases_are_refused(database: Database) -> None:
    enrolled(database, NAMES[:5])
    ingest.take_in(database, [said(name, 1) for name in NAMES[:5]], same(NOW))
    with (
        database.begin() as connection,
        pytest.raises(UsageError, match="5 devices could take part, 20 are needed"),
    ):
        trials.start(connection, WANTED, now=same(NOW), who=audit.FLEET)
    equal = api.NewExperiment(a="digits@1", b="digits@1", to="all", goal="metric:sold")
    with database.begin() as connection, pytest.raises(UsageError, match="are the same"):
        trials.start(connection, equal, now=same(NOW), who=audit.FLEET)


def test_the_commands_speak_to_the_service_and_say_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Inside(tmp_path)
    enrolled(service.database, NAMES)
    ingest.take_in(service.database, [said(name, 1) for name in NAMES], same(NOW))
    speaking = Client(Access("http://127.0.0.1:8080", "unused"))
    speaking._transport._http = service.client(
        service.token("ci", Role.OPERATOR), base_url="http://127.0.0.1:8080/api/v1"
    )

    @contextmanager
    def connected(_place: str | None) -> Iterator[Client]:
        yield speaking

    monkeypatch.setattr(experiment_cli, "connected", connected)

    def run(*words: str) -> str:
        done = CliRunner().invoke(experiment_cli.experiment, words)
        assert done.exit_code == 0, done.output
        return done.output

    assert "no experiments yet" in run("list")
    said_back = run(
        "start", "digits@1", "digits@2", "--to", "all", "--goal", "metric:sold", "--split", "70/30"
    )
    assert "e1 to all, goal metric:sold: running" in said_back
    assert "too early: 0 and 0 devices have reported metric:sold" in said_back
    assert "70%" in said_back
    assert "digits@1 against digits@2  running" in run("list")
    assert "running" in run("status", "e1")
    assert "adopted (B (digits@2) adopted by token:ci" in run("adopt", "e1", "B")
    refused = CliRunner().invoke(experiment_cli.experiment, ["stop", "e1"])
    assert isinstance(refused.exception, ConflictError)
    service.close()


def test_a_gate_on_what_the_application_reports_is_judged_from_the_tables(
    database: Database, controller: Controller
) -> None:
    """From the wire to the verdict: sums of ingest, evidence, gate."""
    enrolled(database, NAMES)
    names = NAMES[:30]
    gate = gates.parse("metric:sold >= 0.9 * control")
    rollout = rollout_of(NAMES, "30,100%")
    spec = msgspec.structs.replace(rollout.spec, gates=(gate,))
    issuer = Issuer("fleet-1", controller._issuer.key)
    # What devices sold before: their past.
    past = [window(name, 1, NOW - 5, OLD, 0.5 + 0.01 * at) for at, name in enumerate(NAMES)]
    ingest.take_in(database, past, same(NOW - 5))
    with database.begin() as connection:
        started = changes.begin(
            connection, issuer, msgspec.structs.replace(rollout, spec=spec), now=same(NOW), who=audit.FLEET
        )
    moved = {m.device for m in started.members.values() if m.order_counter}
    assert len(moved) == len(names)
    counters = {m.device: m.order_counter for m in started.members.values()}
    ingest.take_in(
        database, [said(n, 2, counter=counters[n], digest=NEW) for n in sorted(moved)], same(NOW + 1)
    )
    for minute in range(1, 13):
        batch = [
            window(n, 10 + minute, NOW + 61 + 60 * minute, NEW if n in moved else OLD,
                   (0.3 if n in moved else 0.5) + 0.01 * at + 0.001 * (minute % 3))
            for at, n in enumerate(NAMES)
        ]  # fmt: skip
        ingest.take_in(database, batch, same(NOW + 61 + 60 * minute))
    controller.tick(same(NOW + 800))
    with database.read() as connection:
        found = rollouts.get(connection, 1)
    assert found.status is Status.ROLLING_BACK
    assert found.reason.startswith("metric:sold >= 0.9 * control: 0.2 lower than control's change")
