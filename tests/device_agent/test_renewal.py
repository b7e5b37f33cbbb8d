"""When a certificate is renewed, whatever the clock and the fleet do."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from tls_authority import Authority

from device_agent import enrol, identity, renewal
from device_agent.clock import Clock
from device_agent.conditions import Conditions
from device_agent.enrol import FleetUnreachableError
from device_agent.folder import StateFolder
from device_agent.hardware import Hardware
from device_agent.network import Access
from device_agent.renewal import Renewal
from device_agent.storage import Storage
from edgekit.wire.enrolment import BrokerAddress, EnrolAnswer, EnrolmentFile

DAY = timedelta(days=1)
NOW = datetime.now(UTC)


def test_a_certificate_is_due_at_two_thirds_of_its_life_and_devices_spread():
    end = NOW + 90 * DAY
    assert renewal.due(NOW, end, 0) == NOW + 60 * DAY
    early, late = renewal.due(NOW, end, -1), renewal.due(NOW, end, 1)
    assert NOW + 55 * DAY < early < NOW + 58 * DAY
    assert NOW + 62 * DAY < late < NOW + 65 * DAY
    assert renewal.least_pause(NOW, end) == DAY


class Desk:
    """A device with a certificate of this life, and a fleet that can be away."""

    def __init__(self, folder, monkeypatch, begin, end, now):
        self.state = StateFolder(folder)
        self.authority = Authority()
        self.now = now
        self.asked = 0
        self.is_away = False
        self.key = identity.key_for(self.state, identity.token_digest("t"), Hardware())
        file = EnrolmentFile(
            2, "lab", "board", "t", "https://h/v1/enrol", "", ("h",), BrokerAddress("h", 1), {}, "{}", "", (),
            ca=self.authority.pem,
        )  # fmt: skip
        self.known = identity.made_of(file, self.answer(begin, end), "x86-64-v3", Hardware())
        self.conditions = Conditions()
        self.access = Access(file.ca, file.allowed_hosts, lambda: None)
        monkeypatch.setattr(enrol, "renew", self.renew)
        monkeypatch.setattr(renewal, "FIRST_PAUSE_S", 0.02)
        monkeypatch.setattr(renewal, "LOOK_S", 0.02)

    def answer(self, begin, end):
        csr = self.key.request("board", "lab")
        return EnrolAnswer("board", 7, self.authority.device(csr, "board", begin=begin, end=end), end, "c")

    def renew(self, _access, _known, _key):
        self.asked += 1
        if self.is_away:
            raise FleetUnreachableError("nobody is there")
        return self.answer(NOW, NOW + 90 * DAY)

    def run(self, scenario):
        async def main():
            storage = Storage(self.state.root)
            clock = Clock(lambda: self.now, lambda: False)
            self.renewal = Renewal(
                self.state, storage, self.conditions, self.access, clock, known=self.known, key=self.key
            )
            task = asyncio.create_task(self.renewal.run())
            try:
                await scenario()
            finally:
                task.cancel()
                await asyncio.wait([task])
                await storage.close()

        asyncio.run(main())

    async def until(self, condition):
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110  # of several threads
                await asyncio.sleep(0.01)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    return lambda begin, end, now=NOW: Desk(tmp_path, monkeypatch, begin, end, now)


def test_one_that_is_due_is_renewed_and_kept(desk):
    made = desk(NOW - 70 * DAY, NOW + 20 * DAY)

    async def scenario():
        await made.until(lambda: made.asked)
        await made.until(lambda: identity.load(made.state) is not None)

    made.run(scenario)
    assert identity.load(made.state).answer.not_after > NOW + 80 * DAY
    assert made.asked == 1


def test_one_that_is_not_due_is_left_alone_until_the_clock_jumps_there(desk):
    made = desk(NOW - 10 * DAY, NOW + 80 * DAY)

    async def scenario():
        await asyncio.sleep(0.2)
        assert made.asked == 0
        made.now = NOW + 60 * DAY
        await made.until(lambda: made.asked)

    made.run(scenario)


def test_while_the_fleet_is_away_it_is_told_and_tried_again(desk):
    made = desk(NOW - 70 * DAY, NOW + 20 * DAY)
    made.is_away = True

    async def scenario():
        await made.until(lambda: made.asked >= 3)
        assert made.conditions.stands("certificate-not-renewed")
        made.is_away = False
        await made.until(lambda: not made.conditions.stands("certificate-not-renewed"))

    made.run(scenario)


def test_a_board_at_2099_asks_once_and_rests(desk):
    made = desk(NOW - 10 * DAY, NOW + 80 * DAY, datetime(2099, 1, 1, tzinfo=UTC))

    async def scenario():
        await made.until(lambda: made.asked)
        await asyncio.sleep(0.3)

    made.run(scenario)
    assert made.asked == 1


def test_a_board_at_1970_asks_when_the_broker_ends_connections_without_a_word(desk):
    made = desk(NOW - 70 * DAY, NOW + 20 * DAY, datetime(1970, 1, 1, tzinfo=UTC))

    async def scenario():
        await asyncio.sleep(0.2)
        assert made.asked == 0, "by its clock nothing is due"
        made.renewal.nudge()
        await made.until(lambda: made.asked)

    made.run(scenario)


def test_a_disk_that_takes_nothing_keeps_no_renewed_certificate_from_being_used(desk, monkeypatch):
    made = desk(NOW - 70 * DAY, NOW + 20 * DAY)
    save = identity.save

    def failing(_state, _known):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(identity, "save", failing)
    monkeypatch.setattr(renewal, "least_pause", lambda *_: timedelta(0))

    async def scenario():
        await made.until(lambda: made.asked)
        await made.until(lambda: made.access.credential == "c")
        monkeypatch.setattr(identity, "save", save)
        await made.until(lambda: identity.load(made.state) is not None)

    made.run(scenario)
