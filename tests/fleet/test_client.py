"""The client that programs import: typed answers, errors as their classes, nothing done twice, names that stay names."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from access_support import NOW, Inside
from store_support import enrolled, rollout_of

from edgekit import bundle
from edgekit.errors import ChangedMeanwhileError, ConflictError, FleetError, NotFoundError, UsageError
from fleet import api
from fleet.client import Client, connect
from fleet.client.transport import _events, at
from fleet.rules.access import Role
from fleet.server.store import rollouts


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    made = Inside(tmp_path / "fleet")
    yield made
    made.close()


class Line(httpx.BaseTransport):
    """The way to a service, which may break once the service has done what was asked."""

    def __init__(self, inside: Inside, token: str) -> None:
        self._service: Any = inside.client(token)
        self.breaks = 0
        self.sent: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request)
        headers = [(name, value) for name, value in request.headers.raw if name.lower() != b"host"]
        answer = self._service.request(
            request.method, str(request.url), content=request.read(), headers=headers
        )
        if self.breaks:
            self.breaks -= 1
            raise httpx.ReadError("the connection was lost", request=request)
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


@pytest.fixture
def line(inside: Inside) -> Line:
    return Line(inside, inside.token("ada", Role.ADMIN))


@pytest.fixture
def fleet(line: Line) -> Iterator[Client]:
    with connect("http://127.0.0.1:8080", "unused") as client:
        client._transport._http = httpx.Client(base_url="http://127.0.0.1:8080/api/v1", transport=line)
        yield client


def test_an_answer_that_was_lost_is_asked_for_again_and_the_thing_is_done_once(
    fleet: Client, line: Line
) -> None:
    line.breaks = 1
    made = fleet.add_token(api.NewToken("ci", "viewer"))
    assert (made.name, len(line.sent)) == ("ci", 2)
    assert [token.name for token in fleet.tokens()] == ["ada", "ci"]


def test_a_line_that_stays_broken_is_said_to_be(fleet: Client, line: Line) -> None:
    line.breaks = 2
    with pytest.raises(FleetError, match="cannot be reached"):
        fleet.status()


def test_each_request_has_a_key_of_its_own(fleet: Client, line: Line) -> None:
    for name in ("lab-1", "lab-2"):
        fleet.enroll(api.NewDevice(name, ("digits",)))
    fleet.devices()
    keys = [request.headers.get("idempotency-key") for request in line.sent]
    assert (keys[2], len(set(keys))) == (None, 3)


def test_errors_come_back_as_their_classes(fleet: Client) -> None:
    with pytest.raises(NotFoundError, match="there is no device 'nobody'"):
        fleet.explain("nobody")
    fleet.add_token(api.NewToken("ci", "viewer"))
    with pytest.raises(ConflictError):
        fleet.add_token(api.NewToken("ci", "viewer"))


def test_a_decision_by_what_was_seen_is_refused_once_another_was_first(inside: Inside, fleet: Client) -> None:
    enrolled(inside.database, ["d1", "d2"])
    with inside.database.begin() as connection:
        rollouts.add(connection, rollout_of(["d1", "d2"]), NOW)
    seen = fleet.rollout("r1")
    fleet.turn("r1", "pause", if_match=seen.tag)
    with pytest.raises(ChangedMeanwhileError):
        fleet.turn("r1", "abort", if_match=seen.tag)
    assert [member.device for member in fleet.members("r1")] == ["d1", "d2"]
    assert list(fleet.members("r1", "failed")) == []


def test_lists_are_whole_however_many_pages_they_have(inside: Inside, fleet: Client) -> None:
    enrolled(inside.database, [f"d{n:04}" for n in range(1203)])
    assert len(fleet.devices()) == 1203


def test_a_large_file_gives_the_service_longer_to_answer(fleet: Client, line: Line, tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(40_000_000)
    fleet.upload(path, bundle.sha256_file(path), lambda _: None)
    with pytest.raises(FleetError):
        fleet.register(api.NewBundle("0" * 64, None), 40_000_000)
    usual = fleet._transport._http.timeout.read
    assert usual is not None
    assert [request.extensions["timeout"]["read"] - usual for request in line.sent] == [2.0, 4.0]


@pytest.mark.parametrize("name", ["../tokens", "a/b", "a?limit=1", "%2e", "ü#", "site lab"])
def test_a_name_stays_one_part_of_the_path(fleet: Client, line: Line, name: str) -> None:
    with pytest.raises(FleetError):
        fleet.explain(name)
    assert line.sent[-1].url.raw_path.count(b"/") - line.sent[-1].url.raw_path.count(b"%2F") <= 5
    assert line.sent[-1].url.raw_path.endswith(b"/explain")


def test_a_path_is_made_of_names() -> None:
    assert at("/devices/{}/explain", "a/b c") == "/devices/a%2Fb%20c/explain"
    assert at("/blocked/{}/remove", "digits@1.0.0+b") == "/blocked/digits@1.0.0%2Bb/remove"


def test_a_token_is_not_sent_in_the_clear_to_another_machine() -> None:
    with pytest.raises(UsageError, match="in the clear"):
        connect("http://fleet.example.com", "secret")


def test_the_stream_of_events_is_read_as_browsers_do() -> None:
    text = 'retry: 2000\nid: 7\n\n: still here\n\nevent: changed\ndata: {"kind":"device","ids":["a"]}\n\n'
    text += 'event: changed\ndata: {"kind":"fleet"}\nid: 9\n\ndata: {"kind":"rol'
    found = list(_events(iter(text.split("\n")), ""))
    assert found == [("7", api.Change("device", ("a",))), ("9", api.Change("fleet"))]


def test_the_package_itself_loads_no_http() -> None:
    program = "import sys, fleet.client; assert 'httpx' not in sys.modules; fleet.client.connect; assert 'httpx' in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
