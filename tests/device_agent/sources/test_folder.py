"""A folder as a source: what is taken when, and the order of what is written."""

import os

import msgspec
import pytest

from device_agent import durable
from device_agent.agentfile import FolderSource
from device_agent.sources.feed import Feed, Tally
from device_agent.sources.folder import Folder
from device_agent.sources.outbox import Outbox
from edgekit.errors import FeedError


class Model:
    def __init__(self):
        self.asked, self.meanwhile = [], lambda: None

    def ask(self, body, content_type):
        self.asked.append((body, content_type))
        self.meanwhile()
        return msgspec.Raw(b"{}")


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def at_work(tmp_path):
    """A folder, its source with a clock of its own, and the model."""

    class AtWork:
        root = tmp_path / "in"
        model, clock = Model(), Clock()
        outbox = Outbox(tmp_path / "backlog.db", ["lines"], 1 << 20)
        feed = Feed("inbox", "", model, outbox, Tally())

        def __init__(self):
            self.root.mkdir()
            self.folder = Folder(FolderSource(name="inbox", path=str(self.root), settle_s=2), self.clock)
            self.folder.prepare()

        def turn(self, after_s=0.0):
            self.clock.now += after_s
            self.folder.turn(self.feed)

        def names(self, below=""):
            return sorted(one.name for one in (self.root / below).iterdir() if one.is_file())

    made = AtWork()
    yield made
    made.outbox.close()


def test_a_file_is_taken_once_it_has_stayed_the_same(at_work):
    path = at_work.root / "a.json"
    path.write_text("1")
    at_work.turn()
    path.write_text("12")
    at_work.turn(1.9)
    at_work.turn(1.9)
    assert at_work.model.asked == []
    at_work.turn(0.2)
    assert at_work.model.asked == [(b"12", "application/json")]
    assert (at_work.names(), at_work.names("done")) == ([], ["a.json"])


def test_unfinished_work_links_and_folders_are_left_alone(at_work, tmp_path):
    (tmp_path / "elsewhere.json").write_text("1")
    (at_work.root / "link.json").symlink_to(tmp_path / "elsewhere.json")
    (at_work.root / "sub").mkdir()
    os.mkfifo(at_work.root / "pipe.json")
    for name in (".hidden.json", "a.json.part", "b.tmp"):
        (at_work.root / name).write_text("1")
    at_work.turn()
    at_work.turn(9)
    assert at_work.model.asked == []
    assert len(list(at_work.root.iterdir())) == 8


def test_a_name_that_is_taken_gets_a_number_and_names_of_any_bytes_are_taken(at_work):
    for _ in range(3):
        (at_work.root / "a.json").write_text("1")
        at_work.turn()
        at_work.turn(3)
    (at_work.root / os.fsdecode(b"\xff.json")).write_text("2")
    at_work.turn()
    at_work.turn(3)
    assert at_work.names("done") == ["a.1.json", "a.2.json", "a.json", os.fsdecode(b"\xff.json")]
    assert len({one.uid for one in at_work.outbox.owed("lines", 9)}) == 4


def test_a_file_that_takes_the_name_meanwhile_is_another_one(at_work):
    path = at_work.root / "latest.json"

    def replace():
        at_work.model.meanwhile = lambda: None
        (at_work.root / ".new").write_text("2")
        (at_work.root / ".new").rename(path)

    at_work.model.meanwhile = replace
    path.write_text("1")
    at_work.turn()
    at_work.turn(3)
    assert at_work.names() == ["latest.json"]
    at_work.turn(3)
    at_work.turn(3)
    assert [body for body, _ in at_work.model.asked] == [b"1", b"2"]
    assert (at_work.names(), at_work.names("done")) == ([], ["latest.json"])


def test_a_file_is_moved_and_that_is_on_disk_before_its_claim_is_forgotten(at_work, monkeypatch):
    told = []
    real = at_work.outbox.do
    monkeypatch.setattr(at_work.outbox, "do", lambda work: (told.append("transaction"), real(work))[1])
    (at_work.root / "a.json").write_text("1")
    at_work.turn()
    told.clear()
    with durable.watched(lambda one: told.append(f"{one.kind} {one.path.name}")):
        at_work.turn(3)
    # The look at the claims; answer and claim; the move with both its folders; the claim's end.
    assert told == [
        "transaction", "transaction", "rename a.json", "sync-folder done", "sync-folder in", "transaction"
    ]  # fmt: skip


def test_a_folder_that_is_not_there_is_told(at_work):
    gone = Folder(FolderSource(name="inbox", path="/proc/no"))
    with pytest.raises(FeedError, match="make the folder, or give it to the agent's user"):
        gone.prepare()
