"""Samples in the fleet: who is asked, what orders say, what is taken, downloaded and deleted."""

import base64
import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from access_support import NOW, Inside
from sqlalchemy import insert, select
from store_support import enrolled

from edgekit.errors import ConflictError, NotPossibleError, UsageError
from edgekit.samples import dump_arrays, load_npz
from edgekit.trust.dsse import Envelope
from edgekit.wire.messages import Boot, Order, OrderOptions, Passed, Report, decode
from edgekit.wire.samples import MAX_POLICIES, SampleAbout, SamplePolicy, pack
from fleet import api
from fleet.client import sample_files
from fleet.rules import collecting as rules
from fleet.rules import links
from fleet.rules.access import Role
from fleet.rules.links import Link
from fleet.server import collecting as files
from fleet.server import schema
from fleet.server.clock import Now
from fleet.server.database import Database
from fleet.server.store import audit, collecting, orders, removal
from fleet.server.store.settings import secret_hash

DIGEST = "a" * 64
WANTED = {"deployment": "digits", "to": "all", "lasts": "1h", "random": "100%", "most": 3}


@pytest.fixture(
    params=["sqlite", pytest.param("postgresql", marks=[pytest.mark.postgres, pytest.mark.proof])]
)
def inside(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Inside]:
    url = "" if request.param == "sqlite" else request.getfixturevalue("empty_postgresql")
    made = Inside(tmp_path / "fleet", url=url)
    enrolled(made.database, ["lab-1", "roof-1"])
    with made.database.begin() as connection:
        for name in ("lab-1", "roof-1"):
            site = json.dumps({"site": name.partition("-")[0]})
            values = {"labels": site, "credential_hash": secret_hash(f"of {name}")}
            change = schema.devices.update().where(schema.devices.c.id == name)
            connection.execute(change.values(**values))
            connection.execute(
                insert(schema.certificates).values(
                    serial=name, device=name, enrolment=1, public_key="", issued_at=NOW, not_after=NOW + 1e6, pem="",
                )
            )  # fmt: skip
    yield made
    made.close()


@pytest.fixture
def admin(inside: Inside) -> Any:
    return inside.client(inside.token("admin", Role.ADMIN))


def collect(client: Any, **changed: Any) -> Any:
    return client.post("/api/v1/samples", json={**WANTED, **changed})


def sample(policy: str = "s1", *, value: float = 1.0, deployment: str = "digits") -> bytes:
    about = SampleAbout(
        policy, deployment, DIGEST, "random", "raw", datetime.fromtimestamp(NOW, UTC), 0.5, "seven"
    )
    arrays = {"input/x": np.full((2, 3), value, np.float32), "output/y": np.float32([[value, np.nan]])}
    return pack(about, dump_arrays(arrays))


def bring(inside: Inside, data: bytes, device: str = "lab-1", digest: str = "") -> Any:
    name = digest or hashlib.sha256(data).hexdigest()
    return inside.client(f"of {device}").put(f"/v1/samples/{name}", content=data)


def tell(inside: Inside) -> None:
    """What the controller does at a tick."""
    with inside.database.begin() as connection:
        files.mark(connection)
    with inside.database.begin() as connection:
        files.step(connection, inside.context.issuer, Now(NOW, NOW, NOW))


def policies_of(inside: Inside, device: str) -> tuple[SamplePolicy, ...]:
    with inside.database.read() as connection:
        query = select(schema.outbox.c.payload).where(schema.outbox.c.device == device)
        payload = connection.execute(query).scalar()
    if payload is None:
        return ()
    envelope = msgspec.json.decode(payload, type=Envelope)
    return decode(base64.b64decode(envelope.payload), Order).samples


# -- orders ----------------------------------------------------------------------------------------------------------


