"""The link's ways to a broker, against a server that says nothing a broker would."""

import asyncio
import contextlib
import socket
import threading
import time

import pytest

from device_agent import link
from device_agent.link import Link, LinkHooks
from device_agent.network import Access
from edgekit.wire.enrolment import BrokerAddress
from edgekit.wire.messages import Boot


class Mute:
    """Hears the beginning of each connection, and ends it."""

    def __init__(self, host, port=0):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.server = socket.create_server((host, port), family=family)
        self.port = self.server.getsockname()[1]
        self.heard = []
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.server.accept()
                self.heard.append(client.recv(65536))
                client.close()


def linked(address, **heard):
    """A link that has no certificate to show."""
    hooks = {
        "up": lambda: None,
        "down": lambda: None,
        "message": lambda _leaf, _payload: None,
        "refused": lambda: None,
    }
    return Link(
        address, Access("", (), lambda: None), "board", Boot(1, 2, "n"), LinkHooks(**{**hooks, **heard})
    )


def meet(monkeypatch, host, **ways):
    """What a broker that ends every connection hears, and how often the link said that it was refused."""
    monkeypatch.setattr(link, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(link, "LONGEST_BACKOFF_S", 0.02)
    mute, refused = Mute(host), []

    async def run():
        ports = {"port": mute.port, "websocket_port": mute.port}
        made = linked(BrokerAddress(host, **ports, **ways), refused=lambda: refused.append(1))
        made.start()
        async with asyncio.timeout(20):
            while len(mute.heard) < 6 or len(refused) < 2:  # noqa: ASYNC110  # of several threads
                await asyncio.sleep(0.01)
        await made.stop()

    asyncio.run(run())
    mute.server.close()
    return mute


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_broker_that_ends_connections_is_tried_again_over_both_ways(monkeypatch, host):
    """A WebSocket that ends in its handshake once kept paho's thread turning for ever."""
    mute = meet(monkeypatch, host, websocket_path="/mqtt")
    web = [told for told in mute.heard if told.startswith(b"GET /mqtt ")]
    plain = [told for told in mute.heard if b"MQTT" in told and told not in web]
    assert len(web) >= 2
    assert len(plain) >= 2
    shown = f"[{host}]" if ":" in host else host
    assert f"Host: {shown}:{mute.port}\r\n".encode() in web[0]


def test_without_a_certificate_the_client_id_names_the_enrolment_too(monkeypatch):
    """An older board that still comes does not end the connection of the newer one."""
    mute = meet(monkeypatch, "127.0.0.1")
    assert all(b"\x00\x07board.1" in told for told in mute.heard)


def test_with_a_certificate_the_client_id_is_its_name():
    made = linked(BrokerAddress("127.0.0.1", 1, tls=True))
    assert made._make_client(link._Way(1, ""))._client_id == b"board"


@pytest.mark.broker
def test_what_is_published_is_written_by_the_links_own_thread_alone(monkeypatch, broker):
    """Two that wrote at once sent packets twice or in pieces, and the broker ended the connection."""
    writers = set()

    class Watched(link._Client):
        def _sock_send(self, buf):
            writers.add(threading.current_thread().name)
            return super()._sock_send(buf)

    monkeypatch.setattr(link, "_Client", Watched)

    async def run():
        up = asyncio.Event()
        made = linked(BrokerAddress("127.0.0.1", broker.port), up=up.set)
        made.start()
        async with asyncio.timeout(20):
            await up.wait()
        for number in range(20):
            assert made.publish("telemetry", b"%d" % number)
            await asyncio.sleep(0)
        await made.stop()

    asyncio.run(run())
    assert writers == {"link"}


@pytest.mark.broker
def test_what_is_published_goes_out_at_once_and_not_when_the_loop_looks_next(broker):
    """The loop looks once a second: twenty messages, each after the answer to the one before, would take as many."""

    async def run():
        up = asyncio.Event()
        made = linked(BrokerAddress("127.0.0.1", broker.port), up=up.set)
        made.start()
        async with asyncio.timeout(20):
            await up.wait()
        for number in range(20):
            sent = made._client.publish("any/topic", b"%d" % number, qos=1)
            await asyncio.to_thread(sent.wait_for_publish, 10)
        await made.stop()

    began = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - began < 10


def test_each_reason_why_the_broker_cannot_be_reached_is_told_once(monkeypatch):
    """A broker that starts anew is not there at first, and then refuses who was revoked: both are told."""
    monkeypatch.setattr(link, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(link, "LONGEST_BACKOFF_S", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    told = []
    monkeypatch.setattr(link.log, "trouble", lambda _message, **about: told.append(about.get("reason", "")))

    async def until(condition):
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110  # of several threads
                await asyncio.sleep(0.01)

    async def run():
        made = linked(BrokerAddress("127.0.0.1", port=port))
        made.start()
        await until(lambda: told)
        mute = Mute("127.0.0.1", port)
        await until(lambda: len(mute.heard) > 5)
        await made.stop()
        mute.server.close()

    asyncio.run(run())
    assert len(told) == 2
    assert "refused" in told[0]
    assert told[1] == "the broker ended the connection without a word"
