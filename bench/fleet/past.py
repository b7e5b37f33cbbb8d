"""What the history costs ingest, and how many rows and bytes it keeps: with and without, in turns, in the same run.

    python -m bench.fleet.past [--devices N] [--minutes M] [--out FILE.json]

Two databases of one PostgreSQL server take the same reports in turns, minute by minute: one as it is, one whose history
does nothing. In one of the minutes a new hour begins for every device, in the last ones a stage of a rollout is judged
with all devices as its members.
"""

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import psycopg
from sqlalchemy import Connection, text

from bench.fleet import crowd, ground
from edgekit.wire import topics
from edgekit.wire.messages import encode
from fleet.rules import gates, stages
from fleet.rules.members import Member
from fleet.rules.retention import DEFAULT, checked
from fleet.rules.rollout import Rollout, Spec
from fleet.server import ingest
from fleet.server.clock import same
from fleet.server.database import Database
from fleet.server.inbox import Message
from fleet.server.store import history, retention, rollouts

HOUR = 1_790_002_800.0
TABLES = ("device_history", "release_history", "arm_history", "totals", "reports")


class Nothing(history.Batch):
    """The history that is not written."""

    def window(self, *args: Any) -> Any:
        return args[1].gauges

    def arm(self, *args: Any, is_warm: bool) -> Any:  # noqa: ARG002  # as the one it stands for
        return args[3]

    def write(self, connection: Connection) -> None:
        pass


@contextmanager
def two(server: ground.Postgres, devices: int) -> Iterator[dict[str, Database]]:
    found = {}
    for name in ("with", "without"):
        with psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        found[name] = Database(server.url.removesuffix("postgres") + name)
        crowd.fill(found[name], devices, HOUR - 600)
    yield found
    for database in found.values():
        database.close()


def minute(devices: int, at: float, seq: int) -> list[list[Message]]:
    """A report of each device, in batches."""
    sent = []
    for number in range(devices):
        digest = crowd.sha256_of(
            crowd.NEW if seq >= 20 and number % 2 else crowd.OLD, crowd.profile_of(number)
        )
        report = crowd.report(number, seq, at, digest)
        report = msgspec.structs.replace(report, memory_mb=700.0, temperature_c=51.5, cpu_percent=20.0)
        sent.append(Message(topics.of(crowd.name(number), topics.TELEMETRY), encode(report)))
    return [sent[start : start + ingest.BATCH] for start in range(0, len(sent), ingest.BATCH)]


def judged(database: Database, devices: int, at: float) -> None:
    """All devices in an open stage of a rollout: half of them were ordered to move."""
    moment = rollouts.moment(at)
    spec = Spec(
        "digits", "2", "digits", "all", stages.parse("50%,100%", devices), (gates.parse("error_rate < 1%"),),
        soak_s=60.0, on_violation="rollback", deadline_s=600.0, finish_by_s=1e6,
    )  # fmt: skip
    members = {
        (name := crowd.name(n)): Member(
            name, crowd.profile_of(n), stages.key("r1", name), crowd.sha256_of(crowd.NEW, crowd.profile_of(n)),
            crowd.sha256_of(crowd.OLD, crowd.profile_of(n)), "digits@1", order_counter=n % 2,
        )
        for n in range(devices)
    }  # fmt: skip
    made = Rollout(
        id=1, spec=spec, members=members, created_at=moment, stage=0, stage_opened_at=moment, judged_from=moment
    )  # fmt: skip
    with database.begin() as connection:
        rollouts.add(connection, made, at)


def taken(database: Database, batches: list[list[Message]], at: float, server: int) -> dict[str, float]:
    before = ground.cost(server).cpu_s, time.process_time(), time.perf_counter()
    for batch in batches:
        found = ingest.take_in(database, batch, same(at + 1))
        assert not found.dropped, found.dropped
    return {
        "postgresql_s": ground.cost(server).cpu_s - before[0],
        "process_s": time.process_time() - before[1],
        "wall_s": time.perf_counter() - before[2],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=5000)
    parser.add_argument("--minutes", type=int, default=4, help="Of each kind.")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    spent: dict[str, dict[str, dict[str, float]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(float))
    )
    with ground.postgres() as server, two(server, given.devices) as databases:
        assert server.process is not None
        kinds = ["first"] + ["usual"] * given.minutes + ["new hour"] + ["usual"] + ["rollout"] * given.minutes
        begin = HOUR - 60 * (given.minutes + 1)
        for at, kind in enumerate(kinds):
            moment, seq = begin + 60 * at + 30, at + (20 if kind == "rollout" else 0)
            if kind == "rollout" and kinds[at - 1] != kind:
                for database in databases.values():
                    judged(database, given.devices, moment - 120)
            batches = minute(given.devices, moment, seq)
            order = sorted(databases, reverse=at % 2 == 1)
            for name in order:
                with mock.patch.object(history, "Batch", history.Batch if name == "with" else Nothing):
                    cost = taken(databases[name], batches, moment, server.process.pid)
                for what, value in cost.items():
                    spent[kind][name][what] += value
            print(f"load {os.getloadavg()[0]:.1f} {kind}", file=sys.stderr, flush=True)
        database = databases["with"]
        kept = checked(DEFAULT)
        began, has_more = time.perf_counter(), True
        while has_more:
            with database.begin() as connection:
                has_more = retention.roll(connection, kept, begin + 60 * len(kinds) + 90)
        told = {
            "devices": given.devices,
            "drawing_parts_together_s": round(time.perf_counter() - began, 3),
            "share": {
                kind: {
                    what: round(found["with"][what] / max(found["without"][what], 1e-9) - 1, 3)
                    for what in found["with"]
                }
                for kind, found in spent.items()
            },
            "ms_a_report_without": {
                kind: {
                    what: round(1000 * value / given.devices / kinds.count(kind), 4)
                    for what, value in found["without"].items()
                }
                for kind, found in spent.items()
            },
            "tables": sizes(database),
            "load": os.getloadavg()[0],
        }
    print(json.dumps(told, indent=1))
    if given.out:
        given.out.write_text(json.dumps(told, indent=1) + "\n")


def sizes(database: Database) -> dict[str, dict[str, float]]:
    found = {}
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in TABLES:
            connection.execute(text(f"VACUUM FULL {table}"))
            rows = connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
            size = connection.execute(text(f"SELECT pg_total_relation_size('{table}')")).scalar_one()
            found[table] = {"rows": rows, "bytes": size, "bytes_a_row": round(size / max(rows, 1))}
    return found


if __name__ == "__main__":
    main()
