"""MQTT topics as a source, at a real mosquitto: what is acknowledged when, and what waits where."""

import contextlib
import json
import shutil
import socket
import threading
from pathlib import Path

import msgspec
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from device_agent.agentfile import MqttSink, MqttSource
from device_agent.sinks.delivery import Taken
from device_agent.sinks.topic import Topic
from device_agent.sources.feed import Feed, StoppedError, Tally
from device_agent.sources.outbox import Outbox, Owed
from device_agent.sources.topics import Topics
from edgekit.errors import FeedError

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(
        not (shutil.which("mosquitto") or Path("/usr/sbin/mosquitto").exists()),
        reason="mosquitto is not installed",
    ),
]


class Model:
    """Answers while `may` is set; keeps what it answered."""

    def __init__(self):
        self.may, self.answered = threading.Event(), []
        self.may.set()

    def ask(self, body, _content_type):
        self.may.wait(20)
        self.answered.append(json.loads(body))
        return msgspec.Raw(b"{}")


class Running:
    """A source at work in a thread; `end` is like a kill: nothing more is acknowledged."""

    def __init__(self, port, folder, model, **more):
        self.outbox = Outbox(folder / "backlog.db", ["lines"], 1 << 20)
        self.tally = Tally()
        self.feed = Feed("line", "", model, self.outbox, self.tally)
        spec = MqttSource(name="line", broker=f"mqtt://127.0.0.1:{port}", topics=("in/#",), **more)
        self.source = Topics(spec, "edgekit-test-line")
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        with contextlib.suppress(StoppedError):
            self.source.run(self.feed)

    def end(self):
        self.feed.stop()
        self.thread.join(20)
        self.outbox.close()

    @property
    def kept(self):
        return [json.loads(one.body) for one in self.outbox.owed("lines", 99)]


@pytest.fixture(scope="module")
def port(tmp_path_factory, request):
    import sys

    sys.path.append(str(Path(__file__).parents[2] / "fleet"))
    from ports import free_port

    from tests.device_agent.conftest import MosquittoBroker

    broker = MosquittoBroker(tmp_path_factory.mktemp("broker"), free_port())
    broker.start()
    for _ in range(400):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", broker.port)) == 0:
                break
        threading.Event().wait(0.05)
    yield broker.port
    broker.stop()


@pytest.fixture
def start(port, tmp_path):
    made = []

    def starting(model, **more):
        made.append(Running(port, tmp_path, model, **more))
        return made[-1]

    yield starting
    for one in made:
        one.end()
    # The broker forgets the session.
    client = mqtt.Client(CallbackAPIVersion.VERSION2, "edgekit-test-line", protocol=mqtt.MQTTv5)
    client.connect("127.0.0.1", port, clean_start=True)
    client.loop_start()
    client.disconnect()
    client.loop_stop()


@pytest.fixture
def send(port):
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.connect("127.0.0.1", port)
    client.loop_start()

    def sending(value, *, qos=1, uid=None, topic="in/a"):
        properties = Properties(PacketTypes.PUBLISH)
        if uid is not None:
            properties.UserProperty = ("id", uid)
        client.publish(topic, json.dumps(value), qos=qos, properties=properties).wait_for_publish(10)

    yield sending
    client.disconnect()
    client.loop_stop()


def test_a_slow_model_holds_the_broker_back_and_nothing_is_lost(start, send, tools):
    model = Model()
    running = start(model, in_flight=3)
    tools.wait_until(lambda: running.source._connection.is_up, "connected")
    model.may.clear()
    for value in range(10):
        send(value)
    tools.wait_until(lambda: running.tally.told(0).read == 1, "one is being answered")
    threading.Event().wait(0.5)
    # One with the model, two ahead: the others are the broker's.
    assert running.source._came.qsize() == 2
    model.may.set()
    tools.wait_until(lambda: len(running.kept) == 10, "all are answered")
    assert model.answered == list(range(10))


def test_what_has_no_answer_on_disk_comes_again_to_the_next_process(start, send, tools):
    model = Model()
    running = start(model)
    tools.wait_until(lambda: running.source._connection.is_up, "connected")
    send(0)
    tools.wait_until(lambda: len(running.kept) == 1, "the first is answered")
    threading.Event().wait(0.3)
    running.end()
    for value in (1, 2):
        send(value)
    again = start(model)
    tools.wait_until(lambda: len(again.kept) == 3, "what came meanwhile is answered")
    assert model.answered == [0, 1, 2]


def test_a_message_that_its_sender_repeats_is_answered_once(start, send, tools):
    model = Model()
    running = start(model)
    tools.wait_until(lambda: running.source._connection.is_up, "connected")
    for value, uid in ((1, "a"), (1, "a"), (2, "b"), (3, None), (3, None)):
        send(value, uid=uid)
    tools.wait_until(lambda: len(running.kept) == 4, "each is answered")
    assert model.answered == [1, 2, 3, 3]
    assert len({one["id"] for one in running.kept}) == 4
    assert running.kept[0]["input"] == {"topic": "in/a", "qos": 1, "id": "a"}


def test_what_cannot_be_asked_for_again_waits_on_disk(start, send, tools):
    model = Model()
    model.may.clear()
    running = start(model)
    tools.wait_until(lambda: running.source._connection.is_up, "connected")
    for value in range(4):
        send(value, qos=0)
    tools.wait_until(lambda: running.tally.told(0).read == 4, "all came")
    assert running.outbox.next_waiting() is not None
    running.feed.stop()
    model.may.set()
    running.end()
    done = len(model.answered)
    again = start(model)
    tools.wait_until(lambda: len(again.kept) == 4, "all are answered by the next process")
    assert model.answered == list(range(4))
    assert done <= 1


def test_a_connection_that_is_lost_in_between_costs_no_answer_twice(start, send, tools):
    model = Model()
    running = start(model)
    tools.wait_until(lambda: running.source._connection.is_up, "connected")
    model.may.clear()
    send(1)
    tools.wait_until(lambda: running.tally.told(0).read == 1, "it is being answered")
    # The connection ends under it; its answer is kept, and cannot be acknowledged over this one any more.
    running.source._connection._client.socket().shutdown(socket.SHUT_RDWR)
    tools.wait_until(lambda: running.source._connection.number == 2, "connected again")
    model.may.set()
    tools.wait_until(lambda: running.kept, "it is answered")
    send(2)
    tools.wait_until(lambda: len(running.kept) == 2, "and the next")
    assert model.answered == [1, 2]


def test_a_topic_takes_what_the_broker_has_acknowledged(port, tools):
    spec = MqttSink(name="t", topic="answers/{source}", broker=f"mqtt://127.0.0.1:{port}")
    sink = Topic(spec, MqttSource(name="line", topics=("in/#",)), "edgekit-test")
    try:
        assert sink.deliver([Owed(1, "a", b"{}"), Owed(2, "b", b"{}")]) == Taken((1, 2))
    finally:
        sink.close()


def test_a_broker_that_is_not_there_is_told(tools, monkeypatch):
    monkeypatch.setattr("device_agent.sinks.topic.PATIENCE_S", 0.2)
    spec = MqttSink(name="t", topic="a", broker=f"mqtt://127.0.0.1:{tools.free_port()}")
    sink = Topic(spec, MqttSource(name="line", topics=("in/#",)), "edgekit-test")
    try:
        with pytest.raises(FeedError, match="refused"):
            sink.deliver([Owed(1, "a", b"{}")])
    finally:
        sink.close()