def test_what_may_be_kept_stands_in_the_orders_of_those_who_are_asked_until_it_is_stopped(
    inside: Inside, admin: Any
) -> None:
    made = collect(admin, to="site=lab", low_confidence=0.6, per_device=2, labels=["cat"])
    assert made.status_code == 201, made.text
    assert (made.json()["id"], made.json()["devices"], made.json()["state"]) == ("s1", 1, "active")
    tell(inside)
    [policy] = policies_of(inside, "lab-1")
    assert (policy.id, policy.deployment, policy.most, policy.random) == ("s1", "digits", 2, 1.0)
    assert (policy.low_confidence, policy.labels, policy.bytes_a_day) == (0.6, ("cat",), 100_000_000)
    assert policy.until == datetime.fromtimestamp(NOW + 3600, UTC)
    assert policies_of(inside, "roof-1") == ()
    with inside.database.begin() as connection:
        orders.issue(connection, inside.context.issuer, "lab-1", NOW, OrderOptions(probation_s=5.0))
    assert policies_of(inside, "lab-1") == (policy,)
    assert admin.post("/api/v1/samples/s1/stop").json() == {"name": "s1", "is_changed": True}
    assert admin.post("/api/v1/samples/s1/stop").json()["is_changed"] is False
    tell(inside)
    assert policies_of(inside, "lab-1") == ()


def test_a_policy_that_is_over_by_time_is_said_no_more(inside: Inside, admin: Any) -> None:
    collect(admin)
    with inside.database.read() as connection:
        assert set(collecting.policies(connection, ["lab-1"], NOW)) == {"lab-1"}
        assert collecting.policies(connection, ["lab-1"], NOW + 3600) == {}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"random": ""}, "name a reason"),
        ({"random": "0%"}, "--random"),
        ({"random": "101%"}, "--random"),
        ({"lasts": "soon"}, "no duration"),
        ({"lasts": "91d"}, "at most 90d"),
        ({"per_day": "20"}, "--per-day"),
        ({"deployment": "faces"}, "has the deployment"),
        ({"to": "site=attic"}, "no enrolled device"),
        ({"to": "floor=2"}, "no device has the label"),
        ({"most": 0}, "most"),
    ],
)
def test_what_cannot_be_asked_is_refused(admin: Any, changed: Any, told: str) -> None:
    refused = collect(admin, **changed)
    assert refused.status_code in (400, 409)
    assert told in refused.json()["error"]["message"]


def test_no_more_is_asked_at_once_than_an_order_says(admin: Any) -> None:
    for _ in range(MAX_POLICIES):
        assert collect(admin).status_code == 201
    refused = collect(admin)
    assert refused.status_code == 409
    assert "stop one" in refused.json()["error"]["message"]


def test_texts_of_operators() -> None:
    assert rules.parse_percent("1.5%") == 0.015
    assert rules.parse_percent("") is None
    assert rules.parse_size("1.5MB") == 1_500_000
    for call in (lambda: rules.parse_percent("x"), lambda: rules.parse_size("0MB")):
        with pytest.raises(UsageError):
            call()
    with pytest.raises(NotPossibleError):
        rules.parse_lasts("100d")


# -- samples ---------------------------------------------------------------------------------------------------------


def test_a_sample_is_taken_once_and_acknowledged_again(inside: Inside, admin: Any) -> None:
    collect(admin)
    data = sample()
    assert bring(inside, data).status_code == 201
    assert bring(inside, data).status_code == 200
    assert admin.get("/api/v1/samples").json()[0]["samples"] == 1
    [one] = admin.get("/api/v1/samples/s1/items").json()
    assert (one["device"], one["reason"], one["confidence"], one["label"]) == (
        "lab-1",
        "random",
        0.5,
        "seven",
    )
    name = hashlib.sha256(data).hexdigest()
    assert admin.get(f"/api/v1/samples/s1/files/{name}").content == data
    assert files.path_of(inside.folder.samples, name).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("data", "device", "digest", "status"),
    [
        (sample("s2"), "lab-1", "", 404),
        (sample(deployment="faces"), "lab-1", "", 404),
        (sample(), "roof-1", "", 404),
        (sample(), "nobody", "", 401),
        (sample(), "lab-1", "0" * 64, 400),
        (b"no sample\n", "lab-1", "", 422),
        (b"x" * (9 << 20), "lab-1", "", 413),
    ],
    ids=["another", "deployment", "not asked", "a stranger", "damaged", "no sample", "too large"],
)
def test_what_nobody_asked_for_is_not_taken(
    inside: Inside, admin: Any, data: bytes, device: str, digest: str, status: int
) -> None:
    collect(admin, to="site=lab")
    assert bring(inside, data, device, digest).status_code == status
    assert not list(files.files(inside.folder.samples))
    assert admin.get("/api/v1/samples").json()[0]["samples"] == 0


