"""Sources and sinks of a running agent: folders, brokers, cameras, a microphone; and what a SIGKILL in the middle costs."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from device_agent.sinks.webhook import signature


@pytest.fixture
def make_fed(fleet, make_agent, make_bundle, tools):
    """An agent with an agent.toml that serves the digits."""

    def make(config, built=None):
        agent = make_agent(fleet, start=False)
        agent.state.mkdir(mode=0o700)
        (agent.state / "agent.toml").write_text(config)
        agent.start()
        built = built or make_bundle(sturdy=True)
        fleet.order(fleet.publish(built))
        tools.wait_until(lambda: fleet.runs(built), "the release is committed")
        return agent

    return make


def answers(path):
    """Whole lines of a file sink."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def drop(folder, name, value=1):
    """A file for the digits, put in place by a rename."""
    hidden = folder / f".{name}"
    hidden.write_text(json.dumps({"input": np.full((8, 8), value).tolist()}))
    hidden.rename(folder / name)


@pytest.fixture
def inbox(tmp_path):
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@pytest.fixture
def fed(make_fed, inbox, tmp_path):
    """An agent that reads a folder into a file."""
    return make_fed(f"""
[[source]]
kind = "folder"
name = "inbox"
path = "{inbox}"
settle_s = 0.1
poll_s = 0.1

[[sink]]
kind = "file"
name = "lines"
path = "{tmp_path}/out/answers.jsonl"
""")


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "answers.jsonl"


def test_files_of_a_folder_are_answered_and_moved_refused_ones_say_why_and_kills_lose_none(
    out, fed, inbox, tools
):
    for number in range(3):
        drop(inbox, f"{number}.json", number)
    (inbox / "notes.txt").write_text("no input")
    (inbox / "broken.json").write_text("{")
    tools.wait_until(lambda: len(answers(out)) == 5, "every file has its answer")
    tools.wait_until(lambda: not [one for one in inbox.iterdir() if one.is_file()], "and is moved")
    assert sorted(one.name for one in (inbox / "done").iterdir()) == ["0.json", "1.json", "2.json"]
    assert sorted(one.name for one in (inbox / "failed").iterdir()) == [
        "broken.json", "broken.json.reason.json", "notes.txt", "notes.txt.reason.json",
    ]  # fmt: skip
    assert (
        "its name does not say" in json.loads((inbox / "failed/notes.txt.reason.json").read_text())["reason"]
    )
    by_file = {one["input"]["file"]: one for one in answers(out)}
    assert by_file["1.json"]["answer"]["model"] == "digits"
    assert by_file["broken.json"]["error"] == "input"
    assert len({one["id"] for one in answers(out)}) == 5
    # Killed wherever it is; each step on its own is in tests/device_agent/sources/test_folder_kills.py.
    for number in range(60):
        drop(inbox, f"more-{number}.json", number % 16)
        if number in (20, 40):
            tools.wait_until(lambda: len(answers(out)) > 5, "it is at work")
            os.kill(tools.wait_until(lambda: source_process(fed), "a process"), signal.SIGKILL)
    tools.wait_until(lambda: len(list((inbox / "done").iterdir())) == 63, "every file is done")
    tools.wait_until(lambda: len({one["id"] for one in answers(out)}) == 65, "every file has its answer")
    by_file = {}
    for one in answers(out):
        by_file.setdefault(one["input"]["file"], set()).add(one["id"])
    assert {len(ids) for ids in by_file.values()} == {1}
    assert "killed by signal 9" in fed.log
    assert fed.stop() == 0


