"""The updates' child: what it says of a publisher's targets and order keys, and what it makes of a damaged disk."""

import asyncio
import functools
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from lying_repository import NOW, Repository
from tuf.api.metadata import TargetFile

from device_agent.tuf import child, lookup
from device_agent.tuf.question import Listed, Question
from device_agent.update.events import Cause
from device_agent.update.fetch import FetchError
from edgekit import delta
from edgekit.trust import orderkeys
from edgekit.trust.orderkeys import OrderKeys
from edgekit.wire.enrolment import BrokerAddress, EnrolmentFile
from edgekit.wire.messages import OrderedBundle

SHA = "a" * 64
PATH = f"digits/1.0.0/x86-64-v3/{SHA}.edgekit"
OLD, NEW = {"old": "0" * 64}, {"new": "1" * 64}


@pytest.fixture
def listing(repository):
    """The repository of `conftest`, with one bundle of which only the name is signed."""
    repository.targets().targets[PATH] = TargetFile(100, {"sha256": SHA}, PATH)
    repository.publish("targets", "snapshot", "timestamp")
    return repository


def question(repository: Any, *paths: str, **changed: Any) -> Question:
    url = f"{repository.url}/metadata"
    root = repository.first_root.decode()

    made = {
        "folder": str(repository.folder / "device" / "tuf"), "root": root, "metadata_url": url,
        "allowed_hosts": ("127.0.0.1",), "ca": "", "now": NOW, "known": None, "paths": paths,
    }  # fmt: skip
    return Question(**(made | changed))


def running(test: Any) -> Any:
    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run


def list_order_keys(repository: Any, keys: dict[str, str], data: bytes | None = None) -> None:
    data = data if data is not None else orderkeys.write(OrderKeys(keys))
    repository.add(orderkeys.PATH, data)
    name = next(path for path in repository.served if path.startswith("/targets/_fleet/"))
    repository.served[name.replace("/targets/", "/metadata/targets/")] = repository.served.pop(name)
    repository.publish("targets", "snapshot", "timestamp")


def test_says_length_and_hash_of_what_is_listed_and_nothing_of_the_rest(listing):
    told = child.answer(question(listing, PATH, PATH.replace("1.0.0", "2.0.0")))
    assert (told.trouble, list(told.listed)) == ("", [PATH])
    assert (told.listed[PATH].length, told.listed[PATH].sha256) == (100, SHA)
    assert told.order_keys is None


def test_order_keys_are_those_that_are_listed_now(listing):
    list_order_keys(listing, OLD)
    assert child.answer(question(listing)).order_keys == OrderKeys(OLD)
    list_order_keys(listing, NEW)
    assert child.answer(question(listing)).order_keys == OrderKeys(NEW)


def test_an_older_list_of_order_keys_is_refused(listing):
    list_order_keys(listing, OLD)
    before = dict(listing.served)
    child.answer(question(listing))
    list_order_keys(listing, NEW)
    child.answer(question(listing))
    listing.served = before
    told = child.answer(question(listing))
    assert told.order_keys is None
    assert told.trouble


@pytest.mark.parametrize("data", [b"{}", b'{"keys": {}}', b'{"keys": {"a": "nonsense"}}', b"\xff"])
def test_a_signed_list_that_cannot_be_read_changes_nothing(listing, data):
    list_order_keys(listing, {}, data)
    told = child.answer(question(listing))
    assert told.order_keys is None
    assert "cannot be read" in told.trouble


def test_a_list_altered_on_the_way_is_refused(listing):
    list_order_keys(listing, OLD)
    name = next(path for path in listing.served if path.endswith(".order-keys.json"))
    listing.served[name] = listing.served[name].replace(b"0", b"2", 1)
    assert "altered or damaged" in child.answer(question(listing)).trouble


HARM = {
    "a root that is cut": lambda folder: (folder / "root.json").write_bytes(b'{"signed": {'),
    "no root": lambda folder: (folder / "root.json").unlink(),
    "an empty anchor": lambda folder: (folder / "anchor").write_bytes(b""),
    "zeroes for a timestamp": lambda folder: (folder / "timestamp.json").write_bytes(bytes(100)),
    "a snapshot that is cut": lambda folder: (folder / "snapshot.json").write_bytes(b"{"),
    "targets of another": lambda folder: (folder / "targets.json").write_bytes(b'{"signatures": []}'),
    "nothing at all": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("harm", HARM)
def test_what_a_disk_lost_is_had_again_from_the_enrolments_root(harm, listing):
    child.answer(question(listing, PATH))
    HARM[harm](listing.folder / "device" / "tuf")
    told = child.answer(question(listing, PATH))
    assert (told.trouble, list(told.listed)) == ("", [PATH])


def test_whoever_enrols_with_another_root_trusts_that_from_then_on(listing, tmp_path):
    child.answer(question(listing, PATH))
    other = Repository(tmp_path / "other")
    try:
        mixed = question(listing, PATH, root=other.first_root.decode())
        assert child.answer(mixed).trouble, "the old fleet's metadata are nothing to it"
        told = child.answer(question(listing, metadata_url=f"{other.url}/metadata", root=mixed.root))
        assert told.trouble == ""
    finally:
        other.close()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"now": datetime(2099, 1, 1, tzinfo=UTC)}, "expired"),
        ({"root": "{}"}, "root"),
        ({"root": ""}, "root"),
        ({"metadata_url": "http://127.0.0.1:1/tuf"}, "refused"),
        ({"allowed_hosts": ("elsewhere",)}, "not among the hosts"),
        ({"metadata_url": "http://10.0.0.1/tuf", "allowed_hosts": ("10.0.0.1",)}, "without TLS"),
    ],
)
def test_trouble_is_told_and_nothing_else(listing, changed, words):
    told = child.answer(question(listing, PATH, **changed))
    assert words in told.trouble
    assert (told.listed, told.order_keys) == ({}, None)


