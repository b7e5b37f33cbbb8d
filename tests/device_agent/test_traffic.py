"""Bytes by purpose, counted where they pass, and a budget that holds back what can wait."""

import asyncio
import functools
import http.server
import socket
import threading
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent import budget, durable, traffic
from device_agent.budget import Budget, Limits, Spent, Used
from device_agent.clock import Clock
from device_agent.conditions import Conditions
from device_agent.network import Access
from device_agent.spending import CONDITION, Spending
from device_agent.storage import Storage
from device_agent.traffic import Kept, Traffic
from edgekit.errors import UsageError
from edgekit.wire.messages import Passed

MORNING = datetime(2026, 11, 30, 8, tzinfo=UTC)


def running(test):
    @functools.wraps(test)
    def run(*arguments, **named):
        asyncio.run(test(*arguments, **named))

    return run


@pytest.fixture
def pair():
    listener = socket.create_server(("127.0.0.1", 0))
    ours = socket.create_connection(listener.getsockname())
    theirs, _ = listener.accept()
    yield ours, theirs
    for sock in (ours, theirs, listener):
        sock.close()


def exchange(pair, sent, received):
    ours, theirs = pair
    ours.sendall(bytes(sent))
    while sent:
        sent -= len(theirs.recv(sent))
    theirs.sendall(bytes(received))
    while received:
        received -= len(ours.recv(received))


def about(passed, sent, received):
    """TCP counts the number that opens a connection too."""
    return sent <= passed.sent <= sent + 2 and received <= passed.received <= received + 2


def test_what_a_connection_carried_is_counted_while_it_is_open_and_after_it_was_closed(pair):
    made = Traffic()
    meter = made.meter("models", pair[0])
    exchange(pair, 1000, 50_000)
    assert about(made.totals()["models"], 1000, 50_000)
    exchange(pair, 500, 100)
    pair[0].close()
    made.end(meter)
    made.end(meter)
    assert about(made.totals()["models"], 1500, 50_100)
    assert made.totals()["samples"] == Passed(0, 0)


def test_reports_are_told_apart_from_orders_and_nothing_is_counted_twice(pair):
    made = Traffic()
    made.meter("orders", pair[0])
    made.telemetry(sent=700, received=40)
    before = made.totals()
    exchange(pair, 1000, 300)
    after = made.totals()
    assert before["telemetry"] == after["telemetry"] == Passed(700, 40)
    assert about(after["orders"], 300, 260)
    assert traffic.whole(after) <= 1302


def test_counts_go_on_after_a_restart(tmp_path):
    kept_in = traffic.record(tmp_path / "traffic.json")
    traffic.save(kept_in, Kept({"models": Passed(3, 4)}))
    made = Traffic(traffic.record(tmp_path / "traffic.json").load())
    made.add("models", Passed(1, 1))
    assert made.totals()["models"] == Passed(4, 5)


def test_a_socket_that_cannot_be_counted_is_none():
    assert Traffic().meter("orders", SimpleNamespace(fileno=lambda: -1)) is None
    ours, theirs = socket.socketpair()
    made = Traffic()
    made.meter("orders", ours)
    assert made.totals()["orders"] == Passed(0, 0)
    ours.close()
    theirs.close()


class Handler(http.server.BaseHTTPRequestHandler):
    # Answers that end with the connection: http.client closes its end before the body is read.
    protocol_version = "HTTP/1.0"

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(bytes(200_000))

    def log_message(self, *_):
        pass


def test_a_body_that_ends_with_its_connection_is_counted_whole():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    access = Access("", ("127.0.0.1",), lambda: None)
    connection = access.open(f"http://127.0.0.1:{server.server_port}/x", "models")
    connection.connect()
    connection.request("GET", "/x")
    assert len(connection.getresponse().read()) == 200_000
    connection.close()
    got = access.traffic.totals()["models"]
    assert 200_000 < got.received < 200_500
    assert 0 < got.sent < 500
    server.shutdown()
    server.server_close()


def test_the_metrics_name_purpose_and_direction():
    text = traffic.prometheus({"samples": Passed(5, 6)})
    assert 'edgekit_traffic_bytes_total{purpose="samples",direction="sent"} 5\n' in text


# -- the budget ------------------------------------------------------------------------------------------------------


