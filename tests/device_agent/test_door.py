"""Admission and turns: who gets a place, who loses one, and whose turn is next."""

import asyncio

import pytest

from device_agent.serve import door as doors
from device_agent.serve.door import SMALL_BYTES, BusyError, Door, Lane


class Scene:
    """A door with ten slots and ten megabytes, and who lost his place at it."""

    def __init__(self, total_bytes=10 << 20, slots=10):
        self.door = Door(total_bytes, slots)
        self.lost = []

    def enter(self, client, announced=100, now=0.0, at_hand=0):
        name = f"{client}{len(self.door.tickets)}"
        return self.door.enter(client, announced, now, lambda _reason: self.lost.append(name), at_hand)


@pytest.fixture
def scene():
    return Scene()


def test_a_lone_client_may_have_every_slot(scene):
    for _ in range(10):
        scene.door.arrived(scene.enter("a"))
    with pytest.raises(BusyError):
        scene.enter("a")
    assert not scene.lost


def test_announced_bytes_are_taken_before_they_come_and_given_back(scene):
    ticket = scene.enter("a", 7 << 20)
    assert scene.door.held == 7 << 20
    with pytest.raises(BusyError):
        scene.enter("a", 2 << 20)
    scene.door.leave(ticket)
    scene.door.leave(ticket)
    assert scene.door.held == 0
    scene.enter("a", 2 << 20)


def test_large_bodies_leave_room_for_small_ones(scene):
    scene.enter("a", 7 << 20)
    with pytest.raises(BusyError):
        scene.enter("a", SMALL_BYTES + 1)
    scene.enter("a", SMALL_BYTES)


def test_a_newcomer_takes_the_place_of_the_client_that_holds_most(scene):
    for _ in range(10):
        scene.enter("greedy")
    scene.enter("modest")
    assert scene.lost == ["greedy9"]
    assert len(scene.door.tickets) == 10


def test_between_equals_nobody_loses_a_place(scene):
    for client in ("a", "b") * 5:
        scene.door.arrived(scene.enter(client))
    with pytest.raises(BusyError):
        scene.enter("a")


def test_the_slowest_sender_goes_first_when_there_is_no_room(scene):
    quick, slow = scene.enter("a", now=0.0), scene.enter("a", now=0.0)
    quick.received, slow.received = 90, 1
    for _ in range(8):
        scene.door.arrived(scene.enter("a", now=0.0))
    with pytest.raises(BusyError):
        scene.enter("a", now=0.5)  # too early to call anybody slow
    scene.enter("a", now=5.0)
    assert slow.phase == "gone"
    assert quick.phase == "receiving"


def test_a_body_that_is_here_already_goes_before_those_still_coming(scene):
    tickets = [scene.enter("a", now=0.0) for _ in range(10)]
    for ticket in tickets[1:]:
        ticket.received = 50
    scene.enter("a", now=0.01, at_hand=100)
    assert tickets[0].phase == "gone"


def test_a_request_in_the_engine_keeps_its_place(scene):
    for _ in range(10):
        ticket = scene.enter("greedy")
        scene.door.arrived(ticket)
        ticket.phase = "running"
    with pytest.raises(BusyError):
        scene.enter("modest")


def test_a_body_without_a_length_grows_as_it_comes(scene):
    ticket = scene.enter("a", 64 << 10)
    scene.door.grow(ticket, 2 << 20, 0.1)
    assert scene.door.held == 2 << 20
    with pytest.raises(BusyError):
        scene.door.grow(ticket, 9 << 20, 0.2)
    assert scene.door.held == 0
    assert ticket.phase == "gone"


def run(work):
    return asyncio.run(work)


def test_turns_go_round_by_client(scene):
    async def story():
        lane, order = Lane(1), []

        async def one(client, name):
            ticket = scene.enter(client)
            await lane.enter(ticket)
            order.append(name)
            await asyncio.sleep(0)
            lane.leave()

        await asyncio.gather(
            *(one("busy", f"b{i}") for i in range(4)), one("quiet", "q0"), one("quiet", "q1")
        )
        return order

    assert run(story()) == ["b0", "b1", "q0", "b2", "q1", "b3"]


def test_who_waits_too_long_is_told_to_come_back(scene, monkeypatch):
    monkeypatch.setattr(doors, "QUEUE_WAIT_S", 0.02)

    async def story():
        lane = Lane(1)
        await lane.enter(scene.enter("a"))
        with pytest.raises(BusyError, match="did not come"):
            await lane.enter(scene.enter("a"))
        lane.leave()
        await lane.enter(scene.enter("a"))  # the one that gave up has not kept the turn

    run(story())


def test_who_loses_his_place_while_waiting_is_told_at_once(scene):
    async def story():
        lane = Lane(1)
        first = scene.enter("greedy")
        scene.door.arrived(first)
        await lane.enter(first)
        first.phase = "running"
        waiting = []
        for _ in range(9):
            ticket = scene.enter("greedy")
            scene.door.arrived(ticket)
            waiting.append(asyncio.ensure_future(lane.enter(ticket)))
        await asyncio.sleep(0)
        modest = scene.enter("modest")
        with pytest.raises(BusyError, match="others with fewer"):
            await waiting[-1]
        scene.door.arrived(modest)
        turn = asyncio.ensure_future(lane.enter(modest))
        await asyncio.sleep(0)
        lane.leave()
        lane.leave()
        await turn
        for other in waiting[1:-1]:
            other.cancel()

    run(story())


def test_a_caller_that_goes_away_in_the_moment_of_its_turn_passes_it_on(scene):
    async def story():
        lane = Lane(1)
        await lane.enter(scene.enter("a"))
        second = asyncio.ensure_future(lane.enter(scene.enter("a")))
        third = asyncio.ensure_future(lane.enter(scene.enter("a")))
        await asyncio.sleep(0)
        lane.leave()
        second.cancel()
        await asyncio.wait_for(third, 1)

    run(story())
