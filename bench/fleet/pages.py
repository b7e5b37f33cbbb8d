"""What a page costs with so many devices in the tables, in milliseconds: `python -m bench.fleet.pages [--devices N]`.

A fleet of rows as it is in the middle of a rollout over all of it (some moved, some failed, some away), a week of its
releases' history and an experiment over a part; the service's own application, served by uvicorn on this machine. Each page
is asked for several times:

  anew   nothing was counted before (the middle one of three)
  wall   as somebody sees it who waits for the whole answer over HTTP (the middle one of seven, and the slowest)
  cpu    of the service's process, for each of these

With --postgres on a server of its own as well. Each filter is measured as the page that shows it, and as the API's count.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import uvicorn
from sqlalchemy import bindparam, insert, update

from bench.fleet import crowd, ground
from edgekit.manifest import Histogram, Reference
from edgekit.wire.messages import Condition, DeploymentReport
from edgekit.wire.states import AgentState, FleetState
from fleet.rules import facts, gates
from fleet.rules.access import Role, Scope
from fleet.rules.history import Level, ReleaseSums
from fleet.rules.members import Member
from fleet.rules.rollout import Rollout, Spec
from fleet.rules.stages import Stage
from fleet.server import passwords, schema
from fleet.server.database import Database
from fleet.server.schema_experiments import experiments, units
from fleet.server.schema_history import references, release_history
from fleet.server.store import audit, history, rollouts, sessions, users
from fleet.server.store.tokens import Grant
from fleet.server.web import memory

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "fleet"))

from access_support import NOW, Inside  # after the line that makes it importable

_ANEW, _TIMES = 3, 7
_DAYS = 7
_AT_ONCE = 10_000
# What is looked for: usual ones, and those that find next to nothing, which have to look at everything.
FILTERS = (
    "site=site-007", "profile=raspberry-pi-5", "state=failed", "not state=idle", "behind=yes", "behind=no", "online=no",
    "refused=yes", "condition=any", "last_seen > 1d", "release=digits@2", "wanted=digits@2", "rollout=r1", "reason ~ disk",
    "site=site-007 and behind=yes", "site ~ lab",
)  # fmt: skip
PAGES = (
    "/", "/devices", "/devices?after=sim-050000", "/devices?sort=-last_seen", "/devices?sort=agent", "/devices?q=0123",
    "/devices?q=nobody", *(f"/devices?state={name}" for name in ("online", "behind", "offline", "new", "cloned")),
    "/devices/sim-000007", "/devices/sim-000007/delete", "/rollouts", "/rollouts/r1", "/rollouts/r1/rollback",
    "/rollouts/start", "/releases", "/releases/digits/2", "/drift", "/experiments", "/experiments/e1", "/audit", "/settings",
    "/enrol", "/search?q=sim-0123",
)  # fmt: skip


class Cost(NamedTuple):
    """Of one page, in milliseconds."""

    path: str
    anew: float
    wall: float
    slowest: float
    cpu: float


def fill(database: Database, count: int, seed: int = 1) -> None:
    """Rows of a fleet in the middle of rollout r1, and of experiment e1."""
    draw = random.Random(seed)
    crowd.fill(database, count, NOW - 30 * 86_400)
    states: dict[str, FleetState] = {}
    changes: list[dict[str, Any]] = []
    for number in range(count):
        name, chance = crowd.name(number), draw.random()
        states[name] = FleetState.PENDING
        if number % 2 == 0:
            states[name] = FleetState.FAILED if chance < 0.01 else FleetState.SUCCEEDED
            if 0.01 <= chance < 0.03:
                states[name] = FleetState.FETCHING
        changes.append(_row(number, states[name], is_away=draw.random() < 0.03))
    change = update(schema.devices).where(schema.devices.c.id == bindparam("at"))
    wanted = update(schema.desired).where(schema.desired.c.device == bindparam("at"))
    names = [key for key in changes[0] if key != "at"]
    moved = [
        {"at": crowd.name(number), "to": crowd.sha256_of(crowd.NEW, crowd.profile_of(number))}
        for number in range(0, count, 2)
    ]
    for at in range(0, count, _AT_ONCE):
        with database.begin() as connection:
            connection.execute(
                change.values(**{key: bindparam(f"new_{key}") for key in names}),
                [
                    {"at": row["at"], **{f"new_{key}": row[key] for key in names}}
                    for row in changes[at : at + _AT_ONCE]
                ],
            )
            connection.execute(wanted.values(sha256=bindparam("to")), moved[at // 2 : (at + _AT_ONCE) // 2])
    with database.begin() as connection:
        _rollout(connection, states)
        _history(connection, count, draw)
        _experiment(connection, min(count, 10_000), draw)
    if database.is_postgresql:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")


def _row(number: int, state: FleetState, *, is_away: bool) -> dict[str, Any]:
    """A device's row after it was told of the rollout, with what searches ask of what it says."""
    profile = crowd.profile_of(number)
    old, new = (crowd.sha256_of(digest, profile) for digest in (crowd.OLD, crowd.NEW))
    runs = new if state is FleetState.SUCCEEDED else old
    of = {
        FleetState.FAILED: (AgentState.FAILED, "the disk is full: 12 MB are missing"),
        FleetState.FETCHING: (AgentState.FETCH, "waits for the metered link"),
    }
    at, why = of.get(state, (AgentState.IDLE, ""))
    said = crowd.reported(number, 2, 1, runs)
    one = DeploymentReport(
        at, runs, runs, runs, "digits", "2" if runs == new else "1", memory_mb=60.0, reason=why
    )
    said = msgspec.structs.replace(said, deployments={"digits": one})
    if state is FleetState.FAILED:
        said = msgspec.structs.replace(
            said, conditions=(Condition("disk-full", "/var is full", datetime.fromtimestamp(NOW, UTC)),)
        )
    return {
        "at": crowd.name(number),
        "reported": msgspec.json.encode(said).decode(),
        "facts": facts.of(said),
        "trouble": facts.trouble(said),
        "gravity": facts.gravity(said),
        "agent_version": "0.1.0",
        "is_online": not is_away,
        "last_seen_at": NOW - (3 * 86_400 if is_away else number % 60),
        "order_counter": int(state is not FleetState.PENDING),
        "reported_counter": int(state not in {FleetState.PENDING, FleetState.FETCHING}),
    }


