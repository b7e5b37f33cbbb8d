"""Answers are on disk until every sink has them, within a bound; sinks are tried until they take."""

import json
import threading

import pytest

from device_agent.agentfile import FileSink
from device_agent.sinks.delivery import Delivery, Taken
from device_agent.sinks.file import File
from device_agent.sources import outbox as outboxes
from device_agent.sources import standing
from device_agent.sources.feed import Tally
from device_agent.sources.outbox import Outbox, Owed, is_seen, see
from device_agent.sources.standing import SourceStatus, SourceTold
from edgekit.errors import FeedError


@pytest.fixture
def make_outbox(tmp_path):
    made = []

    def make(*sinks, most=1 << 20):
        made.append(Outbox(tmp_path / "backlog.db", sinks, most))
        return made[-1]

    yield make
    for one in made:
        one.close()


def uids(outbox, sink):
    return [one.uid for one in outbox.owed(sink, 99)]


def test_an_answer_leaves_when_each_sink_has_it_and_survives_a_restart(make_outbox):
    outbox = make_outbox("a", "b")
    for uid in ("1", "2"):
        outbox.put(uid, b"body")
    outbox.taken("a", [one.number for one in outbox.owed("a", 1)])
    outbox.close()
    again = make_outbox("a", "b")
    assert (uids(again, "a"), uids(again, "b"), again.answers) == (["2"], ["1", "2"], 2)
    again.taken("b", [one.number for one in again.owed("b", 9)])
    assert (uids(again, "a"), uids(again, "b"), again.answers) == (["2"], [], 1)


def test_what_is_owed_to_a_sink_that_is_gone_is_owed_to_nobody(make_outbox):
    outbox = make_outbox("a", "b")
    outbox.put("1", b"body")
    outbox.taken("a", [one.number for one in outbox.owed("a", 9)])
    outbox.close()
    again = make_outbox("a")
    again.put("2", b"body")
    assert (uids(again, "a"), again.answers) == (["2"], 1)


def test_there_is_one_answer_of_an_id(make_outbox):
    outbox = make_outbox("a")
    outbox.put("1", b"first")
    outbox.put("1", b"second")
    assert [one.body for one in outbox.owed("a", 9)] == [b"first"]


def test_what_a_source_remembers_is_kept_with_the_answer_or_not_at_all(make_outbox):
    outbox = make_outbox("a")

    def fails(db):
        see(db, "sent")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        outbox.put("1", b"body", fails)
    assert uids(outbox, "a") == []
    assert not outbox.remember(lambda db: is_seen(db, "sent"))
    outbox.put("1", b"body", lambda db: see(db, "sent"))
    assert outbox.remember(lambda db: is_seen(db, "sent"))


def test_only_the_newest_ids_are_remembered(make_outbox, monkeypatch):
    monkeypatch.setattr(outboxes, "MAX_SEEN", 2)
    outbox = make_outbox("a")
    for uid in ("1", "2", "3"):
        outbox.remember(lambda db, uid=uid: see(db, uid))
    seen = [outbox.remember(lambda db, uid=uid: is_seen(db, uid)) for uid in ("1", "2", "3")]
    assert seen == [False, True, True]


def test_beyond_its_bound_it_is_full_and_the_oldest_make_room_where_they_may(make_outbox):
    outbox = make_outbox("a", most=100)
    lost = [outbox.put(str(number), bytes(40), makes_room=True) for number in range(5)]
    assert outbox.is_full
    assert lost == [0, 0, 0, 1, 1]
    assert uids(outbox, "a") == ["2", "3", "4"]
    assert outbox.put("5", bytes(40)) == 0
    outbox.taken("a", [one.number for one in outbox.owed("a", 9)])
    assert not outbox.is_full


def test_inputs_wait_in_order_and_leave_with_their_answer(make_outbox):
    outbox = make_outbox("a", most=100)
    assert [outbox.keep_waiting(b"", bytes([number]) * 40) for number in range(4)] == [0, 0, 0, 1]
    number, _, body = outbox.next_waiting()
    assert body[0] == 1
    outbox.put("1", b"", outbox.done_waiting(number))
    assert outbox.next_waiting()[2][0] == 2


def test_a_damaged_backlog_is_set_aside(make_outbox, tmp_path):
    outbox = make_outbox("a")
    outbox.put("1", b"body")
    outbox.close()
    (tmp_path / "backlog.db").write_bytes(b"no database" * 500)
    again = make_outbox("a")
    again.put("2", b"body")
    assert (uids(again, "a"), again.lost_files) == (["2"], 1)
    assert (tmp_path / "backlog.db.damaged").exists()


