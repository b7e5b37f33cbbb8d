"""The fleet's metrics: what they say, who may read them, and that a real Prometheus understands them, its rules and the
dashboards.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import msgspec
import pytest
from access_support import Inside
from fleet_support import Service, free_port, make_bundle, wait_until
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import delete, insert, update
from sqlalchemy.exc import OperationalError
from store_support import NOW, enrolled, report, rollout_of

from fleet import api
from fleet.client import publishing
from fleet.publish import make_key
from fleet.rules.access import Role
from fleet.rules.gates import Outcome, Verdict
from fleet.server import changes, gauges, ingest, metrics, schema
from fleet.server.clock import Clock, same
from fleet.server.database import Database, sqlite_url
from fleet.server.metrics import Metrics, Process
from fleet.server.schema_alerts import drops
from fleet.server.store import audit, workers
from fleet.server.store.orders import Issuer

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARDS = sorted((ROOT / "deploy" / "grafana").glob("*.json"))
RULES = PROMETHEUS / "edgekit.rules.yml"
RULES_TEST = ROOT / "tests" / "deploy" / "edgekit.rules.test.yml"
NAME = re.compile(r"\b((?:edgekit|process)_[a-z0-9_]+)\b")

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="Prometheus is not installed: apt-get install prometheus",
)


def values(text: bytes | str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """(name, labels) → value, as Prometheus' own parser reads it."""
    found = {}
    for family in text_string_to_metric_families(text if isinstance(text, str) else text.decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"{key} twice"
            found[key] = sample.value
    return found


def key(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted(labels.items()))


def fill(database: Database, folder: Path) -> Database:
    """Three devices that reported, a rollout whose gate is violated, a worker that dropped something."""
    names = ["d1", "d2", "d3"]
    enrolled(database, names)
    issuer = Issuer("fleet-1", make_key(folder / "order.key"))
    ingest.take_in(database, [report(name, 1, NOW) for name in names], same(NOW))
    with database.begin() as connection:
        connection.execute(update(schema.devices).where(schema.devices.c.id == "d3").values(is_online=False))
        made = changes.begin(connection, issuer, rollout_of(names), now=same(NOW), who=audit.FLEET)
        violated = msgspec.structs.replace(
            made, members={}, verdicts=(Verdict("error_rate < 1%", Outcome.VIOLATED, "4 %"),)
        )
        connection.execute(update(schema.rollouts).values(state=msgspec.json.encode(violated)))
        workers.beat(
            connection, "w1", "host", now=NOW, is_hearing=True, stored=70, dropped={"unknown device": 3}
        )
    return database


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Database]:
    made = Database(sqlite_url(tmp_path))
    yield fill(made, tmp_path)
    made.close()


@pytest.fixture
def either(database: Database, tmp_path: Path) -> Database:
    """The same on each kind of database, for what SQL says differently."""
    return fill(database, tmp_path)


def made(database: Database, **process: Any) -> Metrics:
    return Metrics(database, Process(clock=Clock(lambda: NOW, lambda: NOW), **process), "fleet-1")


def test_they_say_what_the_fleet_and_its_service_do(either: Database) -> None:
    found = values(
        made(
            either,
            stored=lambda: 40,
            dropped=lambda: {"queue full": 2},
            late_since=lambda: NOW - 12,
            queued=lambda: 5,
            messages=lambda: (7, 1),
            is_controller=lambda: False,
        ).text()
    )
    release = {"deployment": "digits", "release": "digits@1", "profile": "p"}
    wanted = {
        key("edgekit_fleet_devices", state="online"): 2,
        key("edgekit_fleet_devices", state="offline"): 1,
        key("edgekit_fleet_devices", state="never_heard"): 0,
        key("edgekit_fleet_devices_troubled", what="copied"): 0,
        key("edgekit_fleet_is_controller"): 0,
        key("edgekit_fleet_broker_connected"): 1,
        key("edgekit_fleet_database_up"): 1,
        key("edgekit_fleet_ingest_late_seconds"): 12,
        key("edgekit_fleet_ingest_queue"): 5,
        key("edgekit_fleet_reports_total", worker="service"): 40,
        key("edgekit_fleet_reports_total", worker="w1"): 70,
        key("edgekit_fleet_dropped_messages_total", worker="service", reason="queue full"): 2,
        key("edgekit_fleet_dropped_messages_total", worker="w1", reason="unknown device"): 3,
        key("edgekit_fleet_workers_hearing"): 1,
        key("edgekit_fleet_alert_messages_total", outcome="arrived"): 7,
        key("edgekit_fleet_alert_messages_total", outcome="failed"): 1,
        key("edgekit_fleet_rollouts", status="running"): 1,
        key("edgekit_rollout_stage", rollout="r1", release="digits@2", status="running"): 1,
        key("edgekit_rollout_stages", rollout="r1", release="digits@2"): 1,
        key("edgekit_rollout_gate_violated", rollout="r1", release="digits@2", gate="error_rate < 1%"): 1,
        key("edgekit_release_windows_total", **release): 3,
        key("edgekit_release_requests_total", **release): 300,
        key("edgekit_release_errors_total", **release): 3,
        key("edgekit_release_devices", **release): 3,
    }
    assert {name: found.get(name) for name in wanted} == wanted
    assert found[key("edgekit_release_infer_seconds_total", **release)] == pytest.approx(0.6)
    assert sum(v for (name, _), v in found.items() if name == "edgekit_rollout_devices") == 3
    assert found[key("edgekit_fleet_outbox_orders")] == 3


