"""A database with enrolled devices, and their messages, without a broker and without a wait."""

import importlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, insert

from edgekit.sketch import of
from edgekit.wire import topics
from edgekit.wire.messages import (
    Boot,
    Condition,
    DeploymentReport,
    DeploymentWindow,
    Report,
    Reported,
    Status,
    encode,
)
from edgekit.wire.states import AgentState
from fleet.rules import gates, stages
from fleet.rules.members import Member
from fleet.rules.rollout import Rollout, Spec
from fleet.server import schema
from fleet.server.database import Database
from fleet.server.inbox import Message
from fleet.server.store import rollouts

NOW = 1_790_000_000.0
NONCE = "0" * 16
OLD, NEW = "a" * 64, "b" * 64
WINDOW_S = 60.0


def unlike(connection: Connection) -> list[Any]:
    """What sets the database apart from the schema. Alembic does not see that an index is of one dialect only."""
    # A module of tables that nothing has imported yet would look like tables too many.
    for module in Path(schema.__file__).parent.glob("schema_*.py"):
        importlib.import_module(f"fleet.server.{module.stem}")
    here = connection.dialect.name
    elsewhere = {
        index.name
        for table in schema.metadata.tables.values()
        for index in table.indexes
        if index._ddl_if is not None and index._ddl_if.dialect != here
    }
    opts = {
        "compare_type": True,
        "include_object": lambda _one, name, kind, _is_there, _other: (
            kind != "index" or name not in elsewhere
        ),
    }
    return compare_metadata(MigrationContext.configure(connection, opts=opts), schema.metadata)


def enrolled(database: Database, names: Sequence[str], *, last_report_at: float | None = NOW - 10) -> None:
    """Devices that run `OLD` and have reported lately; both bundles are there."""
    bundle = {
        "name": "digits", "profile": "p", "length": 10, "engine": "onnxruntime", "engine_versions": ">=1",
        "format": 1, "published_at": NOW,
    }  # fmt: skip
    row = {
        "labels": "{}", "deployments": '["digits"]', "created_at": NOW, "enrolment": 1, "profile": "p",
        "is_confirmed": True, "credential_hash": "0" * 64, "last_report_at": last_report_at, "window_s": WINDOW_S, "is_online": True,
    }  # fmt: skip
    with database.begin() as connection:
        connection.execute(
            insert(schema.bundles),
            [bundle | {"sha256": sha, "version": v} for sha, v in ((OLD, "1"), (NEW, "2"))],
        )
        connection.execute(insert(schema.devices), [row | {"id": name} for name in names])


def rollout_of(names: Sequence[str], cut: str = "100%", *, judged_from: float | None = None) -> Rollout:
    """All `names`, which run `OLD`, to `NEW`; not opened unless `judged_from` is given."""
    moment = rollouts.moment(NOW if judged_from is None else judged_from)
    spec = Spec(
        "digits", "2", "digits", "all", stages.parse(cut, len(names)), (gates.parse("error_rate < 1%"),),
        soak_s=60.0, on_violation="rollback", deadline_s=600.0, finish_by_s=1e6,
    )  # fmt: skip
    members = {
        name: Member(name, "p", stages.key("r1", name), NEW, OLD, "digits@1", online_since=moment)
        for name in names
    }
    made = Rollout(id=1, spec=spec, members=members, created_at=moment)
    if judged_from is None:
        return made
    return Rollout(
        id=1,
        spec=spec,
        members=members,
        created_at=moment,
        stage=0,
        stage_opened_at=moment,
        judged_from=moment,
    )


def topic(device: str, leaf: str = topics.TELEMETRY) -> str:
    return topics.of(device, leaf)


def report(  # what a window may differ in
    device: str,
    seq: int,
    ended: float,
    *,
    digest: str = OLD,
    requests: int = 100,
    errors: int = 1,
    ms: float = 2.0,
    clock_ok: bool = True,
    incarnation: int = 2,
) -> Message:
    """A report of one window that ended at `ended` by the device's own clock."""
    times = of([ms] * requests)
    window = DeploymentWindow("digits", digest, requests, errors, infer_ms=times, request_ms=times)
    started = datetime.fromtimestamp(ended - WINDOW_S, UTC)
    boot = Boot(1, incarnation, NONCE)
    return Message(topic(device), encode(Report(device, boot, seq, started, WINDOW_S, clock_ok, (window,))))


def status(device: str, *, online: bool, incarnation: int = 2, received: float | None = None) -> Message:
    boot = Boot(1, incarnation, NONCE)
    return Message(topic(device, topics.STATUS), encode(Status(online, boot)), received)


def said(
    device: str,
    seq: int,
    *,
    counter: int = 0,
    digest: str = OLD,
    profile: str = "p",
    conditions: tuple[Condition, ...] = (),
) -> Message:
    """A self-description: at rest with `digest`, having accepted order `counter`."""
    at_rest = DeploymentReport(AgentState.IDLE, digest, digest, digest)
    reported = Reported(
        device=device, boot=Boot(1, 2, NONCE), seq=seq, order_counter=counter, deployments={"digits": at_rest},
        profile=profile, isa=(), engines={"onnxruntime": "1.2"}, agent_version="1", bundle_format=1,
        free_bytes=10**10, conditions=conditions,
    )  # fmt: skip
    return Message(topic(device, topics.REPORTED), encode(reported))
