"""ETags, preconditions, keys against doing a thing twice, and pages of rollouts and members."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from access_support import Inside
from fleet_support import make_bundle
from sqlalchemy import select, update
from store_support import NOW as STORED
from store_support import enrolled, rollout_of

from edgekit import bundle as bundles
from fleet.rules.access import Role
from fleet.server import schema
from fleet.server.schema_api import repeats
from fleet.server.store import audit, releases, rollouts
from fleet.server.store.repeats import LIFE_S

NEW = {"device": "lab-1", "deployments": ["digits"], "labels": {"site": "lab"}}


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    made = Inside(tmp_path / "fleet")
    yield made
    made.close()


@pytest.fixture
def ada(inside: Inside) -> Any:
    return inside.client(inside.token("ada", Role.ADMIN))


def keyed(key: str, **more: str) -> dict[str, str]:
    return {"Idempotency-Key": key, **more}


# -- what is known already -------------------------------------------------------------------------------------------


def test_what_the_reader_has_already_is_not_sent_again(ada: Any) -> None:
    ada.post("/api/v1/devices", json=NEW)
    first = ada.get("/api/v1/devices")
    again = ada.get("/api/v1/devices", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    ada.post("/api/v1/devices/lab-1/labels", json={"labels": {"floor": "2"}})
    changed = ada.get("/api/v1/devices", headers={"If-None-Match": first.headers["etag"]})
    assert (changed.status_code, changed.headers["etag"] == first.headers["etag"]) == (200, False)


def test_answers_are_kept_by_nobody_in_between(ada: Any) -> None:
    assert ada.get("/api/v1/devices").headers["cache-control"] == "private, no-cache"
    made = ada.post("/api/v1/tokens", json={"name": "ci", "role": "viewer"})
    assert made.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("given", "status"), [("*", 304), ('W/"x", "y"', 200), ("nonsense", 400), ("", 400), ('"a" "b"', 400)]
)
def test_other_forms_of_if_none_match(ada: Any, given: str, status: int) -> None:
    assert ada.get("/api/v1/whoami", headers={"If-None-Match": given}).status_code == status


# -- two people at once ----------------------------------------------------------------------------------------------


def test_a_decision_about_what_changed_meanwhile_is_refused(inside: Inside, ada: Any) -> None:
    ada.post("/api/v1/devices", json=NEW)
    [seen] = ada.get("/api/v1/devices").json()
    bo = inside.client(inside.token("bo", Role.OPERATOR))
    assert bo.post("/api/v1/devices/lab-1/labels", json={"labels": {"site": "roof"}}).status_code == 200
    mine = {"json": {"labels": {"site": "attic"}}, "headers": {"If-Match": f'"{seen["tag"]}"'}}
    refused = ada.post("/api/v1/devices/lab-1/labels", **mine)
    assert (refused.status_code, refused.json()["error"]["code"]) == (412, "changed-meanwhile")
    [now] = ada.get("/api/v1/devices").json()
    assert now["labels"]["site"] == "roof"
    mine["headers"] = {"If-Match": f'"{now["tag"]}"'}
    assert ada.post("/api/v1/devices/lab-1/labels", **mine).status_code == 200


def test_what_devices_do_meanwhile_is_no_reason_to_refuse_a_verb_and_what_another_operator_did_is(
    inside: Inside, ada: Any
) -> None:
    enrolled(inside.database, ["d1", "d2"])
    with inside.database.begin() as connection:
        rollouts.add(connection, rollout_of(["d1", "d2"]), STORED)
    seen = ada.get("/api/v1/rollouts/r1").json()
    with inside.database.begin() as connection:
        connection.execute(update(schema.members).values(state="fetching"))
    mine = {"If-Match": f'"{seen["tag"]}"'}
    assert ada.get("/api/v1/rollouts/r1").json()["counts"] != seen["counts"]
    assert ada.post("/api/v1/rollouts/r1/pause", headers=mine).status_code == 200
    assert ada.post("/api/v1/rollouts/r1/abort", headers=mine).status_code == 412
    assert ada.post("/api/v1/rollouts/r1/abort", headers={"If-Match": "*"}).status_code == 200


def test_a_user_changed_by_two_admins_at_once(ada: Any) -> None:
    ada.post("/api/v1/users", json={"name": "bo", "password": "four unrelated words", "role": "viewer"})
    [bo] = ada.get("/api/v1/users").json()
    mine = {"If-Match": f'"{bo["tag"]}"'}
    assert ada.post("/api/v1/users/bo", json={"role": "operator"}, headers=mine).status_code == 200
    assert ada.post("/api/v1/users/bo", json={"role": "admin"}, headers=mine).status_code == 412


# -- a request that is sent twice ------------------------------------------------------------------------------------


def test_a_request_with_a_key_is_done_once_and_answered_alike(ada: Any) -> None:
    body = {"name": "ci", "role": "viewer"}
    first = ada.post("/api/v1/tokens", json=body, headers=keyed("k1"))
    again = ada.post("/api/v1/tokens", json=body, headers=keyed('"k1"'))
    assert (first.status_code, again.status_code) == (201, 201)
    assert (first.json(), "idempotency-replayed" in first.headers) == (again.json(), False)
    assert (again.headers["idempotency-replayed"], again.headers["cache-control"]) == ("true", "no-store")
    assert [token["name"] for token in ada.get("/api/v1/tokens").json()] == ["ada", "ci"]
    assert ada.post("/api/v1/tokens", json=body, headers=keyed("k2")).status_code == 409


def test_a_key_of_another_request_is_refused_and_another_caller_has_keys_of_their_own(
    inside: Inside, ada: Any
) -> None:
    assert ada.post("/api/v1/devices", json=NEW, headers=keyed("k")).status_code == 201
    other = {**NEW, "device": "lab-2"}
    refused = ada.post("/api/v1/devices", json=other, headers=keyed("k"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "key-reused")
    bo = inside.client(inside.token("bo", Role.OPERATOR))
    assert bo.post("/api/v1/devices", json=other, headers=keyed("k")).status_code == 201


def test_what_was_refused_may_be_tried_again_with_the_same_key(ada: Any) -> None:
    wrong = ada.post("/api/v1/devices/lab-1/labels", json={"labels": {"a": "b"}}, headers=keyed("k"))
    ada.post("/api/v1/devices", json=NEW)
    right = ada.post("/api/v1/devices/lab-1/labels", json={"labels": {"a": "b"}}, headers=keyed("k"))
    assert (wrong.status_code, right.status_code) == (404, 200)


def test_a_secret_that_is_kept_for_a_repetition_cannot_be_read_by_who_has_the_database(
    inside: Inside, ada: Any
) -> None:
    made = ada.post("/api/v1/tokens", json={"name": "ci", "role": "viewer"}, headers=keyed("k")).json()
    with inside.database.read() as connection:
        [row] = connection.execute(select(repeats)).all()
    assert row.sealed is not None
    files = b"".join(path.read_bytes() for path in inside.path.glob("fleet.db*"))
    assert (made["secret"].encode() in files, b"k1" in row.name.encode()) == (False, False)


def test_who_was_locked_out_gets_no_answer_again(inside: Inside, ada: Any) -> None:
    bo = inside.client(inside.token("bo", Role.ADMIN))
    assert (
        bo.post("/api/v1/tokens", json={"name": "ci", "role": "admin"}, headers=keyed("k")).status_code == 201
    )
    ada.post("/api/v1/tokens/bo/revoke")
    assert (
        bo.post("/api/v1/tokens", json={"name": "ci", "role": "admin"}, headers=keyed("k")).status_code == 401
    )


def test_a_request_whose_end_nobody_knows_is_not_done_again_until_its_key_is_old(
    inside: Inside, ada: Any
) -> None:
    ada.post("/api/v1/devices", json=NEW, headers=keyed("k"))
    with inside.database.begin() as connection:
        # As if the service had died between the change and its answer.
        connection.execute(update(repeats).values(sealed=None))
    refused = ada.post("/api/v1/devices", json=NEW, headers=keyed("k"))
    assert (refused.status_code, "look whether it was done" in refused.text) == (409, True)
    inside.clock.now += LIFE_S + 1
    assert ada.post("/api/v1/devices", json=NEW, headers=keyed("k")).status_code == 201


def test_a_failure_of_the_service_leaves_the_key_free(inside: Inside, ada: Any, monkeypatch: Any) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(audit, "append", full)
        with pytest.raises(sqlite3.OperationalError):
            ada.post("/api/v1/devices", json=NEW, headers=keyed("k"))
    assert ada.post("/api/v1/devices", json=NEW, headers=keyed("k")).status_code == 201


@pytest.mark.parametrize("key", ["", "x" * 201, "a b", '"open', "ü"])
def test_a_key_that_is_none_is_refused(ada: Any, key: str) -> None:
    headers = [(b"Idempotency-Key", key.encode("latin-1"))]
    assert ada.post("/api/v1/devices", json=NEW, headers=headers).status_code == 400


# -- pages -----------------------------------------------------------------------------------------------------------


def pages(client: Any, path: str) -> list[list[Any]]:
    found = []
    while path:
        response = client.get(path)
        found.append(response.json())
        path = response.links.get("next", {}).get("url", "")
    return found


def test_rollouts_come_newest_first_in_pages_and_without_their_members(inside: Inside, ada: Any) -> None:
    enrolled(inside.database, ["d1", "d2"])
    with inside.database.begin() as connection:
        for number in (1, 2, 3):
            made = msgspec.structs.replace(rollout_of(["d1", "d2"]), id=number)
            rollouts.add(connection, made, STORED)
    found = pages(ada, "/api/v1/rollouts?limit=2")
    assert [[one["id"] for one in page] for page in found] == [["r3", "r2"], ["r1"]]
    assert all(one["members"] == [] and sum(one["counts"].values()) == 2 for page in found for one in page)
    assert ada.get("/api/v1/rollouts?after=x").status_code == 404


def test_members_come_by_name_in_pages_and_by_state(inside: Inside, ada: Any) -> None:
    names = [f"d{n}" for n in range(5)]
    enrolled(inside.database, names)
    with inside.database.begin() as connection:
        rollouts.add(connection, rollout_of(names), STORED)
        connection.execute(
            update(schema.members).where(schema.members.c.device.in_(["d1", "d3"])).values(state="failed")
        )
    found = pages(ada, "/api/v1/rollouts/r1/members?limit=2")
    assert [[one["device"] for one in page] for page in found] == [["d0", "d1"], ["d2", "d3"], ["d4"]]
    failed = pages(ada, "/api/v1/rollouts/r1/members?limit=1&state=failed")
    assert [one["device"] for page in failed for one in page] == ["d1", "d3"]
    assert ada.get("/api/v1/rollouts/r1/members?state=odd").status_code == 400
    shown = ada.get("/api/v1/rollouts/r1").json()
    assert (len(shown["members"]), shown["counts"]) == (5, {"pending": 3, "failed": 2})


def test_a_rollout_outside_the_scope_is_not_there_nor_are_its_members(inside: Inside, ada: Any) -> None:
    enrolled(inside.database, ["d1"])
    with inside.database.begin() as connection:
        rollouts.add(connection, rollout_of(["d1"]), STORED)
    lab = inside.client(inside.token("lab", Role.VIEWER, "site=lab"))
    assert lab.get("/api/v1/rollouts").json() == []
    assert lab.get("/api/v1/rollouts/r1/members").status_code == 404


def test_short_lists_come_in_pages_too(inside: Inside, ada: Any, tmp_path: Path) -> None:
    for version in ("1.0.0", "2.0.0", "3.0.0"):
        with inside.database.begin() as connection:
            bundle = bundles.read(make_bundle(tmp_path / version, version))
            releases.publish(connection, bundle, None, now=STORED, who=audit.FLEET)
    found = pages(ada, "/api/v1/releases?limit=2")
    assert sorted(one["version"] for page in found for one in page) == ["1.0.0", "2.0.0", "3.0.0"]
    assert [len(page) for page in found] == [2, 1]
    assert ada.get("/api/v1/releases?after=gone").status_code == 404


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_a_number_is_what_it_says_however_it_is_written(ada: Any) -> None:
    assert ada.post("/api/v1/batches", json={"count": 2.0, "deployments": ["digits"]}).status_code == 201
    assert ada.post("/api/v1/batches", json={"count": 2.5, "deployments": ["digits"]}).status_code == 400
    assert ada.post("/api/v1/batches", json={"count": "2", "deployments": ["digits"]}).status_code == 400


@pytest.mark.parametrize(
    "path", ["rollouts/r²", "experiments/e²", "batches/b²/revoke", "assignments/a²/remove"]
)
def test_digits_of_other_scripts_name_nothing(ada: Any, path: str) -> None:
    is_change = path.endswith(("revoke", "remove"))
    answer = ada.post(f"/api/v1/{path}", json={}) if is_change else ada.get(f"/api/v1/{path}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not-found")


@pytest.mark.parametrize(
    "body",
    [
        b'{"device":' * 100_000,
        b"[" * 100_000,
        b"6U\xff",
        b"[-x\xfe",
        b'{"is_frozen": true, "reason": "\xff"}',
        b"5.0 ",
        b"",
    ],
)
def test_a_body_that_is_no_json_or_has_no_end_is_refused(ada: Any, body: bytes) -> None:
    assert ada.post("/api/v1/freeze", content=body).status_code == 400


@pytest.mark.parametrize("soak", ["99999999w", "999999999d"])
def test_a_time_that_no_clock_has_is_refused(ada: Any, soak: str) -> None:
    answer = ada.post("/api/v1/tokens", json={"name": "a", "role": "viewer", "expires": soak})
    assert (answer.status_code, "longer than ten years" in answer.text) == (409, True)


def test_the_log_is_read_from_its_start_page_by_page(ada: Any) -> None:
    for n in range(4):
        ada.post("/api/v1/devices", json={**NEW, "device": f"lab-{n}"})
    found = pages(ada, "/api/v1/audit?after=0&limit=3")
    ids = [entry["id"] for page in found for entry in page]
    assert (ids, len(found) > 1) == (sorted(set(ids)), True)
    assert {entry["id"] for entry in ada.get("/api/v1/audit").json()} == set(ids)
