"""The routes of an ordinary day: what they refuse, whom they reach, and what the log says of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from access_support import NOW, Inside
from fleet_support import make_bundle
from sqlalchemy import update

from edgekit import bundle as bundles
from fleet.rules.access import Role
from fleet.server import schema
from fleet.server.store import audit, orders, releases


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    made = Inside(tmp_path / "fleet")
    for version in ("1.0.0", "2.0.0"):
        bundle = bundles.read(make_bundle(tmp_path / version, version))
        with made.database.begin() as connection:
            releases.publish(connection, bundle, None, now=NOW, who=audit.FLEET)
    yield made
    made.close()


@pytest.fixture
def ada(inside: Inside) -> Any:
    client = inside.client(inside.token("ada", Role.OPERATOR))
    for name, site in (("roof-1", "roof"), ("lab-1", "lab")):
        made = client.post(
            "/api/v1/devices", json={"device": name, "deployments": ["digits"], "labels": {"site": site}}
        )
        assert made.status_code == 201
    return client


@pytest.fixture
def bo(inside: Inside, ada: Any) -> Any:  # after the devices are there
    return inside.client(inside.token("bo", Role.OPERATOR, "site=lab"))


def logged(inside: Inside, action: str) -> list[Any]:
    with inside.database.read() as connection:
        return [entry for entry in audit.entries(connection) if entry.action == action]


def test_labels_change_only_within_the_scope_and_never_out_of_it(inside: Inside, bo: Any) -> None:
    assert bo.post("/api/v1/devices/lab-1/labels", json={"labels": {"floor": "2"}}).json()["is_changed"]
    assert not bo.post("/api/v1/devices/lab-1/labels", json={"labels": {"floor": "2"}}).json()["is_changed"]
    assert bo.post("/api/v1/devices/roof-1/labels", json={"labels": {"site": "lab"}}).status_code == 404
    assert bo.post("/api/v1/devices/lab-1/labels", json={"labels": {"site": "roof"}}).status_code == 403
    assert bo.post("/api/v1/devices/lab-1/labels", json={"labels": {"a b": "c"}}).status_code == 400
    [entry] = logged(inside, "device.label")
    assert (entry.actor, entry.after) == ("token:bo", '{"site":"lab","floor":"2"}')


def test_a_replacement_has_what_the_device_had(ada: Any) -> None:
    file = ada.post("/api/v1/devices/roof-1/replace", json={}).json()
    assert (file["device"], file["labels"], file["deployments"]) == ("roof-1", {"site": "roof"}, ["digits"])
    assert ada.post("/api/v1/devices/nobody/replace", json={}).status_code == 404


def test_a_retry_of_a_device_that_is_ordered_nothing_says_so(ada: Any) -> None:
    refused = ada.post("/api/v1/devices/roof-1/retry")
    assert (refused.status_code, "nothing is ordered of roof-1" in refused.text) == (409, True)


def test_a_retry_repeats_the_newest_order_and_a_freeze_stops_it(inside: Inside, ada: Any) -> None:
    with inside.database.begin() as connection:
        digest = releases.by_profile(connection, "digits", "1.0.0")["x86-64-v3"].sha256
        connection.execute(update(schema.devices).values(enrolment=1))
        orders.set_desired(connection, "roof-1", "digits", digest, because="test", now=NOW)
        first = orders.issue(connection, inside.context.issuer, "roof-1", NOW)
    assert ada.post("/api/v1/devices/roof-1/retry").json() == {"devices": ["roof-1"]}
    [entry] = logged(inside, "device.retry")
    assert (str(first) in entry.before, str(first + 1) in entry.after) == (True, True)
    ada.post("/api/v1/freeze", json={"is_frozen": True})
    assert ada.post("/api/v1/devices/roof-1/retry").status_code == 409
    told = ada.post("/api/v1/assignments", json={"release": "digits@1.0.0", "to": "site=roof"})
    assert (told.status_code, "frozen" in told.text) == (409, True)


def test_who_cannot_follow_an_assignment_is_named_with_the_reason(ada: Any) -> None:
    plan = ada.post(
        "/api/v1/assignments", json={"release": "digits@1.0.0", "to": "site=roof", "dry_run": True}
    )
    assert plan.json()["others"] == [{"device": "roof-1", "reason": "has not enrolled yet"}]
    assert ada.get("/api/v1/assignments").json() == []
    assert ada.post("/api/v1/assignments", json={"release": "digits@9", "to": "all"}).status_code == 404
    wrong = ada.post("/api/v1/assignments", json={"release": "digits@1.0.0", "to": "sight=roof"})
    assert (wrong.status_code, "no device has the label" in wrong.text) == (409, True)


def test_an_assignment_reaches_no_further_than_who_makes_it(inside: Inside, bo: Any) -> None:
    made = bo.post("/api/v1/assignments", json={"release": "digits@1.0.0", "to": "all", "probation": "5s"})
    assert made.json()["id"] == "a1"
    [view] = bo.get("/api/v1/assignments").json()
    assert (view["to"], view["because"]) == ("(all) and (site=lab)", "assigned")
    assert bo.post("/api/v1/assignments/a1/remove", json={}).status_code == 403
    admin = inside.client(inside.token("root", Role.ADMIN))
    assert admin.post("/api/v1/assignments/a1/remove", json={"reason": "no"}).status_code == 200
    assert [entry.subject for entry in logged(inside, "assignment.remove")] == ["a1"]


def test_a_deleted_device_is_nowhere_and_deleting_it_twice_says_so(inside: Inside, ada: Any, bo: Any) -> None:
    assert bo.post("/api/v1/devices/roof-1/delete", json={}).status_code == 404
    with inside.database.begin() as connection:
        connection.execute(update(schema.devices).values(enrolment=3))
    assert ada.post("/api/v1/devices/roof-1/delete", json={"reason": "scrap"}).status_code == 200
    assert [one["device"] for one in ada.get("/api/v1/devices").json()] == ["lab-1"]
    assert ada.post("/api/v1/devices/roof-1/delete", json={}).status_code == 404
    assert ada.get("/api/v1/devices/roof-1/explain").status_code == 404


def test_only_a_failed_device_of_a_rollout_under_way_is_tried_again(ada: Any) -> None:
    assert ada.post("/api/v1/rollouts/r1/retry", json={}).status_code == 404
    assert ada.post("/api/v1/rollouts/x/retry", json={}).status_code == 404
    assert ada.post("/api/v1/rollouts/r1/retry", json={"devices": ["a b"]}).status_code == 400