def test_a_budget_is_read_as_people_write_it():
    assert budget.limits(Budget(per_day="20MB", per_month="1.5 GB")) == Limits(20_000_000, 1_500_000_000)
    assert budget.limits(Budget()) == Limits()
    with pytest.raises(UsageError, match=r"per_day = '20': write a size"):
        budget.limits(Budget(per_day="20"))
    with pytest.raises(UsageError, match="per_month"):
        budget.limits(Budget(per_month="0MB"))


def test_a_day_and_a_month_begin_by_a_clock_that_is_known_only():
    spent = budget.turned(Spent(), 100, MORNING)
    assert spent == Spent("2026-11-30", "2026-11", 0, 0)
    assert budget.turned(spent, 200, None) == spent
    later = budget.turned(spent, 300, MORNING + timedelta(days=1))
    assert later == Spent("2026-12-01", "2026-12", 300, 300)
    back = budget.turned(later, 400, MORNING)
    assert (back.before_day, back.before_month) == (300, 300)


@given(
    steps=st.lists(st.tuples(st.integers(0, 50), st.booleans(), st.integers(0, 1000)), max_size=30),
)
def test_what_passed_in_a_known_day_is_never_forgotten_within_it(steps):
    spent, total, hours, by_day = Spent(), 0, 0, {}
    for hour, known, size in steps:
        hours += hour
        now = MORNING + timedelta(hours=hours)
        spent = budget.turned(spent, total, now if known else None)
        total += size
        if known:
            by_day[spent.day] = by_day.get(spent.day, 0) + size
            assert total - spent.before_day >= by_day[spent.day]


@pytest.mark.parametrize(
    ("used", "sample", "window", "model"),
    [
        (0, False, 60, False),
        (79, True, 60, False),
        (70, False, 60, False),
        (90, True, 600, False),
        (99, True, 600, True),
    ],
)
def test_samples_wait_first_then_reports_then_models(used, sample, window, model):
    at = Used("of this day", used, 100)
    assert budget.holds_sample(at, 5) is sample
    assert budget.window_s(at, 60.0) == window
    assert bool(budget.refuses_model(at, 5)) is model


def test_without_a_budget_nothing_is_held_back():
    none = budget.worst(Limits(), Spent(), 10**12)
    assert none is None
    assert not budget.holds_sample(none, 10**9)
    assert budget.window_s(none, 60.0) == 60.0
    assert budget.refuses_model(none, 10**9) == budget.held(none) == ""


def test_windows_are_an_hour_at_most_unless_they_were_longer():
    at = Used("of this day", 95, 100)
    assert budget.window_s(at, 900.0) == 3600.0
    assert budget.window_s(at, 7200.0) == 7200.0


class Set(Clock):
    def __init__(self):
        super().__init__(synchronized=lambda: True)
        self.time = MORNING

    def known(self):
        return self.time


@running
async def test_what_is_held_back_is_told_and_goes_on_the_next_day(tmp_path):
    storage, clock, conditions = Storage(tmp_path), Set(), Conditions()
    made = Spending(
        traffic.record(tmp_path / "traffic.json"), storage, clock, conditions, limits=Limits(day=1_000_000)
    )
    made.tick()
    assert made.may_send(1000)
    assert made.model_waits(900_000) == ""
    made.traffic.add("telemetry", Passed(950_000, 0))
    made.tick()
    assert not made.may_send(1000)
    assert "1.0 of 1 MB of this day" in made.model_waits(900_000) or "0.9 of 1 MB" in made.model_waits(
        900_000
    )
    [condition] = conditions.present()
    assert condition.code == CONDITION
    assert "samples, reports" in condition.detail
    made.is_forced = True
    assert made.model_waits(900_000) == ""
    made.is_forced = False
    await made.save()
    again = Spending(
        traffic.record(tmp_path / "traffic.json"), storage, clock, conditions, limits=Limits(day=1_000_000)
    )
    again.tick()
    assert not again.may_send(1000)
    clock.time = None
    again.tick()
    assert not again.may_send(1000)
    clock.time = MORNING + timedelta(days=1)
    again.tick()
    assert again.may_send(1000)
    assert conditions.present() == ()
    await storage.close()


@running
async def test_counts_that_cannot_be_kept_stop_nothing(tmp_path):
    storage = Storage(tmp_path)
    made = Spending(traffic.record(tmp_path / "traffic.json"), storage, Set(), Conditions(), limits=Limits())

    def broken(_operation):
        raise OSError(30, "Read-only file system")

    with durable.watched(broken):
        await made.save()
    made.traffic.add("models", Passed(1, 2))
    assert made.totals["models"] == Passed(1, 2)
    assert storage.condition == "read-only"
    await storage.close()