def _rollout(connection: Any, states: dict[str, FleetState]) -> None:
    begun = datetime.fromtimestamp(NOW, UTC)
    spec = Spec(
        "digits", "2", "digits", "all", (Stage(0.5, "50 %"), Stage(1.0, "all devices", needs_approval=True)),
        (gates.parse("error_rate < 1%"),), 3600.0, "rollback", 600.0, 86_400.0,
    )  # fmt: skip
    members = {}
    for order, (name, state) in enumerate(states.items()):
        profile = crowd.profile_of(order)
        is_pending = state is FleetState.PENDING
        members[name] = Member(
            name, profile, f"{order:064}", crowd.sha256_of(crowd.NEW, profile), crowd.sha256_of(crowd.OLD, profile),
            "digits@1", state=state, stage=None if is_pending else 0, order_counter=0 if is_pending else 1,
            reason="the disk is full" if state is FleetState.FAILED else "",
        )  # fmt: skip
    made = Rollout(1, spec, members, begun - timedelta(hours=1), stage=0, stage_opened_at=begun)
    rollouts.add(connection, made, NOW)


def _history(connection: Any, count: int, draw: random.Random) -> None:
    """Each profile's bundle of the old release: hours of a week, minutes of the last day, with ten things that are watched."""
    bins = [1000] * 10
    edges = [float(edge) for edge in range(11)]
    reference = Reference(inputs={f"x[{n}]": Histogram(edges, bins) for n in range(10)})
    rows = []
    for profile in crowd.PROFILES:
        digest = crowd.sha256_of(crowd.OLD, profile)
        kept = {"sha256": digest, "reference": msgspec.json.encode(reference)}
        connection.execute(insert(references), [kept])
        times = [(Level.MINUTE, 60.0 * at) for at in range(1440)]
        times += [(Level.HOUR, 3600.0 * hour) for hour in range(24, 24 * _DAYS)]
        for level, ago in times:
            one = crowd.window(crowd.OLD, ms=8.0 + draw.random())
            seen = {f"inputs/x[{n}]": [draw.randrange(900, 1100) for _ in bins] for n in range(10)}
            devices = (count // 4,) * 3
            sums = ReleaseSums(
                60 * count, *devices, count * 900, count // 7, one.infer_ms, 60, draw.random() * 9, seen
            )
            rows.append(
                {
                    "deployment": "digits",
                    "digest": digest,
                    "level": level.value,
                    "at": level.begin(NOW) - ago,
                    "sums": history.packed(sums),
                }
            )
    connection.execute(insert(release_history), rows)


def _experiment(connection: Any, count: int, draw: random.Random) -> None:
    connection.execute(
        insert(experiments),
        [
            {
                "id": 1, "status": "running", "deployment": "digits", "name_a": "digits", "version_a": "1", "name_b": "digits",
                "version_b": "2", "selector": "all", "share": 0.5, "goal": "latency_mean", "planned": count, "reason": "",
                "created_at": NOW - 86_400, "updated_at": NOW,
            }
        ],
    )  # fmt: skip
    connection.execute(
        insert(units),
        [
            {
                "experiment": 1, "device": crowd.name(number), "arm": "AB"[number % 2], "target": crowd.OLD, "previous": None,
                "wanted": crowd.OLD, "is_due": False, "joined_at": NOW - 86_400, "windows": 60, "requests": 3600, "errors": 2,
                "observed": 3600.0, "total": 3600 * draw.gauss(2.0, 0.3),
            }
            for number in range(count)
        ],
    )  # fmt: skip


@contextmanager
def served(inside: Inside) -> Iterator[str]:
    config = uvicorn.Config(
        inside.app, port=0, log_level="warning", lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


def measure(database: Database, folder: Path, only: str = "") -> list[Cost]:
    """Each page of an operator who reaches the whole fleet."""
    inside = Inside(folder / "inside")
    inside.database.close()
    inside.database = database
    inside.context.__dict__["database"] = database
    with database.begin() as connection:
        users.add(
            connection,
            "ann",
            passwords.hashed("correct horse"),
            Grant(Role.ADMIN, Scope("")),
            now=NOW,
            who=audit.FLEET,
        )
        secret = sessions.begin(connection, "ann", now=NOW, who=audit.Who("user:ann"))
    token = inside.token("bench", Role.ADMIN)
    filters = [str(httpx.QueryParams({"where": text})) for text in FILTERS]
    paths = [
        *PAGES,
        *(f"/devices?{one}" for one in filters),
        *(f"/api/v1/devices?{one}&count=true&limit=1" for one in filters),
    ]
    found = []
    with served(inside) as url, httpx.Client(base_url=url, timeout=60, cookies={"edgekit": secret}) as client:
        client.headers["accept"] = "text/html"
        for path in paths:
            if only in path:
                api = (
                    {"Authorization": f"Bearer {token}", "Accept": "application/json"}
                    if "/api/" in path
                    else {}
                )
                found.append(_cost(client, database, path, api))
    inside.folder.close()
    return found


def _cost(client: httpx.Client, database: Database, path: str, headers: dict[str, str]) -> Cost:
    def ask() -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        response = client.get(path, headers=headers)
        if response.status_code != 200:
            raise RuntimeError(f"{path}: {response.status_code} {response.text[:300]}")
        return 1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu)

    anew = []
    for _ in range(_ANEW):
        memory.forget(database)
        anew.append(ask()[0])
    spent = [ask() for _ in range(_TIMES)]
    walls, cpus = (sorted(one) for one in zip(*spent, strict=True))
    middle = _TIMES // 2
    return Cost(
        path, *(round(v, 1) for v in (sorted(anew)[_ANEW // 2], walls[middle], walls[-1], cpus[middle]))
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=100_000)
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--only", default="", help="paths that have this in them")
    parser.add_argument(
        "--keep", type=Path, help="a folder that keeps the SQLite file, or has it from before"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.postgres:
            with ground.postgres() as server:
                database = Database(server.url)
                fill(database, given.devices)
                _run(database, given, folder)
        else:
            file = (given.keep or folder) / "filled.db"
            if not file.exists():
                database = Database(f"sqlite:///{file}")
                fill(database, given.devices)
                database.close()
            shutil.copy(file, folder / "pages.db")
            _run(Database(f"sqlite:///{folder / 'pages.db'}"), given, folder)


def _run(database: Database, given: argparse.Namespace, folder: Path) -> None:
    load = os.getloadavg()[0]
    for cost in measure(database, folder, given.only):
        print(
            f"{cost.anew:8.1f} {cost.wall:8.1f} {cost.slowest:8.1f} {cost.cpu:8.1f}  {cost.path}", flush=True
        )
    print(json.dumps({"load_before": load, "load_after": os.getloadavg()[0], "cpus": os.cpu_count()}))
    database.close()


if __name__ == "__main__":
    main()
