"""Enrolment, the link to the fleet, telemetry, several deployments, and the commands around a running agent."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekit.manifest import FORMAT


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "edgekit", "agent", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def release(make_bundle):
    return make_bundle()


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("iotcore", marks=pytest.mark.proof),
        pytest.param(
            "mosquitto",
            marks=[
                pytest.mark.broker,
                pytest.mark.skipif(
                    not (shutil.which("mosquitto") or Path("/usr/sbin/mosquitto").exists()),
                    reason="mosquitto is not installed",
                ),
            ],
        ),
    ],
)
def test_a_broker_that_is_down_at_start_and_in_the_middle_stops_nothing(
    kind, brokers, broker_folder, make_fleet, make_agent, release, tools
):
    broker = brokers[kind](broker_folder, tools.free_port())
    fleet = make_fleet(broker=broker)
    agent = make_agent(fleet)
    tools.wait_until(lambda: "cannot be reached" in agent.log, "the agent tries")
    assert tools.Client(agent.port).get("/v2/health/live").status == 200
    broker.start()
    try:
        tools.wait_until(lambda: fleet.statuses, "the link is up")
        fleet.order(fleet.publish(release))
        tools.wait_until(lambda: fleet.runs(release), "the release is committed")
        broker.stop()
        tools.wait_until(lambda: "link down" in agent.log, "the agent notices")
        client = tools.Client(agent.port)
        for image in tools.digit_images(20):
            assert client.post("/predict", {"input": image.tolist()}).status == 200
        time.sleep(2.2)
        heard = len(fleet.reported)
        fleet.reports.clear()
        broker.start()
        tools.wait_until(
            lambda: len(fleet.reported) > heard, "it describes itself again to a broker that forgot", 40
        )
        tools.wait_until(
            lambda: sum(w.requests for r in fleet.reports for w in r.deployments) >= 20,
            "what happened without a link is reported",
            40,
        )
    finally:
        agent.stop()
        broker.stop()


def test_a_fleet_that_is_down_is_waited_for_and_a_refusal_is_told(make_fleet, make_agent, tools, tmp_path):
    fleet = make_fleet()
    port = tools.free_port()
    original = fleet.enrolment
    fleet.enrolment = lambda folder: original(folder, enrol_url=f"http://127.0.0.1:{port}/enrol")
    agent = make_agent(fleet)
    tools.wait_until(lambda: "the fleet cannot be reached" in agent.log, "the agent tries")
    assert agent.stop() == 0
    refused = command(
        "run", "--state", tmp_path / "refused", "--http", f"127.0.0.1:{port}", "--profile", "x86-64-v3",
        "--enrolment", original(tmp_path, token="wrong"),
    )  # fmt: skip
    assert refused.returncode == 5
    assert "the token is not valid" in refused.stderr


@pytest.mark.proof
def test_later_starts_need_no_enrolment_file(fleet, make_agent, release, tools):
    agent = make_agent(fleet)
    fleet.order(fleet.publish(release))
    tools.wait_until(lambda: fleet.runs(release), "the release is committed")
    agent.stop()
    words = agent._words
    where = words.index("--enrolment")
    del words[where : where + 2]
    agent.start()
    tools.wait_until(lambda: fleet.now.boot.incarnation == 4 and fleet.runs(release), "it is back")
    assert len(fleet.enrolled) == 1


def test_every_window_is_reported_idle_ones_too(fleet, make_agent, release, tools):
    agent = make_agent(fleet)
    fleet.order(fleet.publish(release))
    tools.wait_until(lambda: fleet.runs(release), "the release is committed")
    client = tools.Client(agent.port)
    fleet.reports.clear()
    for image in tools.digit_images(10):
        assert client.post("/predict", {"input": image.tolist()}).status == 200
    assert client.post("/predict", {"input": [1]}).status == 400
    tools.wait_until(lambda: len(fleet.reports) >= 3, "three windows")
    windows = [window for report in fleet.reports for window in report.deployments]
    assert all(window.digest == release.sha256 for window in windows)
    assert (sum(w.requests for w in windows), sum(w.rejected_inputs for w in windows)) == (10, 1)
    assert any(window.requests == 0 for window in windows)
    assert sum(window.infer_ms.count for window in windows) == 10
    assert sum(sum(window.outputs["logits"].counts) for window in windows if window.outputs) == 100
    last = fleet.reports[-1]
    assert 0.9 < last.length_s < 2.5
    assert last.clock_ok
    assert last.memory_mb is not None
    assert last.memory_mb < 400
    page = client.get("/metrics").body.decode()
    assert f'edgekit_requests_total{{deployment="digits",digest="{release.sha256[:12]}"}} 10' in page


def test_several_deployments_share_one_address_and_one_connection(make_fleet, make_agent, make_bundle, tools):
    fleet = make_fleet(deployments=("digits", "counter"))
    agent = make_agent(fleet)
    digits, counter = make_bundle(), make_bundle(name="counter", stateful=True)
    fleet.order(None, deployments={"digits": fleet.publish(digits), "counter": fleet.publish(counter)})
    tools.wait_until(lambda: fleet.runs(digits) and fleet.runs(counter, "counter"), "both are committed")
    client = tools.Client(agent.port)
    image = tools.digit_images(1)[0].tolist()
    for turn in range(1, 6):
        assert client.post("/predict/digits", {"input": image}).json["deployment"] == "digits"
        total = client.post("/predict/counter", {"input": [[1]], "sequence_id": "s"}).json["outputs"]["y"]
        assert total == [[turn]]
        assert client.get("/v2/health/ready").status == 200
    assert client.get("/v2").json["deployments"] == ["digits", "counter"]
    missing = client.post("/predict", {"input": image})
    assert missing.status == 404


def test_status_and_doctor_tell_what_is_so(fleet, make_agent, release, tools):
    agent = make_agent(fleet)
    fleet.order(fleet.publish(release))
    tools.wait_until(lambda: fleet.runs(release), "the release is committed")
    view = json.loads(command("status", "--state", agent.state, "--json").stdout)
    assert (view["is_running"], view["is_online"]) == (True, True)
    assert view["reported"]["deployments"]["digits"]["digest"] == release.sha256
    told = command("status", "--state", agent.state).stdout
    assert "digits: digits@1.0.0" in told
    second = command("run", "--state", agent.state, "--http", f"127.0.0.1:{tools.free_port()}")
    assert second.returncode == 2
    assert "another agent runs" in second.stderr
    doctor = command("doctor", "--state", agent.state)
    assert doctor.returncode == 0, doctor.stdout
    assert "accepts connections" in doctor.stdout
    agent.stop()
    assert "not running" in command("status", "--state", agent.state).stdout


def test_a_live_supervisor_never_loads_numpy(fleet, make_agent, release, tools):
    """Seen from outside: nothing of numpy or an engine is mapped into the process after a whole update."""
    agent = make_agent(fleet)
    fleet.order(fleet.publish(release))
    tools.wait_until(lambda: fleet.runs(release), "the release is committed")
    tools.Client(agent.port).get("/metrics")
    mapped = Path(f"/proc/{agent.process.pid}/maps").read_text()
    assert "cryptography" in mapped
    assert not any(name in mapped for name in ("numpy", "onnxruntime", "openvino", "litert"))
    (worker,) = agent.children()
    assert "numpy" in Path(f"/proc/{worker}/maps").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_quickly_with_exit_code_0(number, fleet, make_agent, release, tools):
    agent = make_agent(fleet)
    fleet.order(fleet.publish(release))
    tools.wait_until(lambda: fleet.runs(release), "the release is committed")
    workers = agent.children()
    began = time.monotonic()
    os.kill(agent.process.pid, number)
    assert agent.process.wait(10) == 0
    assert time.monotonic() - began < 3
    tools.wait_until(lambda: fleet.statuses[-1].online is False, "offline is published")
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_a_killed_agent_is_declared_offline_by_the_broker(fleet, make_agent, tools):
    agent = make_agent(fleet)
    tools.wait_until(lambda: fleet.statuses and fleet.statuses[-1].online, "online")
    agent.kill_tree()
    tools.wait_until(lambda: fleet.statuses[-1].online is False, "the last will speaks")


BAD_STARTS = {
    "open to the network": (["--http", "0.0.0.0:8500"], "beyond loopback only TLS"),
    "no port": (["--http", "localhost"], "give HOST:PORT"),
    "unknown profile": (["--profile", "no-such-board"], "no-such-board"),
    "no enrolment": ([], "has not joined a fleet yet"),
    "missing enrolment file": (["--enrolment", "nowhere.json"], "cannot be read"),
    "not an enrolment file": (["--enrolment", __file__], "not an enrolment file"),
}


@pytest.mark.parametrize("case", BAD_STARTS)
def test_a_start_that_cannot_work_says_why(case, tmp_path, tools):
    words, told = BAD_STARTS[case]
    if "--http" not in words:
        words = [*words, "--http", f"127.0.0.1:{tools.free_port()}"]
    done = command("run", "--state", tmp_path / "state", *words)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.proof
def test_a_bundle_with_buckets_passes_its_self_test_and_serves_every_size(fleet, make_agent, tools, tmp_path):
    built = tools.build_lines(tmp_path)
    agent = make_agent(fleet)
    fleet.order(fleet.publish(built))
    tools.wait_until(lambda: fleet.runs(built), "the release is committed", 40)
    assert fleet.now.bundle_format == FORMAT
    client = tools.Client(agent.port)
    for count, size in ((1, 4), (4, 4), (7, 8)):
        answer = client.post("/predict", {"input": [[1.0] * count]})
        assert answer.json["outputs"]["y"] == [[2.0] * count + [0.0] * (size - count)]
    assert client.post("/predict", {"input": [[1.0] * 9]}).status == 400
    agent.stop()
