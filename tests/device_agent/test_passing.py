"""Unfamiliar inputs that are answered elsewhere: by whom `agent.toml` names, within time and size, or with a reason."""

import asyncio
import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from device_agent import agentfile
from device_agent.agentfile import GuardTable
from device_agent.passing import MAX_ANSWER_BYTES, MOST, Asker, Passer
from device_agent.serve.http import HttpError, Request, parse_head
from edgekit.errors import UsageError

HEAD = parse_head(
    b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nCookie: secret\r\n\r\n"
)
REQUEST = Request(HEAD, b'{"input": [1, 2]}')


@pytest.fixture
def expert():
    """Somebody who answers; `answers` are its next ones, `asked` what it got."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.asked.append((self.path, dict(self.headers), body))
            status, answer, headers = self.server.answers.pop(0)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.asked, server.daemon_threads = [], [], True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(url, *, timeout_s=5.0, count=1):
    """A worker's and a supervisor's end, joined."""

    async def story():
        passer = Passer(GuardTable(url=url, timeout_s=timeout_s))
        asker = Asker("digits", timeout_s, lambda fd, about: passer.take(fd, about, asker.take))
        return await asyncio.gather(*(asker.ask(REQUEST) for _ in range(count)), return_exceptions=True)

    before = list(Path("/proc/self/fd").iterdir())
    found = asyncio.run(story())
    assert len(list(Path("/proc/self/fd").iterdir())) <= len(before) + 2, "no descriptor is left"
    return found


def test_what_the_address_answers_is_the_answer(expert):
    expert.answers.append((200, b'{"label": "a letter"}', {"Content-Type": "application/json"}))
    (answer,) = ask(f"http://127.0.0.1:{expert.server_port}/who?is=it")
    assert (answer.status, answer.body) == (200, b'{"label": "a letter"}')
    assert answer.headers["edgekit-unfamiliar"] == "passed"
    ((path, headers, body),) = expert.asked
    assert path == "/who?is=it"
    assert body == REQUEST.body
    assert headers["Edgekit-Deployment"] == "digits"
    assert "Cookie" not in headers, "nothing else of the client goes out"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((302, b"", {"Location": "http://127.0.0.1:1/"}), "it answered 302"),
        ((200, b"x" * (MAX_ANSWER_BYTES + 1), {}), "more than 4 MiB"),
    ],
)
def test_an_answer_that_is_none_is_a_502_with_the_reason(expert, answer, said):
    expert.answers.append(answer)
    (error,) = ask(f"http://127.0.0.1:{expert.server_port}/")
    assert isinstance(error, HttpError)
    assert error.status == 502
    assert said in str(error)


def test_nobody_there_is_a_502(tmp_path):
    (error,) = ask("http://127.0.0.1:9/")
    assert (error.status, error.word) == (502, "passing")


def test_an_answer_that_comes_byte_by_byte_ends_with_the_time_and_frees_its_place():
    ended = threading.Event()

    class Trickle(BaseHTTPRequestHandler):
        def do_POST(self):
            with contextlib.suppress(OSError):
                self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
                while not ended.wait(0.05):
                    self.wfile.write(b"x")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Trickle)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()

    async def story():
        passer = Passer(GuardTable(url=f"http://127.0.0.1:{server.server_port}/", timeout_s=1))
        asker = Asker("digits", 60, lambda fd, about: passer.take(fd, about, asker.take))
        found = []
        for _ in range(2):
            found += await asyncio.gather(*(asker.ask(REQUEST) for _ in range(MOST)), return_exceptions=True)
        return found

    try:
        found = asyncio.run(story())
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
    assert {error.status for error in found} == {502}
    assert {"no whole answer within 1 s" in str(error) for error in found} == {True}


def test_no_more_than_so_many_wait(expert):
    expert.answers += [(200, b"{}", {})] * (MOST + 1)
    found = ask(f"http://127.0.0.1:{expert.server_port}/", count=MOST + 1)
    refused = [one for one in found if isinstance(one, HttpError)]
    assert [error.status for error in refused] == [503]


def read(text, tmp_path: Path):
    return agentfile.parse(text, tmp_path / "agent.toml").guard


def test_the_address_stands_in_the_devices_own_file(tmp_path):
    found = read('[guard]\nanswer = "pass"\nurl = "https://example.org/x"\nca_file = "ca.pem"', tmp_path)
    assert (found.answer, found.url, found.ca_file) == (
        "pass",
        "https://example.org/x",
        str(tmp_path / "ca.pem"),
    )
    assert read("", tmp_path) == GuardTable()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[guard]\nanswer = "pass"', "needs a url"),
        ('[guard]\nurl = "ftp://example.org"', "no http or https address"),
        ('[guard]\nurl = "https://me:secret@example.org"', "no name and password"),
        ('[guard]\nanswer = "perhaps"', "guard: answer"),
        ("[guard]\ntimeout_s = 0", "guard: timeout_s"),
        ("[guard]\nadress = 1", "did you mean 'ca_file'|unknown key"),
    ],
)
def test_a_table_that_cannot_be_is_refused_with_the_key(text, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        read(text, tmp_path)