def test_a_collection_ends_when_it_has_what_it_asked_for_and_its_devices_are_told(
    inside: Inside, admin: Any
) -> None:
    collect(admin, most=2)
    tell(inside)
    assert bring(inside, sample(value=1)).status_code == 201
    assert bring(inside, sample(value=2), "roof-1").status_code == 201
    assert bring(inside, sample(value=3)).status_code == 410
    assert bring(inside, sample(value=2), "roof-1").status_code == 200
    assert admin.get("/api/v1/samples").json()[0]["state"] == "full"
    assert policies_of(inside, "lab-1") != ()
    tell(inside)
    assert policies_of(inside, "lab-1") == policies_of(inside, "roof-1") == ()
    assert len(list(files.files(inside.folder.samples))) == 2


def test_no_device_brings_more_than_its_share(inside: Inside, admin: Any) -> None:
    collect(admin, per_device=1)
    assert bring(inside, sample(value=1)).status_code == 201
    assert bring(inside, sample(value=2)).status_code == 410
    assert bring(inside, sample(value=3), "roof-1").status_code == 201


def test_after_the_end_none_are_taken(inside: Inside, admin: Any) -> None:
    collect(admin)
    inside.clock.now += 3601
    assert bring(inside, sample()).status_code == 410
    assert admin.get("/api/v1/samples").json()[0]["state"] == "over"


def test_a_collection_is_deleted_with_its_files_once_its_devices_were_told(
    inside: Inside, admin: Any
) -> None:
    collect(admin)
    bring(inside, sample())
    assert admin.post("/api/v1/samples/s1/remove").status_code == 409
    admin.post("/api/v1/samples/s1/stop")
    refused = admin.post("/api/v1/samples/s1/remove")
    assert "still being told" in refused.json()["error"]["message"]
    tell(inside)
    assert admin.post("/api/v1/samples/s1/remove").json() == {"id": "s1", "samples": 1}
    assert not list(files.files(inside.folder.samples))
    assert admin.get("/api/v1/samples").json() == []
    assert collect(admin).json()["id"] == "s2"


def test_what_no_row_names_is_swept_and_nothing_else(inside: Inside, admin: Any) -> None:
    collect(admin)
    bring(inside, sample())
    stray = files.path_of(inside.folder.samples, "f" * 64)
    stray.parent.mkdir()
    stray.write_bytes(b"of a transaction that never was")
    with inside.database.begin() as connection:
        assert files.sweep(connection, inside.folder.samples) == 0
        assert files.sweep(connection, inside.folder.samples, young_s=0) == 1
        collecting.prune(connection, NOW + 1)
        assert files.sweep(connection, inside.folder.samples, young_s=0) == 1


def test_the_samples_of_a_device_go_with_it(inside: Inside, admin: Any) -> None:
    collect(admin)
    bring(inside, sample())
    with inside.database.begin() as connection:
        removal.forget(connection, "lab-1", "", now=NOW, who=audit.FLEET)
        assert files.sweep(connection, inside.folder.samples, young_s=0) == 1
    assert admin.get("/api/v1/samples/s1/items").json() == []


# -- who may ---------------------------------------------------------------------------------------------------------


def test_inputs_are_for_operators_and_within_their_scope(inside: Inside, admin: Any) -> None:
    collect(admin)
    viewer = inside.client(inside.token("viewer", Role.VIEWER))
    lab = inside.client(inside.token("lab", Role.OPERATOR, "site=lab"))
    bring(inside, sample(value=1), "roof-1")
    data = sample(value=2)
    bring(inside, data)
    assert viewer.get("/api/v1/samples").status_code == 200
    assert viewer.get("/api/v1/samples/s1/items").status_code == 403
    assert collect(viewer).status_code == 403
    assert [one["device"] for one in lab.get("/api/v1/samples/s1/items").json()] == ["lab-1"]
    assert lab.get("/api/v1/samples").json()[0]["samples"] == 1
    others = hashlib.sha256(sample(value=1)).hexdigest()
    assert lab.get(f"/api/v1/samples/s1/files/{others}").status_code == 404
    assert lab.post("/api/v1/samples/s1/stop").status_code == 403
    mine = collect(lab).json()
    assert (mine["to"], mine["devices"]) == ("(all) and (site=lab)", 1)
    assert lab.post(f"/api/v1/samples/{mine['id']}/stop").status_code == 200