# -- from the supervisor ---------------------------------------------------------------------------------------------


class _Clock:
    def __init__(self, now: datetime) -> None:
        self.trusted = lambda: now
        self.for_updates: Callable[[], datetime | None] = lambda: now
        self.known = lambda: None


def make_lookup(repository: Any, heard: list[OrderKeys | None]) -> lookup.Lookup:
    file = EnrolmentFile(
        2, "lab", "board", "", "", "", ("127.0.0.1",), BrokerAddress("127.0.0.1", 1), {},
        repository.first_root.decode(), f"{repository.url}/metadata", (),
    )  # fmt: skip

    async def hear(keys: OrderKeys | None) -> None:
        heard.append(keys)

    folder = repository.folder / "device" / "tuf"
    return lookup.Lookup(folder, file, _Clock(NOW), hear)


@running
async def test_a_real_child_checks_an_orders_bundle(listing):
    list_order_keys(listing, NEW)
    heard: list[OrderKeys | None] = []
    look = make_lookup(listing, heard)
    await look.check(OrderedBundle(PATH, SHA, 100), ())
    assert heard == [OrderKeys(NEW)]
    with pytest.raises(FetchError, match="the publisher signed 100 bytes") as refused:
        await look.check(OrderedBundle(PATH, SHA, 101), ())
    assert refused.value.cause is Cause.ORDER
    with pytest.raises(FetchError, match="not among what the publisher signed") as refused:
        await look.check(OrderedBundle(PATH.replace("1.0.0", "3.0.0"), SHA, 100), ())
    assert refused.value.cause is Cause.ORDER


@running
async def test_no_update_is_looked_for_before_the_time_is_known_and_order_keys_are(listing, monkeypatch):
    list_order_keys(listing, NEW)
    heard: list[OrderKeys | None] = []
    look = make_lookup(listing, heard)
    monkeypatch.setattr(look._clock, "for_updates", lambda: None)
    with pytest.raises(FetchError, match="updates wait until the time is known") as waits:
        await look.check(OrderedBundle(PATH, SHA, 100), ())
    assert (waits.value.cause, heard) == (Cause.PASSING, [])
    await look.look()
    assert heard == [OrderKeys(NEW)], "or a rotated key would keep the order away that tells the time"
    monkeypatch.setattr(look._clock, "for_updates", lambda: datetime(2099, 1, 1, tzinfo=UTC))
    with pytest.raises(FetchError, match="expired"):
        await look.check(OrderedBundle(PATH, SHA, 100), ())


@running
async def test_a_fleet_that_is_away_is_nobodys_fault(listing):
    listing.close()
    with pytest.raises(FetchError) as failed:
        await make_lookup(listing, []).check(OrderedBundle(PATH, SHA, 100), ())
    assert failed.value.cause is Cause.PASSING


@running
async def test_a_child_that_nobody_waits_for_any_more_ends(listing, monkeypatch):
    """And one that says nothing, as after a crash of what it imports, is passing trouble."""
    made, begun = [], asyncio.Event()
    original = asyncio.create_subprocess_exec

    async def started(_python: str, *_words: Any, **how: Any) -> Any:
        made.append(await original(sys.executable, "-c", "import time; time.sleep(60)", **how))
        begun.set()
        return made[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", started)
    look = asyncio.create_task(make_lookup(listing, []).look())
    await begun.wait()
    look.cancel()
    with pytest.raises(asyncio.CancelledError):
        await look
    assert made[0].returncode is not None

    async def silent(_python: str, *_words: Any, **how: Any) -> Any:
        return await original(sys.executable, "-c", "raise SystemExit(3)", **how)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", silent)
    with pytest.raises(FetchError, match="exit code 3"):
        await make_lookup(listing, []).look()


def test_only_the_child_loads_tuf():
    code = "import device_agent.tuf.lookup, device_agent.tuf.watch, device_agent.supervisor, sys; print('tuf' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert Path(child.__file__).name == "child.py"


@running
async def test_deltas_count_only_from_what_is_here_and_by_a_way_that_is_known(listing, monkeypatch):
    wanted, bases = OrderedBundle(PATH, SHA, 100), [digit * 64 for digit in "123456"]
    paths = [delta.path(PATH, base, SHA) for base in bases]
    said = {
        PATH: Listed(100, SHA),
        paths[0]: Listed(10, SHA, bases[0], "bsdiff40"),
        paths[1]: Listed(10, SHA, bases[1], "another"),
        paths[2]: Listed(10, SHA, bases[0], "bsdiff40"),
        paths[3]: Listed(10, SHA),
    }
    look = make_lookup(listing, [])
    asked: list[str] = []

    async def told(_now: datetime, *names: str) -> dict[str, Listed]:
        asked.extend(names)
        return {name: said[name] for name in names if name in said}

    monkeypatch.setattr(look, "_look", told)
    assert await look.check(wanted, bases[:5]) == {bases[0]: said[paths[0]]}
    assert asked == [PATH, *paths[:5]]
