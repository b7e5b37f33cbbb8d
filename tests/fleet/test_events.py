"""What changes is told to who watches: all of it, once a look, and to nobody who may not know."""

import asyncio
import contextlib
import itertools
import json
import threading
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from fleet_support import Service, wait_until
from store_support import NOW

from edgekit.errors import FleetError
from fleet import api
from fleet.api.events import KINDS, MOST_IDS, EventKind
from fleet.client import Client
from fleet.server import events as hubs
from fleet.server.database import Database
from fleet.server.events import Hub, Watcher
from fleet.server.store import audit, events

SOON = 0.01


def note(database: Database, kind: EventKind, *ids: str) -> None:
    with database.begin() as connection:
        events.note(connection, kind, ids)


async def always() -> bool:
    return True


def heard(text: bytes) -> dict[str, list[str]]:
    """Kind → names of what a piece of a stream says."""
    data = [json.loads(line[6:]) for line in text.decode().splitlines() if line.startswith("data: ")]
    return {one["kind"]: one["ids"] for one in data}


def number_in(text: bytes) -> int:
    [found] = [line for line in text.decode().splitlines() if line.startswith("id: ")]
    return int(found.removeprefix("id: "))


async def begun(hub: Hub, since: int | None = None, **more: Any) -> tuple[AsyncGenerator[bytes], int]:
    """A stream after its first piece, and the number that this said."""
    stream = hub.stream(since, always, **more)
    return stream, number_in(await anext(stream))


def test_a_change_reaches_who_watches_with_its_names(database: Database) -> None:
    async def scene() -> None:
        hub = Hub(database, look_every_s=SOON)
        stream, _ = await begun(hub)
        note(database, "rollout", "r1")
        note(database, "device", "lab-2", "lab-1")
        note(database, "rollout", "r2")
        assert heard(await anext(stream)) == {"rollout": ["r1", "r2"], "device": ["lab-1", "lab-2"]}
        await stream.aclose()
        assert len(hub) == 0

    asyncio.run(scene())


def test_who_comes_back_hears_what_they_missed_and_of_one_file_nothing_twice(database: Database) -> None:
    async def scene() -> None:
        hub = Hub(database, look_every_s=SOON)
        stream, _ = await begun(hub)
        note(database, "rollout", "r1")
        known = number_in(await anext(stream))
        await stream.aclose()
        note(database, "rollout", "r2")
        stream, _ = await begun(hub, known)
        again = ["r1"] if database.is_postgresql else []
        assert heard(await anext(stream)) == {"rollout": [*again, "r2"]}
        note(database, "device", "lab-1")
        assert heard(await anext(stream)) == {"device": ["lab-1"]}
        await stream.aclose()

    asyncio.run(scene())


@pytest.mark.postgres
def test_what_is_committed_after_a_higher_number_is_missed_by_nobody_who_comes_back(
    empty_postgresql: str,
) -> None:
    database = Database(empty_postgresql)

    async def scene() -> None:
        hub = Hub(database, look_every_s=SOON)
        with database.begin() as slow:
            events.note(slow, "rollout", ["r1"])
            note(database, "rollout", "r2")
            stream, known = await begun(hub)
            await stream.aclose()
        stream, _ = await begun(hub, known)
        assert heard(await anext(stream)) == {"rollout": ["r1", "r2"]}, "r2 twice rather than r1 never"
        await stream.aclose()

    asyncio.run(scene())
    database.close()


@pytest.mark.parametrize("since", [-7, 10**9])
def test_who_was_away_for_too_long_or_saw_another_database_looks_at_everything(
    database: Database, since: int
) -> None:
    async def scene() -> None:
        note(database, "rollout", "r1")
        stream, _ = await begun(Hub(database, look_every_s=SOON), since)
        assert heard(await anext(stream)) == {kind: [] for kind in KINDS}
        await stream.aclose()

    asyncio.run(scene())


