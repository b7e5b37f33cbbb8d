"""The store on SQLite and, where a server is installed, on PostgreSQL."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from alembic import command
from alembic.config import Config
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from fleet_support import csr_of, make_bundle, make_device_key
from msgspec.structs import replace
from sqlalchemy import Connection, insert, select, update
from store_support import enrolled as enroll_rows
from store_support import rollout_of, unlike

from edgekit import bundle as bundles
from edgekit import evidence as evidences
from edgekit.errors import AuthError, ConflictError, FleetError, NotFoundError, UsageError
from edgekit.evidence import BuildEvidence, Figure, Where
from edgekit.manifest import Contract
from edgekit.sketch import of
from edgekit.trust import dsse
from edgekit.wire.enrolment import EnrolAnswer, EnrolRequest, RenewRequest
from edgekit.wire.messages import (
    Boot,
    DeploymentReport,
    DeploymentWindow,
    Order,
    Report,
    Reported,
    Status,
    decode,
    encode,
)
from edgekit.wire.states import AgentState
from fleet.publish import SigningKey, make_key
from fleet.rules.sums import Recent
from fleet.server import ca, fitting, ingest, schema
from fleet.server.clock import same
from fleet.server.database import Database, _no_foreign_keys
from fleet.server.inbox import Message
from fleet.server.store import (
    certificates,
    devices,
    enrolments,
    orders,
    releases,
    removal,
    rollouts,
    telemetry,
)
from fleet.server.store.audit import Who
from fleet.server.store.enrolments import Invitation, Registrar
from fleet.server.store.orders import Issuer

NOW = 1_790_000_000.0
KEY = make_device_key()
REGISTRAR = Registrar(
    ca.create("fleet-1", datetime.fromtimestamp(NOW, UTC)),
    "fleet-1",
    lambda device, number: f"{device}-{number}-credential",
)
ADMIN = Who("token:admin")
NONCE, OTHER_NONCE = "0" * 16, "f" * 16
DIGEST = "d" * 64


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer("fleet-1", make_key(tmp_path / "order.key"))


def request_of(name: str, token: str, *, key: Any = KEY, profile: str = "x86-64-v3") -> EnrolRequest:
    return EnrolRequest(name, token, csr_of(key, name), profile, "0.1.0")


def invited(
    connection: Connection, name: str = "d1", deployments: tuple[str, ...] = ("digits",), **more: Any
) -> str:
    invitation = Invitation(name, {"site": "lab"}, deployments, NOW + 86_400, **more)
    return enrolments.invite(connection, invitation, now=NOW, who=ADMIN)


def enrolled(database: Database, name: str = "d1", profile: str = "x86-64-v3") -> EnrolAnswer:
    with database.begin() as connection:
        token = invited(connection, name)
        return enrolments.enrol(connection, REGISTRAR, request_of(name, token, profile=profile), NOW)


def published(database: Database, folder: Path, version: str = "1.0.0", seed: str = "") -> str:
    bundle = bundles.read(make_bundle(folder / seed, version, seed=seed))
    with database.begin() as connection:
        releases.publish(connection, bundle, None, now=NOW, who=ADMIN)
    return bundle.sha256


def reported(
    seq: int, *, incarnation: int = 1, nonce: str = NONCE, profile: str = "x86-64-v3", device: str = "d1"
) -> Reported:
    return Reported(
        device=device,
        boot=Boot(1, incarnation, nonce),
        seq=seq,
        order_counter=seq,
        deployments={"digits": DeploymentReport(AgentState.IDLE)},
        profile=profile,
        isa=(),
        engines={},
        agent_version="0.1.0",
        bundle_format=1,
        free_bytes=1,
    )


def report(seq: int, *, device: str = "d1", enrolment: int = 1, incarnation: int = 1) -> Report:
    times = of([1.0, 2.0])
    window = DeploymentWindow("digits", DIGEST, 2, 1, infer_ms=times, request_ms=times)
    started = datetime.fromtimestamp(NOW, UTC)
    return Report(device, Boot(enrolment, incarnation, NONCE), seq, started, 60.0, True, (window,))


def topic(leaf: str, device: str = "d1") -> str:
    return f"edgekit/v1/devices/{device}/{leaf}"


def test_the_migrations_make_exactly_the_schema(database: Database) -> None:
    with database.engine.connect() as connection:
        assert unlike(connection) == []


def test_a_database_of_a_newer_edgekit_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new.db'}"
    made = Database(url)
    with made.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    made.close()
    with pytest.raises(FleetError, match="written by a newer EdgeKit"):
        Database(url)


def test_a_database_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fleet.db").write_bytes(b"not a database at all, but long enough to look at" * 100)
    with pytest.raises(FleetError, match="cannot be used"):
        Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    with pytest.raises(UsageError, match="use sqlite"):
        Database("nonsense://x")


@pytest.mark.parametrize(("device", "token"), [("d1", "wrong"), ("nobody", "wrong")])
def test_a_wrong_token_and_an_unknown_device_get_the_same_answer(
    database: Database, device: str, token: str
) -> None:
    enrolled(database)
    request = request_of(device, token)
    with (
        database.begin() as connection,
        pytest.raises(AuthError, match="check the device name and the token"),
    ):
        enrolments.enrol(connection, REGISTRAR, request, NOW)


def test_a_device_that_enrols_again_loses_its_old_credential(database: Database) -> None:
    first = enrolled(database)
    second = enrolled(database)
    assert (first.enrolment, second.enrolment) == (1, 2)
    with database.begin() as connection, pytest.raises(AuthError):
        devices.by_credential(connection, first.credential)


def test_a_device_that_keeps_its_key_gets_a_new_certificate_whenever_agents_ask(database: Database) -> None:
    """They spread round two thirds of its life; soon after the last one, a lost answer is given again."""
    first = enrolled(database)

    def renewed(day: float) -> EnrolAnswer:
        now = NOW + day * 86_400
        with database.begin() as connection:
            certificate = x509.load_pem_x509_certificate(first.certificate.encode())
            held = certificates.shown(connection, certificate.public_bytes(Encoding.DER))
            return enrolments.renew(connection, REGISTRAR, held, RenewRequest(csr_of(KEY, "d1")), now)

    assert renewed(10) == first
    early = renewed(90 * 0.62)
    assert early.not_after.timestamp() == NOW + 90 * 1.62 * 86_400
    assert renewed(90 * 0.64) == early


def test_a_version_never_changes(database: Database, tmp_path: Path) -> None:
    sha256 = published(database, tmp_path)
    assert published(database, tmp_path) == sha256
    with pytest.raises(ConflictError, match="a version never changes"):
        published(database, tmp_path, seed="other")
    with database.begin() as connection, pytest.raises(NotFoundError, match="no release digits@9"):
        releases.by_profile(connection, "digits", "9")


def test_an_order_says_what_the_bundle_takes_and_a_device_without_that_gets_none(
    database: Database, tmp_path: Path, issuer: Issuer
) -> None:
    enrolled(database)
    bundle = bundles.read(make_bundle(tmp_path, "1.0.0", contract=Contract(memory_mb=480)))
    with database.begin() as connection:
        releases.publish(connection, bundle, None, now=NOW, who=ADMIN)
        orders.set_desired(connection, "d1", "digits", bundle.sha256, because="test", now=NOW)
        orders.issue(connection, issuer, "d1", NOW)
        [waiting] = orders.unpublished(connection, 10)
        rows = releases.by_profile(connection, "digits", "1.0.0")
        said = replace(
            reported(1), free_bytes=10**9, engines={"onnxruntime": "1.22.0"}, free_memory_mb=479.0,
            deployments={"digits": DeploymentReport(AgentState.IDLE, memory_mb=300.0)},
        )  # fmt: skip
        told = {}
        for name, message in {"both": said, "instead": replace(said, overlap=False)}.items():
            connection.execute(update(schema.devices).values(reported=encode(message).decode()))
            row = devices.get(connection, "d1")
            told[name] = fitting.choose(row, rows, "digits", None).reason
    payload = dsse.verify(waiting.payload, dsse.ORDER_TYPE, {issuer.key.keyid: issuer.key.public_hex})
    assert decode(payload, Order).deployments["digits"].peak_memory_mb == 480
    assert told["both"].endswith("needs 480 MB beside the 300 MB of what runs, 479 MB are free")
    assert told["instead"] == ""


def test_what_a_build_measured_counts_before_what_a_contract_promises(
    database: Database, tmp_path: Path
) -> None:
    bundle = bundles.read(make_bundle(tmp_path, "1.0.0", contract=Contract(memory_mb=480)))
    some, memory = (
        Figure(1.0, "measured", Where("a CPU"), "ms"),
        Figure(96.5, "measured", Where("a CPU"), "MB"),
    )
    built = BuildEvidence(
        "digits",
        "1.0.0",
        "x86-64-v3",
        "onnxruntime/fp32",
        "accuracy",
        some,
        some,
        some,
        some,
        {},
        (),
        memory_mb=memory,
    )
    statement = evidences.encode(evidences.statement("digits", bundle.sha256, built))
    with database.begin() as connection:
        releases.publish(connection, bundle, None, now=NOW, who=ADMIN)
        assert releases.bundle(connection, bundle.sha256).peak_memory_mb == 480
        releases.publish(connection, bundle, statement, now=NOW, who=ADMIN)
        assert releases.bundle(connection, bundle.sha256).peak_memory_mb == 96.5
        releases.publish(connection, bundle, None, now=NOW, who=ADMIN)
        assert releases.bundle(connection, bundle.sha256).peak_memory_mb == 96.5


def test_an_order_names_everything_and_its_counter_only_grows(
    database: Database, tmp_path: Path, issuer: Issuer
) -> None:
    enrolled(database)
    sha256 = published(database, tmp_path)
    with database.begin() as connection:
        orders.set_desired(connection, "d1", "digits", sha256, because="test", now=NOW)
        counters = [orders.issue(connection, issuer, "d1", at) for at in (NOW, NOW, NOW - 1000, NOW + 1)]
        [waiting] = orders.unpublished(connection, 10)
    assert counters == [int(NOW * 1000), int(NOW * 1000) + 1, int(NOW * 1000) + 2, int(NOW * 1000) + 1000]
    payload = dsse.verify(waiting.payload, dsse.ORDER_TYPE, {issuer.key.keyid: issuer.key.public_hex})
    order = decode(payload, Order)
    assert (order.fleet, order.device, order.enrolment, order.counter) == ("fleet-1", "d1", 1, counters[-1])
    assert order.deployments["digits"].target == f"digits/1.0.0/x86-64-v3/{sha256}.edgekit"


def test_an_order_that_was_replaced_meanwhile_is_not_taken_for_published(
    database: Database, issuer: Issuer
) -> None:
    enrolled(database)
    with database.begin() as connection:
        first = orders.issue(connection, issuer, "d1", NOW)
        second = orders.issue(connection, issuer, "d1", NOW)
        orders.published(connection, {"d1": first}, NOW)
        assert [row.counter for row in orders.unpublished(connection, 10)] == [second]
        orders.published(connection, {"d1": second}, NOW)
        assert orders.unpublished(connection, 10) == []
        connection.execute(update(schema.devices).values(is_online=True))
        assert orders.behind(connection, NOW + 1, 10) == ["d1"]
        assert orders.behind(connection, NOW, 10) == []
        orders.publish_again(connection, ["d1"])
        assert len(orders.unpublished(connection, 10)) == 1


def test_an_order_is_renewed_at_half_its_life(database: Database, issuer: Issuer) -> None:
    enrolled(database)
    with database.begin() as connection:
        orders.issue(connection, issuer, "d1", NOW)
        assert orders.due_for_renewal(connection, NOW + 10 * 86_400, 10) == []
        assert orders.due_for_renewal(connection, NOW + 20 * 86_400, 10) == ["d1"]


def test_a_change_undone_leaves_neither_desired_nor_order(
    database: Database, tmp_path: Path, issuer: Issuer
) -> None:
    enrolled(database)
    sha256 = published(database, tmp_path)

    def fail_after_ordering() -> None:
        with database.begin() as connection:
            orders.set_desired(connection, "d1", "digits", sha256, because="test", now=NOW)
            orders.issue(connection, issuer, "d1", NOW)
            raise RuntimeError("cut")

    with pytest.raises(RuntimeError):
        fail_after_ordering()
    with database.begin() as connection:
        assert orders.desired_of(connection) == {}
        assert orders.unpublished(connection, 10) == []
        assert devices.get(connection, "d1").order_counter == 0


def test_a_report_counts_once_and_is_acknowledged_every_time(database: Database) -> None:
    enrolled(database)
    message = Message(topic("telemetry"), encode(report(7)))
    for _ in range(2):
        taken = ingest.take_in(database, [message, message], same(NOW))
        assert taken.acks == {("d1", Boot(1, 1, NONCE)): [7, 7]}
        assert not taken.dropped
    with database.begin() as connection:
        [total] = connection.execute(select(schema.totals)).all()
        assert (total.windows, total.requests, total.errors) == (1, 2, 1)
        assert msgspec.json.decode(total.recent, type=Recent).all().requests == 2
        telemetry.prune(connection, NOW + telemetry.KEEP_S + 1)
        assert connection.execute(schema.reports.select()).all() == []


@pytest.mark.parametrize(
    ("where", "payload", "reason"),
    [
        (topic("telemetry"), b"{", "unreadable report"),
        (topic("telemetry"), b" " * 300_000, "unreadable report"),
        (topic("telemetry"), encode(report(1, device="d2")), "names another device than its topic"),
        (topic("telemetry", "d9"), encode(report(1, device="d9")), "unknown device"),
        (topic("telemetry"), encode(report(1, enrolment=2)), "of another enrolment"),
        (
            topic("reported"),
            encode(reported(1, profile="raspberry-pi-5")),
            "claims another profile than it enrolled with",
        ),
        (topic("reported"), encode(reported(1, device="d2")), "names another device than its topic"),
        (topic("status"), b"null", "unreadable status"),
        (topic("desired"), b"{}", "unexpected topic"),
        ("edgekit/v1/devices/a/b/c", b"{}", "not a device topic"),
    ],
)
def test_what_cannot_be_believed_is_dropped_and_harms_nothing_else(
    database: Database, where: str, payload: bytes, reason: str
) -> None:
    enrolled(database)
    batch = [Message(where, payload), Message(topic("telemetry"), encode(report(5)))]
    taken = ingest.take_in(database, batch, same(NOW))
    assert list(taken.acks.values()) == [[5]]
    assert taken.dropped == {reason: 1}


def test_a_revoked_device_is_believed_nothing_and_shut_out_until_it_enrols_again(database: Database) -> None:
    def shut_out() -> list[str]:
        with database.begin() as connection:
            return certificates.shut_out(connection, NOW)

    enrolled(database)
    assert shut_out() == []
    with database.begin() as connection:
        removal.revoke(connection, "d1", reason="stolen", now=NOW, who=ADMIN)
    taken = ingest.take_in(database, [Message(topic("telemetry"), encode(report(5)))], same(NOW))
    assert (taken.acks, taken.dropped) == ({}, {"of a revoked device": 1})
    assert shut_out() == ["d1"]
    enrolled(database)
    assert shut_out() == []
    again = Message(topic("telemetry"), encode(report(5, enrolment=2)))
    assert ingest.take_in(database, [again], same(NOW)).acks


def take(database: Database, leaf: str, message: Reported | Status) -> devices.DeviceRow:
    ingest.take_in(database, [Message(topic(leaf), encode(message))], same(NOW))
    with database.begin() as connection:
        return devices.get(connection, "d1")


def test_an_older_self_description_never_replaces_a_newer_one(database: Database) -> None:
    enrolled(database)
    for seq, incarnation, kept in [
        (5, 1, (1, 5)),
        (4, 1, (1, 5)),
        (1, 2, (2, 1)),
        (9, 1, (2, 1)),
        (2, 2, (2, 2)),
    ]:
        nonce = NONCE if incarnation == 1 else OTHER_NONCE
        row = take(database, "reported", reported(seq, incarnation=incarnation, nonce=nonce))
        assert (row.incarnation, row.reported_seq) == kept


def test_the_last_will_of_an_older_run_says_nothing_about_the_present_one(database: Database) -> None:
    enrolled(database)
    assert take(database, "status", Status(True, Boot(1, 2, OTHER_NONCE))).is_online
    assert take(database, "status", Status(False, Boot(1, 1, NONCE))).is_online
    assert not take(database, "status", Status(False, Boot(1, 2, OTHER_NONCE))).is_online


def test_two_nonces_in_one_incarnation_are_a_cloned_card(database: Database) -> None:
    enrolled(database)
    assert not take(database, "status", Status(True, Boot(1, 1, NONCE))).is_duplicate
    assert take(database, "status", Status(True, Boot(1, 1, OTHER_NONCE))).is_duplicate
    enrolled(database)
    with database.begin() as connection:
        assert not devices.get(connection, "d1").is_duplicate, "enrolling again is the way out"


def test_signing_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    from fleet.publish import load_key

    key: SigningKey = make_key(tmp_path / "k" / "a.key")
    assert load_key(tmp_path / "k" / "a.key").public_hex == key.public_hex
    with pytest.raises(ConflictError, match="there is a key already"):
        make_key(tmp_path / "k" / "a.key")
    (tmp_path / "k" / "a.key").chmod(0o644)
    with pytest.raises(UsageError, match="readable by others"):
        load_key(tmp_path / "k" / "a.key")
    (tmp_path / "k" / "b.key").touch(0o600)
    with pytest.raises(UsageError, match="no unencrypted PEM private key"):
        load_key(tmp_path / "k" / "b.key")


def test_members_go_from_a_rollouts_state_to_rows_and_back(database: Database) -> None:
    """An update in the middle of a rollout loses nothing of it."""
    enroll_rows(database, ["d1", "d2"])
    moment = rollouts.moment(NOW)
    rollout = rollout_of(["d1", "d2"], judged_from=NOW)
    told = {
        name: replace(m, order_counter=7, ordered_at=moment, notified_at=moment, seen=(1, 2, 3), stage=0)
        for name, m in rollout.members.items()
    }
    rollout = replace(rollout, members=told)
    with database.begin() as connection:
        rollouts.add(connection, rollout, NOW)
    go_back(database, "0007")
    with database.read() as connection:
        state = connection.execute(select(schema.rollouts.c.state)).scalar_one()
        assert sorted(msgspec.json.decode(state)["members"]) == ["d1", "d2"]
    database.migrate()
    with database.read() as connection:
        assert rollouts.get(connection, 1) == rollout
        [row] = rollouts.judged(connection)
    assert (row.deployment, row.stage, row.judged_from) == ("digits", 0, NOW)


def go_back(database: Database, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).with_name("migrations")))
    with database.engine.connect() as connection, _no_foreign_keys(connection), connection.begin():
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


def test_devices_that_lack_something_are_those_with_an_empty_slot(database: Database) -> None:
    with database.begin() as connection:
        for name in ("d1", "d2", "d3", "d4"):
            slots = '["digits", "faces"]' if name != "d4" else "[]"
            connection.execute(
                insert(schema.devices).values(id=name, labels="{}", deployments=slots, created_at=NOW)
            )
        bundle = {"sha256": "a" * 64, "name": "digits", "version": "1", "profile": "p", "length": 1}
        bundle |= {"engine": "e", "engine_versions": ">=1", "published_at": NOW}
        connection.execute(insert(schema.bundles).values(**bundle))
        wanted = {"sha256": "a" * 64, "because": "", "set_at": NOW}
        connection.execute(
            insert(schema.desired),
            [
                wanted | {"device": device, "deployment": deployment}
                # What d2 is to run is none of its slots any more.
                for device, deployment in (
                    ("d1", "digits"),
                    ("d1", "faces"),
                    ("d2", "digits"),
                    ("d2", "gone"),
                )
            ],
        )
        assert [row.id for row in devices.lacking(connection)] == ["d2", "d3"]
        assert [row.id for row in devices.lacking(connection, ["d1", "d2", "d4"])] == ["d2"]