class Receiver:
    """A webhook's receiver: what came, and what it says next instead of 204."""

    def __init__(self):
        self.got, self.says = [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = outer.says.pop(0) if outer.says else 204
                outer.got.append((status, dict(self.headers), body))
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", f"http://127.0.0.1:{outer.port}/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def taken(self):
        """The ids that were taken, in order."""
        return [headers["webhook-id"] for status, headers, _ in self.got if status < 300]


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def mosquitto(tmp_path, brokers, tools):
    program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
    if not Path(program).exists():
        pytest.skip("mosquitto is not installed")
    folder = tmp_path / "broker"
    folder.mkdir()
    made = brokers["mosquitto"](folder, tools.free_port())
    made.start()
    tools.wait_until(lambda: is_open(made.port), "mosquitto listens")
    yield made
    made.stop()


def is_open(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Peer:
    """A program at a broker that sends inputs and hears answers."""

    def __init__(self, port, topic):
        self.heard = []
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self.client.on_message = lambda _c, _u, message: self.heard.append(json.loads(message.payload))
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def send(self, topic, value, *, qos=1, uid=None):
        properties = Properties(PacketTypes.PUBLISH)
        if uid is not None:
            properties.UserProperty = ("id", uid)
        body = json.dumps({"input": np.full((8, 8), value).tolist()})
        self.client.publish(topic, body, qos=qos, properties=properties).wait_for_publish(10)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def peer(mosquitto):
    made = Peer(mosquitto.port, "answers/#")
    yield made
    made.close()


def make_video(path, frames=20):
    """An uncompressed film of 8 by 8 grey pixels, 10 frames a second."""
    cv2 = pytest.importorskip("cv2")
    film = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 10, (8, 8))
    for number in range(frames):
        film.write(np.full((8, 8, 3), number % 16, np.uint8))
    film.release()
    return path


@pytest.mark.broker
def test_topics_and_a_film_are_answered_to_a_topic_a_file_and_a_signed_webhook(
    make_fed, fleet, mosquitto, peer, receiver, out, tmp_path, tools
):
    secret = tmp_path / "secret"
    secret.write_text("a-secret-of-thirty-two-characters")
    agent = make_fed(f"""
[[source]]
kind = "mqtt"
name = "line"
broker = "mqtt://127.0.0.1:{mosquitto.port}"
topics = ["in/#"]

[[source]]
kind = "folder"
name = "absent"
path = "{tmp_path}/absent"

[[source]]
kind = "camera"
name = "gate"
device = "{make_video(tmp_path / "film.avi")}"
colour = "grey"
repeat = true
sinks = ["lines"]

[[sink]]
kind = "mqtt"
name = "topic"
broker = "mqtt://127.0.0.1:{mosquitto.port}"
topic = "answers/{{source}}"

[[sink]]
kind = "file"
name = "lines"
path = "{out}"

[[sink]]
kind = "webhook"
name = "hook"
url = "http://127.0.0.1:{receiver.port}/hook"
secret_file = "{secret}"
""")
    receiver.says += [500, 302, 400]
    tools.wait_until(lambda: "connected to a broker" in agent.log, "the source is connected")
    for value, qos in ((1, 1), (2, 0), (3, 1)):
        peer.send("in/a", value, qos=qos)
    tools.wait_until(lambda: len(peer.heard) >= 3, "each message has its answer on the topic")
    assert {one["source"] for one in peer.heard} == {"line"}
    assert sorted(one["input"]["qos"] for one in peer.heard) == [0, 1, 1]
    assert all(one["answer"]["model"] == "digits" for one in peer.heard)
    tools.wait_until(lambda: len(receiver.taken) == 2, "the webhook has what it did not refuse")
    assert [status for status, *_ in receiver.got] == [500, 302, 400, 204, 204]
    _status, headers, body = receiver.got[-1]
    assert json.loads(body)["id"] == headers["webhook-id"]
    expected = signature(secret.read_bytes(), headers["webhook-id"], int(headers["webhook-timestamp"]), body)
    assert headers["webhook-signature"] == expected
    tools.wait_until(
        lambda: {one["source"] for one in answers(out)} == {"line", "gate"}, "both are in the file"
    )
    frames = [one for one in answers(out) if one["source"] == "gate"]
    assert all("answer" in one for one in frames)
    assert [one["input"]["frame"] for one in frames] == sorted({one["input"]["frame"] for one in frames})
    # Of the first frames nobody could make anything: the model was not there yet.
    tools.wait_until(lambda: state_of(agent, "gate")["did"]["answered"] > 0, "the status tells of it")
    assert state_of(agent, "gate")["state"] == "running"
    assert state_of(agent, "gate")["did"]["dropped"] > 0
    assert state_of(agent, "line")["did"]["read"] == 3
    # What one source lacks costs no other anything, and the fleet hears of it.
    tools.wait_until(
        lambda: "source-failing" in told_to(fleet), "the fleet hears of the folder that is not there"
    )
    assert f"absent: {tmp_path}/absent: cannot be read and written" in told_to(fleet)["source-failing"]
    assert state_of(agent, "absent")["state"] == "failing"


def told_to(fleet):
    """The conditions that stand, by code."""
    return {one.code: one.detail for one in fleet.now.conditions}


def state_of(agent, source):
    """What `edgekit agent status` says of a source."""
    words = [sys.executable, "-m", "edgekit", "agent", "status", "--state", str(agent.state), "--json"]
    shown = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    return {one["name"]: one for one in shown["sources"]}[source]


def source_process(agent):
    """The one source's process."""
    found = agent.children("device_agent.sources.process")
    return found[0] if found else None


@pytest.mark.proof
@pytest.mark.broker
def test_messages_come_through_while_agent_and_sources_are_killed_and_senders_ids_make_them_once(
    make_fed, mosquitto, peer, tools
):
    agent = make_fed(f"""
[[source]]
kind = "mqtt"
name = "line"
broker = "mqtt://127.0.0.1:{mosquitto.port}"
topics = ["in/a"]

[[sink]]
kind = "mqtt"
name = "topic"
broker = "mqtt://127.0.0.1:{mosquitto.port}"
topic = "answers/{{source}}"
""")
    tools.wait_until(lambda: "connected to a broker" in agent.log, "the source is connected")
    for number in range(60):
        peer.send("in/a", number % 16, uid=f"m{number}")
        if number == 20:
            tools.wait_until(lambda: peer.heard, "it is at work")
            os.kill(tools.wait_until(lambda: source_process(agent), "a process"), signal.SIGKILL)
        if number == 40:
            agent.kill_tree()
            agent.start()
    sent = {f"m{number}" for number in range(60)}
    tools.wait_until(lambda: {one["input"]["id"] for one in peer.heard} == sent, "each message has an answer")
    # An answer may arrive twice, and then with one id: there is one of each message.
    assert len({one["id"] for one in peer.heard}) == 60
