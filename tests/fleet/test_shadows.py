"""Shadows through the tables: who compares, what orders say, what is added up, and how they end."""

import base64
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
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select
from store_support import NEW, NONCE, NOW, OLD, WINDOW_S, enrolled, said, topic

from edgekit import intervals, sketch
from edgekit.errors import ConflictError, NotFoundError, NotPossibleError, UsageError
from edgekit.trust.dsse import Envelope
from edgekit.wire.messages import Boot, DeploymentWindow, Moments, Order, Report, ShadowWindow, decode, encode
from fleet import api
from fleet.client import shadow_cli
from fleet.client.config import Access
from fleet.client.rest import Client
from fleet.publish import make_key
from fleet.rules import shadowing as rules
from fleet.rules.access import Role
from fleet.rules.shadowing import Sums
from fleet.server import ingest, schema, shadowing
from fleet.server.api import identity
from fleet.server.api import releases as artifacts
from fleet.server.clock import Clock, same
from fleet.server.controller import Controller
from fleet.server.database import Database
from fleet.server.inbox import Message
from fleet.server.link import Link
from fleet.server.store import audit, blocked, devices, orders, shadows
from fleet.server.store.orders import Issuer

NAMES = [f"d{n:02}" for n in range(8)]
WANTED = api.NewShadow(release="digits@2", to="all")


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer("fleet-1", make_key(tmp_path / "order.key"))


@pytest.fixture
def controller(database: Database, issuer: Issuer) -> Iterator[Controller]:
    link = cast("Link", SimpleNamespace(is_connected=False, connected_since=NOW - 100.0))
    made = Controller(database, issuer, link, Clock(lambda: NOW, lambda: NOW))
    assert made.follow()
    yield made
    made.stop()


def begun(database: Database, issuer: Issuer, wanted: api.NewShadow = WANTED) -> int:
    """Devices that run the old release and compare the new one."""
    enrolled(database, NAMES)
    ingest.take_in(database, [said(name, 1) for name in NAMES], same(NOW))
    with database.begin() as connection:
        moves = dict.fromkeys(NAMES, (OLD,))
        orders.move(connection, issuer, ("digits",), moves, because="a test", now=NOW)
        return shadowing.start(connection, wanted, now=NOW, who=audit.FLEET)


def newest(database: Database, device: str = NAMES[0]) -> Order:
    with database.read() as connection:
        query = select(schema.outbox.c.payload).where(schema.outbox.c.device == device)
        envelope = msgspec.json.decode(connection.execute(query).scalar_one(), type=Envelope)
    return decode(base64.b64decode(envelope.payload), Order)


def status(database: Database, number: int = 1) -> tuple[str, str]:
    with database.read() as connection:
        found = shadows.get(connection, number)
        return found.status, found.reason


def window(device: str, seq: int, share: float, digest: str = NEW, compared: int = 10) -> Message:
    own = ShadowWindow(
        digest, compared, 90, 1, {"logits": Moments(compared, compared * share)}, sketch.of([2.0] * compared),
        sketch.of([1.0] * compared),
    )  # fmt: skip
    served = DeploymentWindow("digits", OLD, 100, shadow=own)
    report = Report(
        device, Boot(1, 2, NONCE), seq, datetime.fromtimestamp(NOW, UTC), WINDOW_S, True, (served,)
    )
    return Message(topic(device), encode(report))


def test_orders_name_the_shadow_and_leave_what_serves_alone(
    database: Database, issuer: Issuer, controller: Controller
) -> None:
    begun(database, issuer, api.NewShadow(release="digits@2", to="all", share="20%"))
    controller.tick(same(NOW + 1))
    order = newest(database)
    assert order.deployments["digits"].sha256 == OLD
    assert (order.shadows["digits"].bundle.sha256, order.shadows["digits"].share) == (NEW, 0.2)
    assert order.shadows["digits"].bundle.target == f"digits/2/p/{NEW}.edgekit"
    counter = order.counter
    controller.tick(same(NOW + 2))
    assert newest(database).counter == counter, "said once"


def test_a_stopped_shadow_is_in_no_order_any_more(
    database: Database, issuer: Issuer, controller: Controller
) -> None:
    begun(database, issuer)
    controller.tick(same(NOW + 1))
    with database.begin() as connection:
        shadowing.stop(connection, 1, now=NOW + 2, who=audit.FLEET)
    controller.tick(same(NOW + 3))
    assert newest(database).shadows == {}
    assert newest(database).deployments["digits"].sha256 == OLD
    with database.begin() as connection, pytest.raises(ConflictError):
        shadowing.stop(connection, 1, now=NOW + 4, who=audit.FLEET)


def test_where_its_bundle_becomes_the_served_one_it_ends(
    database: Database, issuer: Issuer, controller: Controller
) -> None:
    begun(database, issuer)
    controller.tick(same(NOW + 1))
    with database.begin() as connection:
        orders.move(connection, issuer, ("digits",), {NAMES[0]: (NEW,)}, because="a rollout", now=NOW + 2)
    assert newest(database).shadows == {}, "the device runs it"
    assert newest(database, NAMES[1]).shadows, "the others do not"
    assert status(database)[0] == shadows.RUNNING
    with database.begin() as connection:
        moves = dict.fromkeys(NAMES[1:], (NEW,))
        orders.move(connection, issuer, ("digits",), moves, because="a rollout", now=NOW + 3)
    controller.tick(same(NOW + 4))
    assert status(database) == (shadows.SERVED, "all its devices are to run it")


