"""How far one service goes: PostgreSQL, mosquitto, the fleet and its virtual devices, all on this machine.

    python -m bench.fleet.scale [PART …] [--devices N] [--minutes M] [--out FILE.json] [--plot FILE.png]

Parts (all of them unless some are named)
  intake   reports a second, durable, with workers, against a bare subscriber that only counts, in the same run
  steady   devices that report each minute: sent = stored, delay, CPU and memory of each process
  tables   a tick with all devices in an open stage, planning over them, a page of devices: from 1,000 up, as a plot
  rollout  devices rolled out with soak 0: time against what the rate allows
  faults   broker and database restarted in the middle: counts before and after

What each process costs is read from /proc: CPU time of the process with its children, memory as proportional set size.
Where the goal of a figure is known, it is printed beside it. Load of others is printed too: figures of a busy machine
are worth less.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from sqlalchemy import func, select

from bench.fleet import crowd, ground
from edgekit.errors import EdgeKitError
from edgekit.wire import topics
from edgekit.wire.messages import encode
from fleet import api
from fleet.client.config import find
from fleet.client.rest import Client
from fleet.publish import make_key
from fleet.server import changes, ingest, planning, schema
from fleet.server.broker_config import PACKET_BYTES
from fleet.server.clock import Clock, same
from fleet.server.controller import Controller
from fleet.server.database import Database
from fleet.server.inbox import Message
from fleet.server.store import audit
from fleet.server.store.orders import Issuer

T0 = 1_790_000_000.0
Figures = dict[str, Any]


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')} load {os.getloadavg()[0]:.1f}] {text}", file=sys.stderr, flush=True)


@dataclass
class Site:
    """A fleet with workers on PostgreSQL and mosquitto, each a process of its own."""

    folder: Path
    postgres: ground.Postgres
    workers: int
    http: int = field(default_factory=ground.free_port)
    mqtt: int = field(default_factory=ground.free_port)
    broker: "subprocess.Popen[bytes] | None" = None
    service: "subprocess.Popen[bytes] | None" = None

    @property
    def state(self) -> Path:
        return self.folder / "fleet"

    def edgekit(self, *more: str) -> list[str]:
        return [sys.executable, "-m", "edgekit", "fleet", *more]

    def start(self) -> None:
        self.start_broker()
        self.start_service()

    def start_broker(self) -> None:
        config = self.folder / "mosquitto.conf"
        config.write_text(
            f"listener {self.mqtt} 127.0.0.1\nallow_anonymous true\npersistence false\n"
            f"max_packet_size {PACKET_BYTES}\nmax_queued_messages 100000\nlog_type error\n"
        )
        self.broker = subprocess.Popen(["mosquitto", "-c", str(config)], preexec_fn=_many_files)  # noqa: PLW1509  # before anything else runs
        ground.wait_until(lambda: _answers(self.mqtt), "the broker answers")

    def stop_broker(self) -> None:
        if self.broker is not None:
            self.broker.terminate()
            self.broker.wait(30)
            self.broker = None

    def start_service(self) -> None:
        # mosquitto runs apart, so that it can be stopped alone: 'localhost' without TLS is what fleet up allows.
        command = self.edgekit(
            "up", "--state", str(self.state), "--database", self.postgres.url, "--http", f"127.0.0.1:{self.http}",
            "--broker", f"mqtt://127.0.0.1:{self.mqtt}", "--workers", str(self.workers),
        )  # fmt: skip
        self.service = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=(self.folder / "log").open("ab")
        )
        ground.wait_until(lambda: _is_ready(self.http), "the service answers", 120)

    def stop(self) -> None:
        if self.service is not None:
            self.service.terminate()
            self.service.wait(30)
        self.stop_broker()

    def client(self) -> Client:
        return Client(find(str(self.state)))

    def simulate(self, devices: int, *more: str) -> "subprocess.Popen[bytes]":
        command = self.edgekit(
            "--fleet", str(self.state), "simulate", "--devices", str(devices), "--state", str(self.folder / "sim"),
            "--json", *more,
        )  # fmt: skip
        return subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=_many_files)  # noqa: PLW1509  # before anything else runs

    def pids(self) -> dict[str, int]:
        assert self.service is not None
        assert self.broker is not None
        assert self.postgres.process is not None
        return {
            "fleet": self.service.pid,
            "mosquitto": self.broker.pid,
            "postgresql": self.postgres.process.pid,
        }


def _many_files() -> None:
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _answers(port: int) -> bool:
    import socket

    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.5):
            return True
    except OSError:
        return False


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v1/crl.pem", trust_env=False, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def site(workers: int) -> Iterator[Site]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgekit-bench-")))
        made = Site(folder, stack.enter_context(ground.postgres()), workers)
        stack.callback(made.stop)
        made.start()
        yield made


class Watch:
    """CPU and memory of processes while a measurement runs."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids, self._began = pids, time.monotonic()
        self._before = {name: ground.cost(pid) for name, pid in pids.items()}
        self._most = dict.fromkeys(pids, 0.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._stop.wait(5):
            for name, pid in self._pids.items():
                self._most[name] = max(self._most[name], ground.cost(pid).memory_mb)

    def told(self) -> Figures:
        self._stop.set()
        seconds = time.monotonic() - self._began
        found = {}
        for name, pid in self._pids.items():
            now = ground.cost(pid)
            cores = (now.cpu_s - self._before[name].cpu_s) / seconds
            found[name] = {"cores": round(cores, 3), "memory_mb": round(max(self._most[name], now.memory_mb))}
        return found


def stored(database: Database) -> int:
    with database.read() as connection:
        return int(connection.execute(select(func.count()).select_from(schema.reports)).scalar_one())


# --- intake ---


def _send(port: int, messages: list[tuple[str, bytes]]) -> None:
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.max_inflight_messages_set(15)
    client.connect("127.0.0.1", port)
    client.loop_start()
    last = None
    for topic, payload in messages:
        last = client.publish(topic, payload, qos=1)
    assert last is not None
    last.wait_for_publish(600)
    client.disconnect()
    client.loop_stop()


def intake(devices: int, workers: int) -> Figures:
    """The same reports to a bare subscriber, and to the workers: from the first sent to the last counted (stored)."""
    with ground.postgres() as server, tempfile.TemporaryDirectory() as folder:
        made = Site(Path(folder), server, workers)
        try:
            made.start_broker()
            rounds = max(1, 30_000 // devices)
            first = _ready(devices, range(rounds))
            bare = _timed(made.mqtt, first, _bare(made.mqtt, len(first)))
            say(f"intake: a bare subscriber counts {bare:.0f} reports/s")
            # Only now the workers: they would take the same reports in.
            made.start_service()
            database = Database(server.url)
            crowd.fill(database, devices, time.time())
            # What nobody subscribes to is gone.
            ground.wait_until(lambda: _hearing(database) == workers, "the workers hear")
            before = stored(database)
            watch = Watch(made.pids())
            durable = _timed(made.mqtt, first, lambda: stored(database) - before >= len(first))
            costs = watch.told()
            database.close()
        finally:
            made.stop()
    ratio = durable / bare
    return {
        "reports": len(first), "workers": workers, "bare_per_s": round(bare), "durable_per_s": round(durable),
        "ratio": round(ratio, 3), "goal": 0.6, "costs": costs,
    }  # fmt: skip


def _hearing(database: Database) -> int:
    with database.read() as connection:
        return sum(row.is_hearing for row in connection.execute(select(schema.workers)))


def _ready(devices: int, seqs: range) -> list[tuple[str, bytes]]:
    now = time.time()
    return [
        (
            topics.of(crowd.name(number), topics.TELEMETRY),
            encode(crowd.report(number, 1 + seq, now, crowd.sha256_of(crowd.OLD, crowd.profile_of(number)))),
        )
        for seq in seqs
        for number in range(devices)
    ]


def _bare(port: int, count: int) -> Callable[[], bool]:
    """A subscriber that only counts."""
    got = [0]

    def on_message(*_: object) -> None:
        got[0] += 1

    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.on_message = on_message
    client.connect("127.0.0.1", port)
    client.subscribe(topics.of_all(topics.TELEMETRY), qos=1)
    client.loop_start()
    time.sleep(0.5)

    def is_done() -> bool:
        if got[0] >= count:
            client.disconnect()
            client.loop_stop()
        return got[0] >= count

    return is_done


def _timed(port: int, messages: list[tuple[str, bytes]], is_done: Callable[[], bool]) -> float:
    """Messages a second; the sender is a process of its own."""
    child = os.fork()
    if child == 0:
        _send(port, messages)
        os._exit(0)
    began = time.monotonic()
    while not is_done():
        time.sleep(0.05)
        if time.monotonic() - began > 600:
            raise TimeoutError("not all reports arrived within ten minutes")
    seconds = time.monotonic() - began
    os.waitpid(child, 0)
    return len(messages) / seconds


# --- steady, rollout, faults ---


def steady(devices: int, minutes: float, workers: int, window_s: float = 60.0) -> Figures:
    # A process of this shell may have so many files, so mosquitto so many connections.
    share = -(-devices // _most_connections())
    with site(workers) as made:
        say(
            f"steady: {devices} devices report each {window_s:g} s for {minutes:g} min, {share} on a connection"
        )
        # What enrolling costs is measured on some; the others stand in tables and folder as if they had.
        joined = json.loads(
            made.simulate(min(devices, 500), "--duration", "0s", "--settle", "0s").communicate()[0]
        )
        database = Database(made.postgres.url)
        crowd.fill(database, devices, time.time())
        file = json.loads((made.folder / "sim" / "devices.json").read_text())["file"]
        (made.folder / "sim" / "devices.json").write_text(
            json.dumps({"file": file, "devices": [_identity(number) for number in range(devices)]})
        )
        before = stored(database)
        run = made.simulate(
            devices, "--duration", f"{minutes * 60 + devices / 1000:.0f}s", "--window", f"{window_s}s", "--ramp",
            "1000", "--settle", "60s", "--per-connection", str(share),
        )  # fmt: skip
        time.sleep(devices / 1000 + 5)
        watch = Watch({**made.pids(), "simulator": run.pid})
        time.sleep(max(1.0, minutes * 60 - 10))
        costs = watch.told()
        told = json.loads(run.communicate()[0])
        arrived = stored(database) - before
        database.close()
    return {
        "devices": devices, "connections": told["connected"], "minutes": minutes, "window_s": window_s,
        "enrolled_per_s": round(joined["enrolled"] / max(0.001, joined["enrol_s"])), "sent": told["reports_sent"],
        "stored": arrived, "is_complete": told["reports_sent"] == arrived, "resent": told["reports_resent"],
        "delay_ms_p50": told["delay_ms_p50"], "delay_ms_p99": told["delay_ms_p99"], "costs": costs,
        "goal": {"fleet_cores": 1.5, "fleet_memory_mb": 2048},
    }  # fmt: skip


def _identity(number: int) -> list[object]:
    """Of `fleet.simulate.device.Identity`: as `crowd` has put it into the tables."""
    profile = crowd.profile_of(number)
    runs = [["digits", crowd.sha256_of(crowd.OLD, profile), "digits", "1"]]
    return [crowd.name(number), 1, profile, 3, "", runs]


def _most_connections() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 1000


def published(made: Site, versions: tuple[str, ...]) -> None:
    """Bundles that no device opens."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "fleet"))
    from fleet_support import make_bundle  # after the line that makes it importable

    for version in versions:
        path = make_bundle(made.folder / "bundles", version)
        subprocess.run(
            made.edgekit("--fleet", str(made.state), "publish", str(path)),
            check=True,
            stdout=subprocess.DEVNULL,
        )


def rollout(devices: int, workers: int) -> Figures:
    """From `start` to completed; no gate that waits for windows, so that only orders and answers take time."""
    with site(workers) as made:
        say(f"rollout: {devices} devices")
        published(made, ("1.0",))
        quick = ("--window", "30s", "--fetch", "1s", "--probation", "1s", "--ramp", "1000", "--drops", "0")
        run = made.simulate(devices, *quick)
        client = made.client()
        ground.wait_until(lambda: client.status().online >= devices, "all are online", 1800)
        ground.wait_until(lambda: _eligible(client, devices), "all have reported", 600)
        began = time.monotonic()
        watch = Watch({**made.pids(), "simulator": run.pid})
        answer = client.start(
            api.NewRollout(
                release="digits@1.0", to="all", stages="100%", soak="0s", holdback="0",
                gates=("install_failures < 5%",), deadline="30m",
            )
        )  # fmt: skip
        started_s = time.monotonic() - began
        assert answer.rollout is not None
        name = answer.rollout.id
        ground.wait_until(lambda: _status(made, name) != "running", "it ended", 1800)
        seconds = time.monotonic() - began
        status = _status(made, name)
        client.close()
        costs = watch.told()
        run.terminate()
        told = json.loads(run.communicate()[0])
    return {
        "devices": devices, "status": status, "start_s": round(started_s, 2), "seconds": round(seconds, 1),
        "devices_per_s": round(devices / seconds), "updates": told["updates"],
        "allowed": "500 orders a tick of 1 s, and 2 s of simulated update", "costs": costs,
    }  # fmt: skip


def faults(devices: int, workers: int, window_s: float = 5.0) -> Figures:
    """Reports all the time; the broker is restarted, then the database, then one worker is killed."""
    with site(workers) as made:
        say(f"faults: {devices} devices, a report each {window_s:g} s")
        run = made.simulate(
            devices, "--duration", "90s", "--window", f"{window_s}s", "--ramp", "1000", "--settle", "120s"
        )
        database = Database(made.postgres.url)
        ground.wait_until(lambda: stored(database) > devices, "reports are stored", 900)
        counts = {"before": stored(database)}
        made.stop_broker()
        time.sleep(3)
        made.start_broker()
        time.sleep(20)
        counts["after_broker"] = stored(database)
        database.close()
        made.postgres.stop()
        time.sleep(5)
        made.postgres.start()
        time.sleep(20)
        database = Database(made.postgres.url)
        counts["after_database"] = stored(database)
        told = json.loads(run.communicate()[0])
        counts["end"] = stored(database)
        database.close()
    return {
        "devices": devices, "counts": counts, "sent": told["reports_sent"], "acknowledged": told["reports_acknowledged"],
        "resent": told["reports_resent"], "is_complete": told["reports_sent"] == counts["end"],
        "connections": told["connections"], "delay_ms_p99": told["delay_ms_p99"],
    }  # fmt: skip


def _eligible(client: Client, devices: int) -> bool:
    try:
        answer = client.start(
            api.NewRollout(
                release="digits@1.0", to="all", gates=("install_failures < 5%",), holdback="0", dry_run=True
            )
        )
    except EdgeKitError:
        return False  # nobody has reported yet
    return sum(len(names) for names in answer.plan.eligible.values()) >= devices


def _status(made: Site, rollout: str) -> str:
    database = Database(made.postgres.url)
    try:
        with database.read() as connection:
            number = int(rollout.removeprefix("r"))
            found = select(schema.rollouts.c.status).where(schema.rollouts.c.id == number)
            return str(connection.execute(found).scalar_one())
    finally:
        database.close()


# --- tables ---


def tables(devices: int) -> Figures:
    """What a tick, a plan and a page cost with so many devices in the tables."""
    with ground.postgres() as server, tempfile.TemporaryDirectory() as folder:
        database = Database(server.url)
        crowd.fill(database, devices, T0)
        say(f"tables: {devices} devices")
        found: Figures = {"devices": devices}
        found["page_ms"] = _page(database, Path(folder))
        passing = SimpleNamespace(seconds=T0)
        clock = Clock(lambda: passing.seconds, lambda: passing.seconds)
        issuer = Issuer("fleet-1", make_key(Path(folder) / "order.key"))
        link = cast("Any", SimpleNamespace(is_connected=False, connected_since=T0 - 100))
        controller = Controller(database, issuer, link, clock)
        assert controller.follow()
        wanted = api.NewRollout(
            release="digits@2", to="all", stages="50%,100%",
            gates=("error_rate < 1%", "latency_p95 <= 1.1 * control", "latency_p95 <= 50ms"),
        )  # fmt: skip
        with database.begin() as connection:
            planned, found["plan_s"] = _clocked(lambda: planning.plan(connection, wanted, same(T0)))
            changes.begin(connection, issuer, planned[0], now=same(T0), who=audit.FLEET)
        found["open_tick_ms"] = _open(controller, database, passing, planned[0].roster)
        _everybody(controller, database, passing, devices)
        found |= _ticks(controller, database, passing, devices)
        controller.stop()
        database.close()
    return found


def _clocked(call: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    made = call()
    return made, round(time.perf_counter() - began, 4)


def _tick(controller: Controller, passing: SimpleNamespace) -> float:
    passing.seconds += 1
    return 1000 * _clocked(lambda: controller.tick(same(passing.seconds)))[1]


def _open(controller: Controller, database: Database, passing: SimpleNamespace, roster: Any) -> float:
    """Ticks until everybody of the stage has an order; the middle one."""
    spent, before = [], -1
    while True:
        spent.append(_tick(controller, passing))
        with database.read() as connection:
            count = connection.execute(select(func.count()).select_from(schema.outbox)).scalar_one()
        if count == before or count >= len(roster):
            return round(sorted(spent)[len(spent) // 2], 1)
        before = count


def _everybody(controller: Controller, database: Database, passing: SimpleNamespace, devices: int) -> None:
    """All that were ordered say that they are there, and all report once."""
    with database.read() as connection:
        columns = (schema.members.c.device, schema.members.c.order_counter)
        counters = dict(connection.execute(select(*columns)).all())
    said = [
        Message(
            topics.of(crowd.name(n), topics.REPORTED),
            encode(
                crowd.reported(n, 2, counters[crowd.name(n)], crowd.sha256_of(crowd.NEW, crowd.profile_of(n)))
            ),
        )
        for n in range(devices)
        if counters[crowd.name(n)]
    ]
    _take(database, said, passing)
    _tick(controller, passing)
    passing.seconds += 60
    _take(database, [_report(n, 10, passing.seconds) for n in range(devices)], passing)
    for _ in range(3):
        _tick(controller, passing)


def _ticks(
    controller: Controller, database: Database, passing: SimpleNamespace, devices: int, count: int = 60
) -> Figures:
    """A minute of ticks, each with a sixtieth of the devices' reports, as they come."""
    idle = [_tick(controller, passing) for _ in range(5)]
    per_tick, spent, cpu = max(1, devices // 60), [], []
    for at in range(count):
        numbers = [(at * per_tick + k) % devices for k in range(per_tick)]
        _take(database, [_report(n, 11 + at, passing.seconds) for n in numbers], passing)
        before = time.process_time()
        spent.append(_tick(controller, passing))
        cpu.append(1000 * (time.process_time() - before))
    spent.sort()
    cpu.sort()
    return {
        "fresh_per_tick": per_tick, "tick_ms_p50": round(spent[count // 2], 1), "tick_ms_p95": round(spent[count * 95 // 100], 1),
        "tick_ms_max": round(spent[-1], 1), "tick_cpu_ms_p50": round(cpu[count // 2], 1), "tick_cpu_ms_max": round(cpu[-1], 1),
        "tick_idle_ms": round(sorted(idle)[2], 1),
    }  # fmt: skip


def _report(number: int, seq: int, ended: float) -> Message:
    digest = crowd.sha256_of(crowd.NEW if number % 2 else crowd.OLD, crowd.profile_of(number))
    payload = encode(crowd.report(number, seq, ended, digest))
    return Message(topics.of(crowd.name(number), topics.TELEMETRY), payload)


def _take(database: Database, messages: list[Message], passing: SimpleNamespace) -> None:
    for at in range(0, len(messages), ingest.BATCH):
        taken = ingest.take_in(database, messages[at : at + ingest.BATCH], same(passing.seconds))
        assert not taken.dropped, taken.dropped


def _page(database: Database, folder: Path) -> float:
    """`GET /devices`, the usual page of 500, from the middle of the fleet; the middle one of five."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "fleet"))
    from access_support import Inside  # after the line that makes it importable

    from fleet.rules.access import Role

    inside = Inside(folder / "inside")
    inside.database.close()
    inside.database = database
    inside.context.__dict__["database"] = database
    client = inside.client(inside.token("bench", Role.ADMIN))
    spent = []
    for _ in range(5):
        response, seconds = _clocked(lambda: client.get("/api/v1/devices?after=sim-000400"))
        assert response.status_code == 200, response.text
        assert len(response.json()) == 500
        spent.append(1000 * seconds)
    inside.folder.close()
    return round(sorted(spent)[2], 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help="intake, steady, tables, rollout, faults")
    parser.add_argument("--devices", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("bench/fleet/scale.json"))
    parser.add_argument("--plot", type=Path, default=Path("docs/scale.png"))
    given = parser.parse_args()
    sizes = sorted({min(size, given.devices) for size in (1_000, 3_000, 10_000, 30_000, 100_000)})
    parts: dict[str, Callable[[], Any]] = {
        "tables": lambda: [tables(size) for size in sizes],
        "intake": lambda: intake(min(given.devices, 10_000), given.workers),
        "rollout": lambda: rollout(min(given.devices, 10_000), given.workers),
        "faults": lambda: faults(min(given.devices, 1_000), given.workers),
        "steady": lambda: steady(given.devices, given.minutes, given.workers),
    }
    found: Figures = json.loads(given.out.read_text()) if given.out.exists() else {}
    for name in given.parts or parts:
        began = os.getloadavg()[0]
        found[name] = {"load_before": round(began, 1), "measured": parts[name]()}
        say(f"{name}: {json.dumps(found[name])}")
        given.out.write_text(json.dumps(found, indent=2) + "\n")
    if "tables" in found:
        from bench.fleet.plot import draw

        draw(found["tables"]["measured"], given.plot)


if __name__ == "__main__":
    main()
