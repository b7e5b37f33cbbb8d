"""Steady time: durations survive steps of the wall clock, restarts and take-overs."""

from pathlib import Path

import pytest

from fleet.server.clock import BRIDGE_S, Clock
from fleet.server.database import Database, sqlite_url


class Hands:
    """A wall clock and a monotonic one that the test turns."""

    def __init__(self) -> None:
        self.wall, self.ticks = 1_790_000_000.0, 500.0

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.ticks += seconds

    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.ticks)


@pytest.mark.parametrize("step", [7200.0, -86_400.0])
def test_a_step_of_the_wall_clock_changes_no_duration(step: float) -> None:
    hands = Hands()
    clock = hands.clock()
    before = clock.now()
    hands.passes(10)
    hands.wall += step
    hands.passes(10)
    now = clock.now()
    assert now.steady - before.steady == pytest.approx(20)
    assert now.unstepped - before.unstepped == pytest.approx(20)
    assert now.wall - before.wall == pytest.approx(20 + step)


@pytest.mark.parametrize(
    ("away", "step", "counts"),
    [(5.0, 0.0, 5.0), (5.0, 7200.0, BRIDGE_S), (5.0, -86_400.0, 0.0), (9999.0, 0.0, BRIDGE_S)],
)
def test_a_restart_goes_on_where_it_was(tmp_path: Path, away: float, step: float, counts: float) -> None:
    database, hands = Database(sqlite_url(tmp_path)), Hands()
    first = hands.clock()
    with database.begin() as connection:
        first.keep(connection, is_hearing=True)
    before = first.now().steady
    hands.passes(away)
    hands.wall += step
    hands.ticks = 3.0  # another boot
    second = hands.clock()
    with database.begin() as connection:
        second.resume(connection)
    assert second.now().steady - before == pytest.approx(counts)
    hands.passes(100)
    assert second.now().steady - before == pytest.approx(counts + 100)


def test_who_takes_over_never_goes_back(tmp_path: Path) -> None:
    database, hands = Database(sqlite_url(tmp_path)), Hands()
    leader, follower = hands.clock(), hands.clock()
    with database.begin() as connection:
        leader.keep(connection, is_hearing=True)
        follower.resume(connection)
        hands.passes(500)
        told = follower.now().steady
        follower.resume(connection)
    assert follower.now().steady >= told


def test_the_time_in_which_the_fleet_was_deaf_is_known_after_a_restart(tmp_path: Path) -> None:
    database, hands = Database(sqlite_url(tmp_path)), Hands()
    first = hands.clock()
    with database.begin() as connection:
        first.keep(connection, is_hearing=True)
    heard_until = first.now().steady
    hands.passes(30)
    second = hands.clock()
    with database.begin() as connection:
        second.resume(connection)
    second.hears_again()
    assert second.deaf == (pytest.approx(heard_until), pytest.approx(heard_until + 30))
