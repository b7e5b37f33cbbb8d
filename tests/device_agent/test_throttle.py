"""A download takes no more of a shared line than it may, and ends at once when it is told to."""

from http.client import HTTPResponse
from pathlib import Path
from typing import cast

import pytest

from device_agent.blocking import Stopper
from device_agent.update import fetch
from device_agent.update.fetch import CHUNK_BYTES, Part, Throttle


class Time:
    """Sleeping takes no time, and is counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 100.0
        monkeypatch.setattr(fetch.time, "monotonic", lambda: self.seconds)
        monkeypatch.setattr(fetch.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def test_the_average_stays_below_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    passing, throttle = Time(monkeypatch), Throttle(10_000.0)
    assert throttle.piece == 2500
    for _ in range(40):
        throttle.took(throttle.piece, Stopper())
    assert passing.seconds == pytest.approx(110.0)


def test_without_a_share_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    passing, throttle = Time(monkeypatch), Throttle()
    throttle.took(10**9, Stopper())
    assert (passing.seconds, throttle.piece) == (100.0, CHUNK_BYTES)


def test_one_that_is_not_wanted_any_more_waits_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    passing, throttle, stopping = Time(monkeypatch), Throttle(1.0), Stopper()
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: (passing.sleep(seconds), stopping.set()))
    throttle.took(1000, stopping)
    assert passing.seconds <= 100.2


def test_what_is_received_is_taken_in_small_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    passing = Time(monkeypatch)
    asked: list[int] = []

    def read(_response: object, length: int) -> bytes:
        asked.append(length)
        return b"x" * length

    monkeypatch.setattr(fetch, "_read", read)
    part = Part(tmp_path / f"{'0' * 64}.0.part", 0, throttle=Throttle(8_000.0))
    assert part.fill(cast("HTTPResponse", None), 0, 80_000, Stopper()) == 0
    assert (max(asked), part.path.stat().st_size) == (2_000, 80_000)
    assert passing.seconds == pytest.approx(110.0)