# -- sinks -----------------------------------------------------------------------------------------------------------


def owed(*bodies):
    return [Owed(number, str(number), body) for number, body in enumerate(bodies)]


def test_lines_are_appended_and_a_torn_one_is_cut_off(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text('{"whole": 1}\n{"torn": ')
    sink = File(FileSink(name="f", path=str(path)))
    assert sink.deliver(owed(b"{}", b"[]")) == Taken((0, 1))
    assert path.read_text() == '{"whole": 1}\n{}\n[]\n'
    path.write_text("no line at all")
    sink.deliver(owed(b"{}"))
    assert path.read_text() == "{}\n"


def test_a_file_is_rotated_by_size_and_the_oldest_go(tmp_path):
    path = tmp_path / "out.jsonl"
    sink = File(FileSink(name="f", path=str(path), max_mb=1, keep=2))
    for number in range(5):
        sink.deliver(owed(bytes([65 + number]) * 600_000))
    found = {one.name: one.read_bytes()[:1] for one in tmp_path.iterdir() if not one.name.startswith(".")}
    assert found == {"out.jsonl": b"E", "out.jsonl.1": b"D", "out.jsonl.2": b"C"}


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    sink = File(FileSink(name="f", path=str(tmp_path / "no" / "out.jsonl")))
    with pytest.raises(FeedError, match="cannot be written"):
        sink.deliver(owed(b"{}"))


class Fickle:
    """Takes nothing at first, then one at a time; one of them it refuses for good."""

    def __init__(self):
        self.tries, self.has, self.is_closed = 0, [], threading.Event()

    def deliver(self, answers):
        self.tries += 1
        if self.tries <= 2:
            raise FeedError("not now")
        one = answers[0]
        if one.uid == "bad":
            return Taken((), (one.number,))
        self.has.append(one.uid)
        return Taken((one.number,))

    def close(self):
        self.is_closed.set()


def test_a_sink_is_tried_until_it_takes_and_each_answer_goes_once(make_outbox, monkeypatch):
    monkeypatch.setattr("device_agent.sinks.delivery.FIRST_PAUSE_S", 0.01)
    outbox, tally, sink = make_outbox("a"), Tally(), Fickle()
    for uid in ("1", "bad", "2"):
        outbox.put(uid, b"body")
    delivery = Delivery("a", sink, outbox, tally)
    delivery.start()
    while outbox.answers:
        threading.Event().wait(0.01)
    delivery.stop()
    delivery.join(10)
    assert sink.has == ["1", "2"]
    assert sink.is_closed.is_set()
    told = tally.told(0)
    assert (told.delivered, told.dropped, told.sinks) == (2, 1, {})


# -- how sources stand -----------------------------------------------------------------------------------------------


def test_what_is_wrong_is_a_condition_for_all_sources_together():
    one = SourceStatus(
        "a", "mqtt", "", "failing", SourceTold(sinks={"hook": "answered with 500"}), why="no broker"
    )
    two = SourceStatus("b", "folder", "", "failing", why="no folder")
    slow = SourceStatus("c", "folder", "", "running", SourceTold(waits="no model"), waits_s=standing.WAITS_S)
    brief = SourceStatus("d", "folder", "", "running", SourceTold(waits="no model"), waits_s=1.0)
    assert standing.conditions_of([one, two, slow, brief]) == {
        "source-failing": "a: no broker; b: no folder",
        "source-waiting": "c: no model",
        "sink-failing": "hook (of a): answered with 500",
    }
    assert standing.conditions_of([brief]) == {}


def test_counts_go_on_from_process_to_process():
    before = SourceTold(read=3, answered=2, dropped=1, waiting=7, error="died")
    now = SourceTold(read=1, refused=1, waiting=2)
    assert standing.total(before, now) == SourceTold(read=4, answered=2, refused=1, dropped=1, waiting=2)


def test_the_status_shows_them():
    told = SourceTold(read=5, answered=3, refused=1, dropped=1, delivered=2, waiting=1, sinks={"hook": "no"})
    one = SourceStatus("gate", "camera", "people", "failing", told, why="gone", starts=4)
    shown = "\n".join(standing.render([one], is_running=True))
    assert "source gate (camera) to people: failing" in shown
    assert "5 read, 3 answered, 1 refused, 1 dropped" in shown
    assert "why      gone" in shown
    assert "not running" in "\n".join(standing.render([one], is_running=False))
    assert json.dumps(shown)