def test_too_many_names_are_none_and_a_slow_reader_costs_no_more() -> None:
    watcher = Watcher()
    watcher.hear((n, "device", (f"d{n}",)) for n in range(10 * MOST_IDS))
    watcher.hear([(10**6, "rollout", ("r1",))])
    assert heard(watcher.take()) == {"device": [], "rollout": ["r1"]}
    assert watcher.take() == b""


def test_only_the_last_event_of_a_look_has_a_number() -> None:
    watcher = Watcher()
    watcher.hear([(1, "rollout", ("r1",)), (2, "device", ("a",)), (3, "rollout", ("r2",))])
    said = watcher.take()
    assert (number_in(said), said.endswith(b"id: 3\n\n")) == (3, True)


def test_who_may_not_know_names_is_told_the_kind(database: Database) -> None:
    async def scene() -> None:
        stream, _ = await begun(Hub(database, look_every_s=SOON), hides_names=True)
        note(database, "device", "secret-1")
        assert heard(await anext(stream)) == {"device": []}
        await stream.aclose()

    asyncio.run(scene())


def test_a_stream_ends_once_its_reader_may_no_longer_read_and_until_then_says_that_it_is_there(
    database: Database,
) -> None:
    async def scene() -> None:
        answers = iter([True, False])

        async def may_still() -> bool:
            return next(answers)

        stream = Hub(database, look_every_s=SOON).stream(None, may_still, still_here_s=SOON)
        assert [piece async for piece in stream][1:] == [hubs.STILL_HERE]

    asyncio.run(scene())


def test_streams_end_with_the_service(database: Database) -> None:
    async def scene() -> None:
        hub = Hub(database, look_every_s=SOON)
        stream, _ = await begun(hub)
        waits = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        hub.close()
        with pytest.raises(StopAsyncIteration):
            await waits

    asyncio.run(scene())


def test_what_the_log_says_is_told_and_the_rows_stay_few(database: Database, monkeypatch: Any) -> None:
    monkeypatch.setattr(events, "_KEPT", 100)
    with database.begin() as connection:
        audit.append(connection, NOW, audit.FLEET, "device.label", "lab-1")
        audit.append(connection, NOW, audit.FLEET, "release.block", "digits@1.0.0")
        audit.append(connection, NOW, audit.FLEET, "session.begin", "ada")
        rows = events.after(connection, 0, 10)
        for n in range(600):
            events.note(connection, "device", [f"d{n}"])
        oldest, newest = events.bounds(connection)
    assert [row[1:] for row in rows] == [("device", '["lab-1"]'), ("release", "[]")]
    assert newest - oldest < 400


# -- the service -----------------------------------------------------------------------------------------------------


class Listener:
    """A reader of a real stream by the client, in a thread of its own."""

    def __init__(self, client: Client, since: str = "") -> None:
        self.heard: list[tuple[str, api.Change]] = []
        self.has_ended = threading.Event()
        threading.Thread(target=self._read, args=(client, since), daemon=True).start()

    def _read(self, client: Client, since: str) -> None:
        with contextlib.suppress(FleetError):
            for one in client.events(since):
                self.heard.append(one)  # one by one, as they come
        self.has_ended.set()

    def knows(self, kind: str, name: str) -> bool:
        return any(change.kind == kind and name in change.ids for _, change in self.heard)


def test_a_running_service_tells_and_stops_at_once_though_somebody_watches(running: Service) -> None:
    client = running.client()
    listener = Listener(running.client())
    # Nobody says when the stream has begun: something changes until it is heard.
    count = itertools.count()

    def is_heard() -> bool:
        client.enroll(api.NewDevice(f"lab-{next(count)}", ("digits",), {"site": "lab"}))
        return listener.knows("device", "lab-0") or len(listener.heard) > 1

    wait_until(is_heard, "a new device is told of")
    newest = listener.heard[-1][0]
    client.freeze(is_frozen=True, reason="test")
    back = Listener(running.client(), newest)
    wait_until(lambda: any(change.kind == "fleet" for _, change in back.heard), "what was missed is told")
    assert running.stop() == 0
    assert listener.has_ended.wait(10)
    assert back.has_ended.wait(10)
