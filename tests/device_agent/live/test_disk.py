"""Real agents on a disk that is full, read-only or damaged: they serve on, say so, and recover by themselves."""

import contextlib
import json
import os
import resource
import subprocess
import sys

import pytest

NEEDS_MOUNT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")


class Disk:
    """A small file system of its own under an agent's state folder."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        _mount("-t", "tmpfs", "-o", "size=100m", "none", folder)

    def fill(self):
        """To the last page; what others give back meanwhile is taken by calling it again."""
        with (self.folder / "filler").open("ab", buffering=0) as sink:
            for size in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while True:
                        sink.write(bytes(size))

    def empty(self):
        (self.folder / "filler").unlink()

    def remount(self, how):
        _mount("-o", f"remount,{how}", self.folder)

    def close(self):
        subprocess.run(["umount", "--lazy", self.folder], check=True)


def _mount(*words):
    subprocess.run(["mount", *map(str, words)], check=True)


@pytest.fixture
def small(tmp_path, make_fleet, make_agent, make_bundle, tools):
    """An agent that committed its first release on a small disk."""
    fleet = make_fleet()
    agent = make_agent(fleet, start=False)
    disk = Disk(agent.state)
    try:
        _settle(agent.start(), fleet, make_bundle(), tools)
        yield agent, fleet, disk
        agent.kill_tree()
    finally:
        disk.close()


def _settle(agent, fleet, built, tools):
    fleet.order(fleet.publish(built))
    tools.wait_until(lambda: fleet.runs(built), "the first release is committed", 60)
    tools.wait_until(lambda: fleet.reports, "a report")


def serves(tools, agent):
    client = tools.Client(agent.port)
    answers = [client.post("/predict", {"input": image.tolist()}) for image in tools.digit_images(5)]
    return {answer.status for answer in answers} == {200}


def codes(fleet):
    return {condition.code for condition in fleet.now.conditions}


def goes_on_reporting(fleet, tools):
    heard = len(fleet.reports)
    tools.wait_until(lambda: len(fleet.reports) >= heard + 3, "reports go on")


@NEEDS_MOUNT
@pytest.mark.timeout(240)
def test_a_full_disk_is_a_condition_and_the_order_is_followed_when_there_is_room(small, make_bundle, tools):
    agent, fleet, disk = small
    disk.fill()
    tools.wait_until(lambda: "storage-full" in codes(fleet), "it says so")
    assert serves(tools, agent)
    second = make_bundle(version="2.0.0", seed=2)
    before = fleet.now.order_counter
    disk.fill()
    counter = fleet.order(fleet.publish(second))
    tools.wait_until(lambda: "cannot be stored" in fleet.now.refused, "the order is not accepted")
    assert fleet.now.order_counter == before
    goes_on_reporting(fleet, tools)
    assert agent.stop() == 0
    agent.start()
    tools.wait_until(lambda: serves(tools, agent), "it starts again and serves", 60)
    tools.wait_until(lambda: "storage-full" in codes(fleet), "it says so again")
    goes_on_reporting(fleet, tools)
    disk.empty()
    tools.wait_until(lambda: fleet.runs(second), "the order is followed", 60)
    tools.wait_until(lambda: not codes(fleet), "the condition ends")
    assert fleet.now.order_counter == counter
    assert not fleet.now.refused


@pytest.mark.proof
@NEEDS_MOUNT
@pytest.mark.timeout(240)
def test_a_read_only_disk_is_a_condition_and_the_last_good_model_serves(small, make_bundle, tools):
    agent, fleet, disk = small
    boots = set()
    for _ in range(2):
        assert agent.stop() == 0
        fleet.reported.clear()
        disk.remount("ro")
        agent.start()
        tools.wait_until(lambda: serves(tools, agent), "it starts again and serves", 60)
        tools.wait_until(lambda: fleet.now and "storage-read-only" in codes(fleet), "it says so again")
        goes_on_reporting(fleet, tools)
        boots.add(fleet.now.boot)
    assert len(boots) == 1
    words = [sys.executable, "-m", "edgekit", "agent", "doctor", "--state", str(agent.state), "--json"]
    checks = json.loads(subprocess.run(words, capture_output=True, check=False).stdout)
    assert any("storage-read-only" in check["found"] for check in checks if check["name"] == "agent")
    disk.remount("rw")
    tools.wait_until(lambda: not codes(fleet), "the condition ends", 40)
    second = make_bundle(version="2.0.0", seed=2)
    fleet.order(fleet.publish(second))
    tools.wait_until(lambda: fleet.runs(second), "the next order is followed", 60)
    agent.stop()
    agent.start()
    (unkept,) = boots
    tools.wait_until(lambda: fleet.now.boot > unkept, "a start that is kept orders after them", 60)
    numbers = [(report.boot, report.seq) for report in fleet.reports]
    first = dict(zip(numbers, fleet.reports, strict=True))
    assert all(first[(report.boot, report.seq)] == report for report in fleet.reports)


@pytest.mark.timeout(180)
def test_a_process_that_may_write_nothing_serves_on(fleet, make_agent, make_bundle, tools):
    """RLIMIT_FSIZE stands for any disk that fails for a while, where nothing can be mounted."""
    agent = make_agent(fleet)
    _settle(agent, fleet, make_bundle(), tools)
    _soft, hard = resource.prlimit(agent.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(agent.process.pid, resource.RLIMIT_FSIZE, (0, hard))
    tools.wait_until(lambda: "storage-full" in codes(fleet), "it says so")
    assert serves(tools, agent)
    goes_on_reporting(fleet, tools)
    resource.prlimit(agent.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    tools.wait_until(lambda: not codes(fleet), "the condition ends", 40)
    assert agent.process.poll() is None


@pytest.mark.timeout(180)
def test_damaged_state_files_are_set_aside_and_told(fleet, make_agent, make_bundle, tools):
    agent = make_agent(fleet)
    built = make_bundle()
    _settle(agent, fleet, built, tools)
    assert agent.stop() == 0
    counter = fleet.now.order_counter
    for name in ("order.json", "boot.json", "boot.json.2", "identity.json", "key.json"):
        (agent.state / name).write_bytes(b"\0" * 100)
        (agent.state / name).chmod(0o600)
    spool = agent.state / "spool.db"
    spool.write_bytes(spool.read_bytes()[:1024] + os.urandom(8192))
    fleet.reported.clear()
    agent.start()
    tools.wait_until(lambda: fleet.now and fleet.runs(built), "it serves", 60)
    tools.wait_until(lambda: {"boot-damaged", "spool-set-aside"} <= codes(fleet), "it says what was lost")
    assert fleet.now.order_counter == counter
    assert len(fleet.enrolled) == 1
    aside = {path.name for path in agent.state.glob("*.damaged")}
    assert {"order.json.damaged", "boot.json.damaged", "boot.json.2.damaged", "spool.db.damaged"} <= aside


@pytest.mark.timeout(180)
@pytest.mark.proof
def test_a_file_of_another_fleet_is_refused_loudly_and_one_that_is_gone_stops_nothing(
    fleet, make_agent, tmp_path, tools
):
    agent = make_agent(fleet)
    tools.wait_until(lambda: fleet.now, "it is enrolled")
    agent.stop()
    (tmp_path / "other").mkdir()
    file = fleet.enrolment(tmp_path / "other", fleet="other")
    words = ["agent", "run", "--state", agent.state, "--http", f"127.0.0.1:{agent.port}", "--enrolment", file]
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", *map(str, words)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"belongs to {fleet.device} of fleet lab" in done.stderr
    (tmp_path / "enrolment.json").unlink()
    agent.start()
    tools.wait_until(lambda: "is gone; it is not needed" in agent.log, "a file that is gone stops nothing")
    tools.wait_until(lambda: fleet.now.boot.incarnation == 4, "it runs")


@pytest.mark.proof
@pytest.mark.timeout(180)
def test_status_tells_what_is_while_the_link_is_down(
    brokers, broker_folder, make_fleet, make_agent, make_bundle, tools
):
    broker = brokers["iotcore"](broker_folder, tools.free_port())
    broker.start()
    fleet = make_fleet(broker=broker)
    agent = make_agent(fleet)
    _settle(agent, fleet, make_bundle(), tools)

    def view():
        words = [sys.executable, "-m", "edgekit", "agent", "status", "--state", str(agent.state)]
        told = json.loads(subprocess.check_output([*words, "--json"]))
        return told, subprocess.check_output(words, text=True)

    def own():
        return view()[0]["reported"]["deployments"]["digits"]

    tools.wait_until(lambda: own().get("committed") and own()["state"] == "idle", "it is committed")
    broker.stop()
    tools.wait_until(lambda: not view()[0]["is_online"], "the link is told to be down")
    assert "digits@1.0.0" in view()[1]
    # From here on no worker can start, so no model answers.
    model = agent.state / "deployments" / "digits" / "current" / "model" / "model.onnx"
    model.write_bytes(b"junk")
    for child in agent.children():
        os.kill(child, 9)
    tools.wait_until(lambda: "digits: no model answers" in view()[1], "told", 60)
    assert tools.Client(agent.port).get("/v2/health/ready").status == 503
    agent.kill_tree()
    told, text = view()
    assert not told["is_running"]
    assert "agent not running" in text
    assert "nothing: the agent is not running" in text
    broker.stop()


# An agent whose card can be told to take its time: while `slow` is there, a sync waits for `go`. Whatever the event
# loop's own thread does to the disk is written down.
SLOW_CARD = """
import sys, threading, time
from pathlib import Path
from device_agent import durable
from edgekit.cli import main

