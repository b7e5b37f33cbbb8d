"""What is remembered of drift over a restart: all of it, unless it is damaged, another bundle's, or of another time."""

import asyncio
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import pytest

from device_agent import durable, watching
from device_agent.clock import Clock
from device_agent.drift import Kept, Tracks
from device_agent.folder import StateFolder
from device_agent.storage import Storage
from device_agent.watching import Watching
from edgekit.manifest import Histogram, Reference
from edgekit.wire.messages import DeploymentWindow

DIGEST = "a" * 64
EDGES = [float(edge) for edge in range(11)]
REFERENCE = Reference(inputs={"x": Histogram(EDGES, [1000] * 10)})
NOW = datetime(2027, 3, 1, tzinfo=UTC)


def windows(count, seed):
    rng = np.random.default_rng(seed)
    shares = [0.05] * 5 + [0.15] * 5
    return [
        DeploymentWindow(
            "d", DIGEST, requests=60, inputs={"x": Histogram(EDGES, rng.multinomial(60, shares).tolist())}
        )
        for _ in range(count)
    ]


def met(tracks, made, length_s=600.0):
    return [tracks.judged([one], {DIGEST: REFERENCE}, length_s)[0] for one in made]


def with_watching(folder, use, now=NOW):
    """`use` of the watching of an agent that starts on this folder; what was kept when it ended."""

    async def run():
        storage = Storage(folder)
        found = Watching(StateFolder(folder), storage, Clock(lambda: now, lambda: True))
        use(found)
        await found.save()
        await storage.close()

    asyncio.run(run())


def test_a_restart_changes_nothing_of_what_is_said(tmp_path):
    before, after = windows(100, 1), windows(60, 2)
    whole = Tracks()
    expected = met(whole, [*before, *after])[100:]
    with_watching(tmp_path, lambda one: met(one.tracks, before))
    found = []
    with_watching(tmp_path, lambda one: found.extend(met(one.tracks, after)), NOW + timedelta(hours=9))
    assert found == expected
    assert found[-1].metrics["drift_psi"].mean > 0.2, "a day altogether, half of it before the restart"
    forgotten = met(Tracks(), after)
    assert all("drift_psi" not in one.metrics for one in forgotten)


def test_what_is_kept_is_read_as_it_was(tmp_path):
    tracks = Tracks()
    met(tracks, windows(300, 3), 60.0)
    kept = tracks.kept
    assert msgspec.json.decode(msgspec.json.encode(kept), type=dict[str, Kept]) == kept


@pytest.mark.parametrize(("days", "goes_on"), [(6, True), (8, False), (-8, True)])
def test_what_is_of_another_time_is_not_gone_on_from(tmp_path, days, goes_on):
    with_watching(tmp_path, lambda one: met(one.tracks, windows(40, 1)))
    found = []
    with_watching(tmp_path, lambda one: found.append(one.tracks.kept), NOW + timedelta(days=days))
    assert bool(found[0]) == goes_on


def test_what_an_older_agent_kept_over_other_bins_is_begun_anew():
    tracks = Tracks()
    met(tracks, windows(40, 1))
    fewer = Histogram(EDGES[:6], [1000] * 5)
    made = DeploymentWindow("d", DIGEST, requests=60, inputs={"x": Histogram(EDGES[:6], [12] * 5)})
    gone_on = Tracks(tracks.kept)
    gone_on.judged([made], {DIGEST: Reference(inputs={"x": fewer})}, 600.0)
    assert gone_on.levels["d"]["inputs/x"].windows == 1


def test_a_damaged_file_is_set_aside_and_watching_begins_anew(tmp_path):
    with_watching(tmp_path, lambda one: met(one.tracks, windows(40, 1)))
    path = tmp_path / "drift.json"
    path.write_bytes(path.read_bytes().replace(b"began", b"begin", 1).replace(b"6", b"7", 1))
    with_watching(tmp_path, lambda one: met(one.tracks, windows(1, 1)))
    assert (tmp_path / "drift.json.damaged").is_file()


def test_a_full_disk_costs_what_would_have_been_kept_and_nothing_else(tmp_path):
    def full(_operation):
        raise OSError(28, "No space left on device")

    with durable.watched(full):
        with_watching(tmp_path, lambda one: met(one.tracks, windows(40, 1)))
    assert not (tmp_path / "drift.json").exists()


def test_it_is_kept_from_time_to_time(tmp_path, monkeypatch):
    monkeypatch.setattr(watching, "SAVE_S", 0.0)

    async def run():
        storage = Storage(tmp_path)
        found = Watching(StateFolder(tmp_path), storage, Clock(lambda: NOW, lambda: True))
        met(found.tracks, windows(2, 1))
        found.tick()
        await found._saving
        await storage.close()

    asyncio.run(run())
    assert (tmp_path / "drift.json").is_file()