def test_pages_of_samples_come_in_the_order_in_which_they_came(inside: Inside, admin: Any) -> None:
    collect(admin, most=5)
    for value in range(4):
        inside.clock.now += 1
        bring(inside, sample(value=value))
    found = admin.get("/api/v1/samples/s1/items", params={"limit": 3})
    rest = admin.get(found.links["next"]["url"]).json()
    times = [one["received"] for one in [*found.json(), *rest]]
    assert times == sorted(times)
    assert len(times) == 4


# -- downloads -------------------------------------------------------------------------------------------------------


def view(data: bytes, kind: str = "raw") -> api.SampleView:
    at = datetime.fromtimestamp(NOW, UTC)
    name = hashlib.sha256(data).hexdigest()
    return api.SampleView(name, "lab-1", "digits", DIGEST, "random", kind, 0.5, "7", at, at, len(data))  # type: ignore[arg-type]


def test_a_download_is_what_a_build_takes(tmp_path: Path) -> None:
    found = [sample(value=1), sample(value=2)]
    damaged = found[0][:-200]
    out = tmp_path / "samples"
    written = sample_files.write(out, [*((view(one), one) for one in found), (view(damaged), damaged)])
    assert written.files == {"raw.npz": 2}
    assert [name for name, _ in written.unreadable] == [view(damaged).sha256]
    inputs = load_npz(out / "raw.npz").inputs["x"]
    assert inputs.shape == (2, 2, 3)
    assert inputs[1].max() == 2
    index = json.loads((out / "index.json").read_text())
    assert index[1]["outputs"] == {"y": [[2.0, None]]}
    assert (index[1]["file"], index[1]["row"], index[1]["about"]["device"]) == ("raw.npz", 1, "lab-1")
    with pytest.raises(UsageError, match="exists already"):
        sample_files.write(out, [])


# -- both databases --------------------------------------------------------------------------------------------------


def test_the_store_does_the_same_on_both_databases(database: Database) -> None:
    enrolled(database, ["a", "b"])
    values = {
        "deployment": "digits", "selector": "all", "reasons": '{"random":1.0}', "most": 2, "per_device": 0,
        "bytes_a_day": 10, "until_at": NOW + 10, "created_at": NOW, "created_by": "x",
    }  # fmt: skip
    about = SampleAbout("s1", "digits", DIGEST, "random", "raw", datetime.fromtimestamp(NOW, UTC))
    with database.begin() as connection:
        assert collecting.add(connection, values, ["a", "b"]) == 1
        assert sorted(collecting.due(connection, 9)) == ["a", "b"]
        collecting.written(connection, ["a", "b"])
        for number in range(2):
            collecting.take(connection, "a", about, f"{number}" * 64, 5, now=NOW)
    with database.begin() as connection:
        assert collecting.sizes(connection) == {1: (2, 10)}
        assert collecting.get(connection, 1).ended == "full"
        assert collecting.policies(connection, ["a"], NOW) == {}
        assert collecting.mark_ended(connection)
        assert not collecting.mark_ended(connection)
        assert len(collecting.due(connection, 9)) == 2
        with pytest.raises(ConflictError):
            collecting.take(connection, "a", about, "2" * 64, 5, now=NOW)
        assert collecting.prune(connection, NOW + 1) is False
        assert collecting.remove(connection, 1) == 0


# -- links -----------------------------------------------------------------------------------------------------------


def report(seq: int, sent: int, *, enrolment: int = 1) -> Report:
    boot = Boot(enrolment, 1, "0" * 16)
    at = datetime.fromtimestamp(NOW, UTC)
    return Report("a", boot, seq, at, 1.0, True, (), traffic={"models": Passed(sent, 0)})


def test_what_a_link_carries_is_kept_by_month_and_late_reports_change_nothing() -> None:
    december = datetime(2026, 12, 1, tzinfo=UTC).timestamp()
    link = links.grown(Link(), report(2, 500), december - 10)
    assert links.grown(link, report(1, 100), december) is link
    link = links.grown(link, report(3, 800), december + 1)
    assert link.of_month("models") == Passed(300, 0)
    assert link.totals["models"] == Passed(800, 0)
    anew = links.grown(link, report(1, 40, enrolment=2), december + 2)
    assert (anew.of_month("models"), anew.totals["models"]) == (Passed(40, 0), Passed(40, 0))