signs = Path(sys.argv.pop(1))

def watch(operation):
    if threading.current_thread() is threading.main_thread() and "state-" in str(operation.path.parent):
        with (signs / "in-loop").open("a") as told:
            print(operation.kind, operation.path, file=told)
    if operation.kind in ("sync", "sync-folder") and (signs / "slow").exists():
        (signs / "syncing").touch()
        while not (signs / "go").exists():
            time.sleep(0.01)

with durable.watched(watch):
    main()
"""


@pytest.mark.timeout(240)
@pytest.mark.proof
def test_clients_are_served_while_a_sync_of_an_update_takes_its_time(
    fleet, make_agent, make_bundle, tools, tmp_path
):
    """The sync ends only after clients were served: were the event loop to wait for it, neither would ever happen."""
    agent = make_agent(fleet, start=False)
    signs = tmp_path / "signs"
    signs.mkdir()
    (tmp_path / "slow_card.py").write_text(SLOW_CARD)
    agent._words[:2] = [str(tmp_path / "slow_card.py"), str(signs)]
    _settle(agent.start(), fleet, make_bundle(), tools)
    (signs / "slow").touch()
    second = make_bundle(version="2.0.0", seed=2)
    fleet.order(fleet.publish(second))
    tools.wait_until((signs / "syncing").exists, "the card takes its time")
    for _ in range(10):
        assert serves(tools, agent)
        assert tools.Client(agent.port).get("/v2/health/ready").status == 200
    assert not (signs / "go").exists()
    assert not fleet.runs(second)
    (signs / "go").touch()
    tools.wait_until(lambda: fleet.runs(second), "the update goes on", 60)
    assert agent.stop() == 0
    assert not (signs / "in-loop").exists(), (signs / "in-loop").read_text()
