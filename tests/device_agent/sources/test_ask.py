"""Asking over connections that somebody else makes: what is an answer, what a refusal, and what says nothing of the input."""

import contextlib
import json
import socket
import threading

import msgspec
import pytest

from device_agent.sources.ask import MAX_LOST, Asker, Refused, UnavailableError
from device_agent.sources.feed import Feed, Given, StoppedError, Tally
from device_agent.sources.outbox import Outbox

GIVEN = Given("id", "application/json", b"[1]", {"file": "a.json"})


class Agent:
    """The other end of every connection: answers with what it is told to, `None` cuts the connection."""

    def __init__(self, *says):
        self.says, self.dials, self.paths = list(says), 0, []

    def dial(self):
        self.dials += 1
        ours, theirs = socket.socketpair()
        threading.Thread(target=self.serve, args=(theirs,), daemon=True).start()
        return ours

    def serve(self, sock):
        with contextlib.suppress(OSError), sock, sock.makefile("rb") as stream:
            while line := stream.readline():
                self.paths.append(line.split()[1].decode())
                size = 0
                while (header := stream.readline().strip()) != b"":
                    name, _, value = header.partition(b":")
                    size = int(value) if name.lower() == b"content-length" else size
                stream.read(size)
                said = self.says.pop(0) if self.says else (200, b'{\n "label": "1" }\n')
                if said is None:
                    return
                status, body = said
                sock.sendall(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))


def told(status, code="c", reason="because"):
    return status, json.dumps({"error": reason, "code": code}).encode()


def test_an_answer_comes_on_one_line_and_the_connection_is_kept():
    agent = Agent()
    asker = Asker(agent.dial, "digits")
    assert [bytes(asker.ask(b"", "x")) for _ in range(2)] == [b'{"label":"1"}'] * 2
    assert (agent.dials, agent.paths) == (1, ["/predict/digits"] * 2)


@pytest.mark.parametrize("status", [400, 413, 415, 422, 500])
def test_what_judges_the_input_is_a_refusal(status):
    assert Asker(Agent(told(status)).dial, "").ask(b"", "x") == Refused("c", "because")
    assert Asker(Agent((status, b"no JSON")).dial, "").ask(b"", "x").reason == f"answered with {status}"


@pytest.mark.parametrize(("status", "is_lost"), [(404, False), (408, False), (503, False), (504, True)])
def test_what_says_nothing_of_the_input_is_asked_again(status, is_lost):
    with pytest.raises(UnavailableError, match="because") as caught:
        Asker(Agent(told(status)).dial, "").ask(b"", "x")
    assert caught.value.is_lost == is_lost


def test_a_connection_that_was_closed_meanwhile_is_made_anew_and_nothing_is_held_against_the_input():
    agent = Agent((200, b"{}"), None)
    asker = Asker(agent.dial, "")
    asker.ask(b"", "x")
    assert bytes(asker.ask(b"", "x")) == b'{"label":"1"}'
    assert agent.dials == 2


@pytest.fixture
def make_feed(tmp_path):
    made = []

    def make(agent):
        made.append(Feed("inbox", "d", Asker(agent.dial, "d"), Outbox(tmp_path / "b.db", ["a"], 50), Tally()))
        return made[-1]

    yield make
    for feed in made:
        feed.outbox.close()


def test_a_patient_source_waits_for_a_model(make_feed):
    agent = Agent(told(503), told(404), None, told(503))
    feed = make_feed(agent)
    assert bytes(feed.answer(GIVEN)) == b'{"label":"1"}'
    assert feed.tally.told(0).waits == ""


def test_an_input_that_is_cut_off_again_and_again_is_refused(make_feed):
    found = make_feed(Agent(*[None] * 9)).answer(GIVEN)
    assert isinstance(found, Refused)
    assert (found.code, f"{MAX_LOST} requests" in found.reason) == ("lost", True)


def test_a_source_that_waits_can_be_ended(make_feed):
    feed = make_feed(Agent(*[told(503)] * 99))
    threading.Timer(0.1, feed.stop).start()
    with pytest.raises(StoppedError):
        feed.answer(GIVEN)


def test_where_no_connection_is_to_be_had_nothing_is_held_against_the_input():
    def dial():
        raise ConnectionRefusedError

    with pytest.raises(UnavailableError) as caught:
        Asker(dial, "").ask(b"", "x")
    assert not caught.value.is_lost


def test_results_say_where_they_came_from(make_feed):
    feed = make_feed(Agent())
    feed.keep(GIVEN, msgspec.Raw(b'{"label":"1"}'))
    kept = json.loads(feed.outbox.owed("a", 1)[0].body)
    assert kept.pop("time")
    assert kept == {
        "id": "id", "source": "inbox", "deployment": "d", "input": {"file": "a.json"}, "answer": {"label": "1"}
    }  # fmt: skip
    threading.Timer(0.1, feed.stop).start()
    with pytest.raises(StoppedError):
        feed.wait_for_room()
    assert "full" in feed.tally.told(0).waits
