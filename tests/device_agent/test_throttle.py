"""A download takes no more of a shared line than it may, and ends at once when it is told to."""

import pytest

from device_agent.blocking import Stopper
from device_agent.update import fetch
from device_agent.update.fetch import CHUNK_BYTES, Throttle


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
