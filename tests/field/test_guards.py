"""A bundle's guard on boards of a fleet: what a client gets, who else is asked, and what the fleet hears of it."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from agent_support import IMAGE, made
from field_support import Board, Field

from device_agent.passing import MOST
from edgekit.samples import load_npz

pytestmark = [pytest.mark.slow, pytest.mark.proof]

STRANGE = np.full((8, 8), 16.0, np.float32).tolist()
ANSWER = b'{"label": "a letter"}'
TIMEOUT_S = 2.0


class Expert(ThreadingHTTPServer):
    """Who is asked about unfamiliar inputs; it answers as `mood` says, and `asked` holds the bodies it got."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mood = "well"
        self.asked: list[bytes] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: object) -> None:
        pass


class Handler(BaseHTTPRequestHandler):
    server: Expert

    def do_POST(self) -> None:
        self.server.asked.append(self.rfile.read(int(self.headers["Content-Length"])))
        getattr(self, self.server.mood)()

    def answers(self, status: int, body: bytes = ANSWER, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def well(self) -> None:
        self.answers(200)

    def troubled(self) -> None:
        self.answers(500, b'{"error": "out of order"}')

    def elsewhere(self) -> None:
        self.answers(302, Location=f"http://127.0.0.1:{self.server.server_port}/")

    def endless(self) -> None:
        self.answers(200, b"x" * (5 << 20))

    def gone(self) -> None:
        pass

    def garbled(self) -> None:
        self.wfile.write(b"\x00\xff" * 100 + b"\r\n\r\n")

    def forging(self) -> None:
        self.answers(200, **{"Content-Type": "text/html\x0bX-Evil: 1"})

    def slow(self) -> None:
        time.sleep(4 * TIMEOUT_S)
        self.answers(200)

    def trickling(self) -> None:
        self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
        for _ in range(600):
            self.wfile.write(b" ")
            time.sleep(0.1)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def expert() -> Iterator[Expert]:
    server = Expert()
    yield server
    server.shutdown()
    server.server_close()


def serving(field: Field, *boards: Board) -> None:
    field.publish(made.build_guarded(field.folder, answer="flag"))
    field.operator.types("assign", "digits@1.0.0", "--to", "site=field", "--probation", "1s")
    for board in boards:
        field.wait(lambda board=board: board.runs("1.0.0"), f"{board.name} serves")


def is_counted(field: Field, board: Board, requests: int, guarded: int) -> None:
    """The fleet adds up what the board's clients got, and blames nobody."""
    field.wait(lambda: board.deployment.telemetry.requests == requests, "it is reported")
    told = board.deployment.telemetry
    assert (told.guarded, told.errors) == (guarded, 0)
    assert f"{guarded} unfamiliar" in field.operator.types("device", "show", board.name)


@pytest.mark.timeout(1200)
def test_who_else_is_asked_may_do_what_he_will(field: Field, expert: Expert) -> None:
    table = f'[guard]\nanswer = "pass"\nurl = "http://127.0.0.1:{expert.server_port}/who"\ntimeout_s = {TIMEOUT_S}\n'
    board = field.board("north", agentfile=table)
    serving(field, board)
    assert board.post(IMAGE).json["version"] == "1.0.0"
    answer = board.post(STRANGE)
    assert (answer.status, answer.body, answer.headers["edgekit-unfamiliar"]) == (200, ANSWER, "passed")
    assert [json.loads(body) for body in expert.asked] == [{"input": STRANGE}]

    said = {}
    for mood in ("troubled", "elsewhere", "endless", "gone", "garbled", "slow", "trickling", "forging"):
        expert.mood = mood
        since = time.monotonic()
        answer = board.post(STRANGE)
        said[mood] = answer.status
        assert time.monotonic() - since < 4 * TIMEOUT_S, mood
        assert "x-evil" not in answer.headers
        if answer.status == 502:
            assert answer.json["code"] == "passing", mood
        assert board.post(IMAGE).status == 200, "the model answers on"
    assert said == dict.fromkeys(said, 502) | {"troubled": 500, "forging": 200}

    expert.mood = "trickling"
    with ThreadPoolExecutor(MOST + 2) as clients:
        many = [clients.submit(board.post, STRANGE) for _ in range(MOST + 2)]
        assert board.post(IMAGE).status == 200, "those who wait for others keep nobody waiting"
        statuses = [one.result().status for one in many]
    assert sorted(set(statuses)) == [502, 503]
    expert.mood = "well"
    assert board.post(STRANGE).body == ANSWER, "each place is free again"
    strange = 1 + len(said) + MOST + 2 + 1
    is_counted(field, board, strange + 1 + len(said) + 1, strange)


@pytest.mark.timeout(1200)
def test_what_is_flagged_or_refused_comes_back_for_training(field: Field) -> None:
    flags = field.board("north")
    refuses = field.board("south", agentfile='[guard]\nanswer = "refuse"\n')
    serving(field, flags, refuses)
    before = {board.name: board.view.order_counter for board in field.boards}
    wanted = ("--on", "site=field", "--guard", "--per-device", "2", "--for", "1h", "--json")
    name = json.loads(field.operator.types("samples", "collect", "digits", *wanted))["id"]
    field.wait(lambda: all(board.follows(before[board.name] + 1) for board in field.boards), "they are told")
    for _ in range(3):
        answer = flags.post(STRANGE)
        assert (answer.status, answer.json["parameters"]["unfamiliar"]) == (200, True)
        assert answer.json["parameters"]["excess"] > 1
        assert answer.json["label"]
        assert "parameters" not in flags.post(IMAGE).json
        answer = refuses.post(STRANGE)
        assert (answer.status, answer.json["code"]) == (422, "unfamiliar")
        assert refuses.post(IMAGE).status == 200
    for board in field.boards:
        is_counted(field, board, 6, 3)
    field.wait(lambda: len(list(field.client.samples(name))) == 4, "two of each board come back")
    out = field.folder / "samples"
    field.operator.types("samples", "download", name, "--out", out)
    came = load_npz(out / "raw.npz").inputs["x"]
    assert all(np.array_equal(one, np.asarray(STRANGE, came.dtype)) for one in came)
    index = json.loads((out / "index.json").read_text())
    assert {one["about"]["reason"] for one in index} == {"guard"}
    assert sorted(one["about"]["device"] for one in index) == ["north", "north", "south", "south"]