def test_a_blocked_release_is_compared_nowhere(
    database: Database, issuer: Issuer, controller: Controller
) -> None:
    begun(database, issuer)
    controller.tick(same(NOW + 1))
    with database.begin() as connection:
        blocked.add(connection, "digits@2", "bad", now=NOW + 2, who=audit.FLEET)
    controller.tick(same(NOW + 3))
    assert status(database) == (shadows.STOPPED, "its release is blocked")
    assert newest(database).shadows == {}


def test_a_device_has_one_shadow_of_a_deployment(database: Database, issuer: Issuer) -> None:
    begun(database, issuer)
    with database.begin() as connection, pytest.raises(ConflictError, match="shadow stop h1"):
        shadowing.start(connection, WANTED, now=NOW, who=audit.FLEET)


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        (api.NewShadow("digits@1", "all"), NotPossibleError),
        (api.NewShadow("digits@9", "all"), NotFoundError),
        (api.NewShadow("digits@2", "device=nobody"), NotPossibleError),
        (api.NewShadow("digits@2", "all", "60%"), UsageError),
        (api.NewShadow("digits@2", "all", "0%"), UsageError),
        (api.NewShadow("digits@2", "colour=red"), UsageError),
    ],
    ids=["it serves already", "no such release", "nobody", "too much", "nothing", "no such label"],
)
def test_what_cannot_be_is_refused_with_why(
    wanted: api.NewShadow, error: type[Exception], database: Database, issuer: Issuer
) -> None:
    begun(database, issuer)
    with database.begin() as connection:
        shadowing.stop(connection, 1, now=NOW, who=audit.FLEET)
        with pytest.raises(error):
            shadowing.start(connection, wanted, now=NOW, who=audit.FLEET)


def test_what_devices_report_is_added_up_once(database: Database, issuer: Issuer) -> None:
    begun(database, issuer)
    batch = [window(name, 1, 0.9 + 0.01 * at) for at, name in enumerate(NAMES)]
    strangers = [window(NAMES[0], 2, 0.0, digest=OLD)]
    ingest.take_in(database, [*batch, *batch, *strangers], same(NOW + 60))
    ingest.take_in(database, [window(NAMES[0], 3, 0.9)], same(NOW + 120))
    with database.read() as connection:
        rows = shadows.rows_of(connection, 1)
    assert [row.compared for row in rows] == [20] + [10] * 7
    assert (rows[0].dropped, rows[0].failed) == (180, 2)
    sums = [shadows.sums_of(row) for row in rows]
    (found,) = rules.agreements(sums)
    assert found.mean == pytest.approx(0.935, abs=0.001)
    assert found.low < found.mean < found.high
    assert (found.devices, found.inputs, found.is_of_devices) == (8, 90, True)
    assert rules.latency_ratio(sums) == pytest.approx(2.0, rel=0.03)


def test_of_few_devices_the_interval_is_of_the_inputs() -> None:
    (found,) = rules.agreements([Sums({"y": Moments(100, 90.0)})])
    assert (found.low, found.high) == intervals.of_share(90, 100)
    assert not found.is_of_devices


@given(found=st.integers(0, 500), more=st.integers(0, 500))
def test_an_interval_holds_what_was_seen(found: int, more: int) -> None:
    of = found + more
    low, high = intervals.of_share(found, of)
    assert 0 <= low <= (found / of if of else 0.5) <= high <= 1


def test_a_deleted_device_takes_its_part_along(database: Database, issuer: Issuer) -> None:
    begun(database, issuer)
    with database.begin() as connection:
        shadows.forget(connection, NAMES[0])
        assert [row.device for row in shadows.rows_of(connection, 1)] == NAMES[1:]


def test_the_commands_start_show_and_stop_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the API itself: one runs, two devices report, it is looked at and stopped."""
    service = Inside(tmp_path)
    token = service.token("ops", Role.OPERATOR)
    begun(service.database, service.context.issuer)
    with service.database.begin() as connection:
        shadowing.stop(connection, 1, now=NOW, who=audit.FLEET)

    @contextmanager
    def connected(_place: str | None) -> Iterator[Client]:
        client = Client(Access("http://127.0.0.1:8080", token))
        client._transport._http = service.client(token, base_url="http://127.0.0.1:8080/api/v1")
        yield client

    monkeypatch.setattr(shadow_cli, "connected", connected)

    def run(*words: str) -> str:
        done = CliRunner().invoke(shadow_cli.shadow, words)
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())

    def may_fetch() -> bool:
        """Whether a device gets the shadow's file, which is not what it is to run."""
        with service.database.begin() as connection:
            row = devices.get(connection, NAMES[0])
            monkeypatch.setattr(identity, "device_of", lambda *_: row)
            try:
                artifacts._check_allowed(connection, cast("Request", None), service.context, NEW)
            except NotFoundError:
                return False
        return True

    assert not may_fetch()
    told = run("start", "digits@2", "--to", "all", "--share", "5%")
    assert may_fetch()
    assert "h2: digits@2 beside digits on 8 devices (all), at most 5% of a processor: running" in told
    assert "nothing is compared yet" in told
    batch = [window(name, 1, 0.9 + 0.02 * at) for at, name in enumerate(NAMES[:4])]
    ingest.take_in(service.database, batch, same(NOW + 60))
    told = run("status", "h2")
    assert "logits 93.0%" in told
    assert "d03" in told
    assert "x the served model's time" in told
    assert "40 inputs compared" in run("status")
    assert "stopped by" in run("stop", "h2")
    assert not may_fetch()
    refused = CliRunner().invoke(shadow_cli.shadow, ["stop", "h2"])
    assert isinstance(refused.exception, ConflictError)
    viewer = service.client(service.token("viewer", Role.VIEWER))
    assert viewer.post("/api/v1/shadows", content=msgspec.json.encode(WANTED)).status_code == 403
    assert viewer.get("/api/v1/shadows").status_code == 200
    service.close()