def test_a_tick_is_counted_by_its_time(filled: Database) -> None:
    here = made(filled)
    here.tick(0.02)
    here.tick(7)
    found = values(here.text())
    assert found[key("edgekit_fleet_tick_seconds_bucket", le="0.025")] == 1
    assert found[key("edgekit_fleet_tick_seconds_count")] == 2


def test_a_counter_does_not_go_down_when_a_device_is_deleted(
    filled: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "FRESH_S", 0.0)
    here = made(filled)
    name = key("edgekit_release_requests_total", deployment="digits", release="digits@1", profile="p")
    assert values(here.text())[name] == 300
    with filled.begin() as connection:
        connection.execute(delete(schema.totals).where(schema.totals.c.device == "d1"))
    assert values(here.text())[name] == 300
    ingest.take_in(filled, [report("d2", 2, NOW)], same(NOW))
    assert values(here.text())[name] == 400
    assert values(made(filled).text())[name] == 300, "another process counts from what there is: a restart"


def test_the_database_is_asked_once_however_many_scrape(
    filled: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    read = gauges.read

    def counted(*given: Any) -> Any:
        nonlocal asked
        asked += 1
        return read(*given)

    monkeypatch.setattr(gauges, "read", counted)
    here = made(filled)
    for _ in range(10):
        here.text()
    assert asked == 1


def test_a_database_that_is_away_leaves_what_the_process_knows(
    filled: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> Any:
        raise OperationalError("SELECT", {}, Exception("away"))

    monkeypatch.setattr(gauges, "read", away)
    found = values(made(filled, stored=lambda: 9).text())
    assert found[key("edgekit_fleet_database_up")] == 0
    assert found[key("edgekit_fleet_reports_total", worker="service")] == 9
    assert not [name for name, _ in found if name.startswith("edgekit_release")]


def test_no_series_is_a_devices(filled: Database) -> None:
    before = len(values(made(filled).text()))
    row = {
        "labels": "{}", "deployments": "[]", "created_at": NOW, "enrolment": 1, "profile": "p", "is_online": True,
    }  # fmt: skip
    with filled.begin() as connection:
        connection.execute(insert(schema.devices), [row | {"id": f"more-{n}"} for n in range(500)])
    text = made(filled).text()
    assert len(values(text)) == before
    assert b"more-" not in text


def test_the_drops_of_a_worker_that_is_gone_are_forgotten(filled: Database) -> None:
    with filled.begin() as connection:
        workers.prune(connection, NOW + 1)
        assert workers.dropped(connection)
        workers.prune(connection, NOW + 4000)
        assert workers.dropped(connection) == {}
        assert connection.execute(drops.select()).all() == []


def test_metrics_ask_for_a_token_of_the_whole_fleet(tmp_path: Path) -> None:
    inside = Inside(tmp_path / "fleet")
    try:
        assert inside.client().get("/metrics").status_code == 401
        scoped = inside.client(inside.token("lab", Role.ADMIN, "site=lab"))
        assert scoped.get("/metrics").status_code == 403
        answer = inside.client(inside.token("prom", Role.VIEWER)).get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == metrics.CONTENT_TYPE
        assert values(answer.content)[key("edgekit_fleet_database_up")] == 1
    finally:
        inside.close()


# -- rules and dashboards --------------------------------------------------------------------------------------------


def expressions() -> list[str]:
    """Every query of every panel."""
    return [
        target["expr"]
        for path in DASHBOARDS
        for panel in json.loads(path.read_text())["panels"]
        for target in panel.get("targets", ())
    ]


def test_rules_and_dashboards_name_only_metrics_that_there_are(filled: Database) -> None:
    here = made(filled, dropped=lambda: {"x": 1})
    there = {
        name for family in text_string_to_metric_families(here.text().decode()) for name in names_of(family)
    }
    asked = set(NAME.findall(RULES.read_text())) | {
        name for expr in expressions() for name in NAME.findall(expr)
    }
    asked -= {"edgekit_fleet", "edgekit_figures"}
    assert asked - there == set()
    assert len(asked) > 20


def names_of(family: Any) -> set[str]:
    ends = ("", "_total", "_bucket", "_count", "_sum")
    return {family.name + end for end in ends}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_one_that_grafana_lays_out(path: Path) -> None:
    board = json.loads(path.read_text())
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(numbers) == len(set(numbers))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, f"{panel['title']} lies over another"
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}", "no data source of ours is in it"
            assert panel["fieldConfig"]["defaults"]["unit"], "no figure without a unit"
            assert panel["targets"]
    assert board["uid"] == path.stem


@needs_prometheus
def test_promtool_finds_nothing_wrong_with_the_rules_and_each_fires_when_it_should(tmp_path: Path) -> None:
    def check() -> tuple[int, str]:
        words = ["promtool", "test", "rules", str(tmp_path / RULES_TEST.name)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
        return done.returncode, done.stdout + done.stderr

    for path in (RULES, RULES_TEST, PROMETHEUS / "prometheus.yml"):
        shutil.copy(path, tmp_path)
    for name in ("edgekit.token", "edgekit-ca.pem"):
        (tmp_path / name).touch()
    subprocess.run(
        ["promtool", "check", "config", tmp_path / "prometheus.yml"], check=True, capture_output=True
    )
    assert check()[0] == 0, check()[1]
    rules = tmp_path / RULES.name
    rules.write_text(
        rules.read_text().replace("max(edgekit_fleet_ingest_late_seconds) > 30", "vector(0) > 1")
    )
    code, told = check()
    assert code != 0
    assert "EdgeKitIngestLate" in told


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Any]:
    """Starts a real Prometheus on a configuration; where it listens."""
    running: list[subprocess.Popen[bytes]] = []

    def start(config: Path) -> str:
        port = free_port()
        command = [
            "prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
        ]  # fmt: skip
        running.append(subprocess.Popen(command, stderr=(tmp_path / "prometheus.log").open("wb")))
        return f"http://127.0.0.1:{port}"

    yield start
    for process in running:
        process.terminate()
        process.wait(20)


@needs_prometheus
def test_a_real_prometheus_scrapes_a_real_service_and_draws_every_panel(
    running: Service, prometheus: Any, tmp_path: Path
) -> None:
    client = running.client()
    [checked] = publishing.check(client, [make_bundle(running.folder / "b", "1.0")])
    publishing.publish(client, checked, running.state / "publisher", lambda _: None)
    token = client.add_token(api.NewToken("prometheus", "viewer"))
    config = tmp_path / "prometheus.yml"
    text = (PROMETHEUS / "prometheus.yml").read_text()
    # The shipped file but for where the fleet is, which has no TLS on loopback.
    text = text.replace("fleet.example:8443", f"127.0.0.1:{running.http_port}").replace(
        "scheme: https", "scheme: http"
    )
    config.write_text(
        re.sub(r" +tls_config:\n +ca_file:.*\n", "", text).replace("_interval: 15s", "_interval: 1s")
    )
    (tmp_path / "edgekit.token").write_text(token.secret + "\n")
    shutil.copy(RULES, tmp_path)
    devices = running.simulated(
        3, "--window", "0.5s", "--fetch", "0s", "--probation", "0s", "--duration", "60s"
    )
    started = {"gates": ("install_failures < 50%",), "soak": "0s", "stages": "100%", "holdback": "0"}
    wait_until(
        lambda: sum(one.online for one in client.devices()) == 3, "all devices are there", timeout_s=40
    )
    client.start(api.NewRollout(release="digits@1.0", to="all", **started))
    url = prometheus(config)

    def ask(expression: str) -> list[Any]:
        response = httpx.get(f"{url}/api/v1/query?{urlencode({'query': expression})}", trust_env=False)
        answer = response.raise_for_status().json()
        assert answer["status"] == "success", (expression, answer)
        found: list[Any] = answer["data"]["result"]
        return found

    def has(expression: str) -> bool:
        try:
            return bool(ask(expression))
        except httpx.HTTPError:
            # Not listening yet, or still opening its database (503).
            return False

    wait_until(lambda: has('up{job="edgekit-fleet"} == 1'), "the service is scraped", timeout_s=40)
    wait_until(lambda: has("rate(edgekit_release_requests_total[1m]) > 0"), "a release answers", timeout_s=60)
    silent = [expr for expr in expressions() if not ask(expr.replace("$release", ".*"))]
    # What needs something to be wrong, or a rollout that is still under way.
    quiet = ("edgekit_fleet_alerts)", "edgekit_rollout_", "edgekit_release_drifted", "dropped_messages")
    assert [expr for expr in silent if not any(word in expr for word in quiet)] == []
    rules = httpx.get(f"{url}/api/v1/rules", trust_env=False).json()["data"]["groups"]
    health = {rule["health"] for group in rules for rule in group["rules"]}
    assert health <= {"ok", "unknown"}
    assert sum(len(group["rules"]) for group in rules) == 18
    devices.terminate()
    devices.wait(20)
    client.close()
