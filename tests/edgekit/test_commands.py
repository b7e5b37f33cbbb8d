"""The rules by which a device accepts commands: the right ones, in time, and each once."""

import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edgekit.errors import CommandRefusedError
from edgekit.protocol import commands
from edgekit.protocol.commands import Ledger, accept
from edgekit.protocol.orders import Identity
from edgekit.wire.commands import Command, CommandState, Measure, Restart, SelfTest
from edgekit.wire.messages import OrderedBundle

NOW = datetime(2026, 11, 27, 8, 0, tzinfo=UTC)
ME = Identity("lab", "board-1", 3, ("raspberry-pi-5", "generic-arm64"), ("digits",))
SHA = "a" * 64


def command(number: int = 1, **changed: object) -> Command:
    made = Command("lab", "board-1", 3, f"{number:016x}", NOW, NOW + timedelta(hours=1), SelfTest())
    return replace(made, **changed)


def accepted(*asked: Command, now: datetime = NOW) -> Ledger:
    ledger = Ledger()
    for one in asked:
        after = accept(one, ME, ledger, now)
        assert after is not None
        ledger = after
    return ledger


def test_a_command_is_taken_once() -> None:
    ledger = accepted(command())
    assert commands.waiting(ledger) == ledger.entries[0]
    assert accept(command(), ME, ledger, NOW) is None
    over = commands.told(commands.moved(ledger, command().id, CommandState.DONE), command().id)
    assert accept(command(), ME, over, NOW) is None


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"fleet": "other"}, "for fleet 'other'"),
        ({"device": "board-2"}, "for device 'board-2'"),
        ({"enrolment": 2}, "for enrolment 2"),
        ({"expires": NOW}, "expired"),
        ({"expires": NOW + timedelta(days=8)}, "longer than 7 days"),
        ({"action": SelfTest("faces")}, "no deployment 'faces'"),
        ({"action": Measure((OrderedBundle(f"digits/1/x86-64-v3/{SHA}.edgekit", SHA, 9),))}, "profile x86-64-v3"),
        ({"action": Measure((OrderedBundle("digits/1/generic-arm64/b.edgekit", SHA, 9),))}, "its own digest"),
    ],
)  # fmt: skip
def test_a_command_that_is_not_for_this_device_now_is_refused(changed: dict[str, object], why: str) -> None:
    with pytest.raises(CommandRefusedError, match=why):
        accept(command(**changed), ME, Ledger(), NOW)


def test_only_so_many_wait() -> None:
    full = accepted(*(command(number) for number in range(commands.MAX_WAITING)))
    with pytest.raises(CommandRefusedError, match="wait already"):
        accept(command(99), ME, full, NOW)


def test_what_was_forgotten_stays_refused_by_a_clock_that_went_back() -> None:
    ledger = accepted(command())
    ledger = commands.told(commands.moved(ledger, command().id, CommandState.DONE), command().id)
    later = NOW + timedelta(hours=2)
    ledger = (
        accept(command(2, issued=later, expires=later + timedelta(hours=1)), ME, ledger, later) or Ledger()
    )
    assert [entry.id for entry in ledger.entries] == [f"{2:016x}"]
    with pytest.raises(CommandRefusedError, match="expired"):
        accept(command(), ME, ledger, NOW)


def test_what_was_not_told_is_kept_beyond_its_life() -> None:
    ledger = commands.moved(accepted(command()), command().id, CommandState.DONE)
    assert commands.forget(ledger, NOW + timedelta(days=6)) == ledger
    assert not commands.forget(ledger, NOW + timedelta(days=8)).entries


def test_what_was_under_way_when_the_agent_ended_is_not_done_again() -> None:
    ledger = accepted(command(1), command(2, action=Restart()), command(3))
    for number in (1, 2):
        ledger = commands.moved(ledger, f"{number:016x}", CommandState.RUNNING)
    after = commands.resumed(ledger, 3)
    assert [entry.state.value for entry in after.entries] == ["failed", "done", "accepted"]
    assert commands.waiting(after) == after.entries[2]
    assert commands.resumed(ledger, 4) == Ledger(4)


def test_after_the_ledger_was_lost_nothing_of_before_is_done() -> None:
    lost = Ledger(since=NOW + timedelta(minutes=1))
    with pytest.raises(CommandRefusedError, match="ledger was lost"):
        accept(command(), ME, lost, NOW + timedelta(minutes=2))
    assert accept(command(issued=NOW + timedelta(minutes=2)), ME, lost, NOW + timedelta(minutes=2))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 200)), max_size=40), st.data())
def test_no_command_begins_twice_whatever_comes_when(
    events: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Repeats, restarts and a clock that jumps: each id is begun at most once."""
    ledger, begun = Ledger(), []
    for number, minutes in events:
        now = NOW + timedelta(minutes=minutes)
        with contextlib.suppress(CommandRefusedError):
            ledger = accept(command(number), ME, ledger, now) or ledger
        entry = commands.waiting(ledger)
        if entry is not None and data.draw(st.booleans()):
            ledger = commands.moved(ledger, entry.id, CommandState.RUNNING)
            begun.append(entry.id)
            if data.draw(st.booleans()):
                ledger = commands.told(commands.moved(ledger, entry.id, CommandState.DONE), entry.id)
            else:
                ledger = commands.resumed(ledger, 3)
        ledger = commands.forget(ledger, now)
    assert len(begun) == len(set(begun))
