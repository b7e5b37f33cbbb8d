"""The order book on a real storage thread: an order counts when it is on disk, and no clock is believed too much."""

import asyncio
import base64
import errno
import functools
import json
import os
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_agent import durable, identity
from device_agent.clock import AGENT_BUILT, Clock
from device_agent.conditions import Conditions
from device_agent.folder import StateFolder
from device_agent.hardware import Hardware
from device_agent.orderbook import OrderBook
from device_agent.storage import Storage
from edgekit.protocol import clock
from edgekit.protocol.orders import Identity
from edgekit.trust import dsse
from edgekit.trust.orderkeys import OrderKeys
from edgekit.wire import messages
from edgekit.wire.enrolment import BrokerAddress, EnrolAnswer, EnrolmentFile
from edgekit.wire.messages import Order

KEY = Ed25519PrivateKey.generate()
ME = Identity("lab", "board", 7, ("x86-64-v3",), ("digits",))
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def running(test):
    @functools.wraps(test)
    def run(*arguments, **named):
        asyncio.run(test(*arguments, **named))

    return run


def signed(counter, issued=None, life=timedelta(days=30), key=KEY, keyid="orders"):
    issued = issued or datetime.now(UTC)
    order = Order("lab", "board", 7, {}, counter, issued, issued + life)
    payload = messages.encode(order)
    signature = base64.b64encode(key.sign(dsse.pae(dsse.ORDER_TYPE, payload))).decode()
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": dsse.ORDER_TYPE,
        "signatures": [{"keyid": keyid, "sig": signature}],
    }
    return json.dumps(envelope).encode()


class Desk:
    """An order book, and the disk under it."""

    def __init__(self, folder):
        self.state = StateFolder(folder)
        self.error = 0
        self.conditions = Conditions()
        self.me = ME
        self.now = None
        self.is_synchronized = False
        self.start()

    def start(self):
        """A run of the agent, which knows nothing but what the disk has."""
        self.clock = Clock(lambda: self.now or datetime.now(UTC), lambda: self.is_synchronized)

    def __call__(self, _operation):
        if self.error:
            raise OSError(self.error, os.strerror(self.error))

    async def open(self):
        self.storage = Storage(self.state.root)
        keys = {"orders": KEY.public_key().public_bytes_raw().hex()}
        book = OrderBook(
            self.state, self.storage, self.conditions, self.me, order_keys=keys, clock=self.clock
        )
        await book.load()
        return book


@pytest.fixture
def desk(tmp_path):
    desk = Desk(tmp_path)
    with durable.watched(desk):
        yield desk


@running
async def test_an_order_is_followed_once_and_known_after_a_restart(desk):
    book = await desk.open()
    envelope = signed(5)
    assert (await book.receive(envelope)).counter == 5
    assert await book.receive(envelope) is None
    assert book.refused == ""
    again = await desk.open()
    assert (again.counter, again.order.counter) == (5, 5)
    assert await again.receive(signed(4)) is None
    assert "not above 5" in again.refused


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
@running
async def test_an_order_that_cannot_be_stored_is_not_accepted_and_tried_again(desk, number):
    book = await desk.open()
    await book.receive(signed(5))
    desk.error = number
    assert await book.receive(signed(6)) is None
    assert book.counter == 5
    assert "order 6 cannot be stored" in book.refused
    assert book.is_waiting
    assert desk.storage.condition
    assert await book.try_again() is None
    desk.error = 0
    assert (await book.try_again()).counter == 6
    assert (book.counter, book.refused, book.is_waiting) == (6, "", False)
    assert (await desk.open()).counter == 6


@running
async def test_a_waiting_order_gives_way_to_a_newer_one(desk):
    book = await desk.open()
    desk.error = errno.ENOSPC
    await book.receive(signed(6))
    desk.error = 0
    assert (await book.receive(signed(7))).counter == 7
    assert await book.try_again() is None
    assert book.counter == 7


@pytest.mark.parametrize("copy", ["order.json", "order.json.2"])
@running
async def test_the_high_water_mark_survives_a_damaged_copy(desk, copy):
    book = await desk.open()
    await book.receive(signed(5))
    (desk.state.root / copy).write_bytes(b"\0" * 100)
    again = await desk.open()
    assert again.counter == 5
    assert await again.receive(signed(4)) is None
    assert desk.conditions.present() == ()


@running
async def test_a_lost_order_is_told_and_the_next_one_followed(desk):
    book = await desk.open()
    await book.receive(signed(5))
    for copy in ("order.json", "order.json.2"):
        (desk.state.root / copy).write_bytes(b"\0" * 100)
    again = await desk.open()
    assert [condition.code for condition in desk.conditions.present()] == ["order-lost"]
    assert (await again.receive(signed(6))).counter == 6


@running
async def test_one_order_signed_in_2099_spoils_nothing(desk):
    book = await desk.open()
    assert await book.receive(signed(5, datetime(2099, 1, 1, tzinfo=UTC))) is not None
    assert [condition.code for condition in desk.conditions.present()] == ["clock-disagrees"]
    assert (await book.receive(signed(6))).counter == 6
    assert desk.conditions.present() == ()
    again = await desk.open()
    assert (await again.receive(signed(7, datetime.now(UTC) - timedelta(days=14)))).counter == 7


@running
async def test_many_orders_signed_in_2099_spoil_nothing_either(desk):
    book = await desk.open()
    for counter in range(1, 5):
        assert await book.receive(signed(counter, datetime(2099, 1, counter, tzinfo=UTC))) is not None
    assert (await book.receive(signed(6))).counter == 6


@running
async def test_an_expired_order_is_refused(desk):
    book = await desk.open()
    assert await book.receive(signed(5, datetime.now(UTC) - timedelta(days=31))) is None
    assert "expired" in book.refused


UNSET = datetime(1970, 1, 1, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
CLOCKS = {
    "nothing signed": (NOW, (), NOW),
    "signed in the past": (NOW, (NOW - DAY,), NOW),
    "a little ahead": (NOW, (NOW + HOUR,), NOW + HOUR),
    "far ahead": (NOW, (NOW + 400 * DAY,), NOW + DAY),
    "twice far ahead": (NOW, (NOW + 400 * DAY, NOW + 399 * DAY), NOW + DAY),
    "no clock, nothing signed": (UNSET, (), AGENT_BUILT),
    "no clock, one signed time": (UNSET, (NOW,), AGENT_BUILT + DAY),
    "no clock, two that agree": (UNSET, (NOW + HOUR, NOW), NOW + HOUR),
    "no clock, the newest far off": (UNSET, (NOW + 9999 * DAY, NOW), NOW + DAY),
}


@pytest.mark.parametrize("case", CLOCKS)
def test_trusted_time(case):
    system, times, expected = CLOCKS[case]
    assert clock.trusted(system, AGENT_BUILT, times, timedelta(0)) == expected


def test_time_passes_on_a_board_without_a_clock():
    assert clock.trusted(UNSET, AGENT_BUILT, (NOW, NOW), DAY) == NOW + DAY
    assert AGENT_BUILT < NOW


def test_the_two_signed_times_heard_last_are_kept():
    assert clock.last_two((), NOW) == (NOW,)
    assert clock.last_two((NOW,), NOW) == (NOW, NOW)
    assert clock.last_two((NOW + DAY, NOW - DAY), NOW) == (NOW, NOW + DAY)


# -- clocks: what an order does on a board whose clock is wrong ------------------------------------------------------------


@running
async def test_orders_signed_in_2099_do_not_deafen_a_board_without_a_clock(desk):
    """Two of them confirm each other, and are disproved by the next of a right fleet all the same."""
    desk.now = UNSET
    book = await desk.open()
    for counter in (1, 2, 3):
        assert await book.receive(signed(counter, datetime(2099, 1, counter, tzinfo=UTC)))
    desk.start()
    book = await desk.open()
    assert (await book.receive(signed(4))).counter == 4
    assert (await book.receive(signed(5))).counter == 5
    now = datetime.now(UTC)
    assert now - HOUR < desk.clock.trusted() < now + HOUR


@running
async def test_after_an_order_signed_in_2099_the_clock_is_believed_again(desk):
    book = await desk.open()
    await book.receive(signed(1, datetime(2099, 1, 1, tzinfo=UTC)))
    await book.receive(signed(2))
    assert desk.clock.doubt() == ""
    assert desk.clock.trusted() < datetime.now(UTC) + HOUR


@running
async def test_a_board_that_starts_in_1970_follows_orders_and_knows_the_time_by_them(desk):
    desk.now = UNSET
    book = await desk.open()
    assert desk.clock.known() is None
    assert "before this agent was made" in desk.clock.doubt()
    assert (await book.receive(signed(1))).counter == 1
    assert (await book.receive(signed(2))).counter == 2
    assert desk.clock.trusted() > datetime.now(UTC) - HOUR
    assert desk.clock.known() is None


@running
async def test_what_expired_stays_expired_on_a_board_without_a_clock(desk):
    """An order that somebody held back: of a higher counter, but signed after all that was heard."""
    desk.now = UNSET
    book = await desk.open()
    old = datetime.now(UTC) - 100 * DAY
    for counter in (1, 2):
        await book.receive(signed(counter, old, life=400 * DAY))
    assert await book.receive(signed(3, old + DAY, life=-DAY)) is None
    assert "expired" in book.refused


@running
async def test_a_board_at_2099_waits_says_why_and_follows_when_its_clock_is_right(desk):
    desk.now = datetime(2099, 1, 1, tzinfo=UTC)
    book = await desk.open()
    assert await book.receive(signed(1)) is None
    assert "expired" in book.refused
    assert "after the end of the newest order" in desk.clock.doubt()
    assert desk.clock.known() is None
    assert not book.is_late_no_more
    desk.now = None
    assert book.is_late_no_more
    assert (await book.try_again()).counter == 1
    assert (desk.clock.doubt(), book.is_late_no_more) == ("", False)


@running
async def test_a_clock_that_jumps_either_way_keeps_what_was_accepted(desk):
    book = await desk.open()
    assert (await book.receive(signed(1))).counter == 1
    desk.now = datetime.now(UTC) + 400 * DAY
    assert (book.counter, book.order.counter) == (1, 1)
    desk.now = datetime.now(UTC) - 20 * DAY
    assert desk.clock.doubt() != ""
    assert (await book.receive(signed(2))).counter == 2
    desk.now = None
    assert (await book.receive(signed(3))).counter == 3
    assert desk.clock.doubt() == ""


@running
async def test_the_time_is_known_only_while_something_of_this_run_confirms_it(desk):
    book = await desk.open()
    assert desk.clock.known() is None
    await book.receive(signed(1))
    assert desk.clock.known() is not None
    desk.start()
    await desk.open()
    assert desk.clock.known() is None, "a board that lay in a drawer must not believe its old clock"
    desk.is_synchronized = True
    assert desk.clock.known() is not None


@running
async def test_a_repeat_confirms_the_time_too(desk):
    book = await desk.open()
    envelope = signed(1)
    await book.receive(envelope)
    desk.start()
    book = await desk.open()
    assert await book.receive(envelope) is None
    assert desk.clock.known() is not None


CONFIRMED = {
    # what the system clock says, whether the kernel says that it is synchronized → whether that alone is believed
    "right, synchronized": (None, True, True),
    "right, nothing synchronizes it": (None, False, False),
    "1970": (UNSET, False, False),
    "1970, called synchronized": (UNSET, True, False),
    "2099": (datetime(2099, 1, 1, tzinfo=UTC), False, False),
    "last year's, from a drawer": (NOW - 365 * DAY, False, False),
}


@running
@pytest.mark.parametrize("case", CONFIRMED)
async def test_updates_wait_for_a_synchronized_clock_or_an_order_of_this_run(desk, case):
    envelope = signed(1)
    book = await desk.open()
    await book.receive(envelope)
    desk.now, desk.is_synchronized, is_enough = CONFIRMED[case]
    desk.start()
    book = await desk.open()
    assert (desk.clock.for_updates() is not None) is is_enough, "an order that a disk kept confirms nothing"
    await book.receive(envelope)
    found = desk.clock.for_updates()
    assert found is not None
    assert found > datetime.now(UTC) - HOUR, "what expired before this order was signed has expired"


@running
@pytest.mark.parametrize("begins", [None, UNSET])
async def test_after_an_order_of_2099_updates_wait_for_the_next_one_and_no_longer(desk, begins):
    desk.now = begins
    book = await desk.open()
    await book.receive(signed(1, datetime(2099, 1, 1, tzinfo=UTC)))
    assert desk.clock.for_updates() >= datetime(2099, 1, 1, tzinfo=UTC)
    assert desk.clock.trusted() < datetime.now(UTC) + 2 * DAY, "order keys are looked for by this"
    await book.receive(signed(2))
    assert desk.clock.for_updates() < datetime.now(UTC) + 2 * DAY


@running
async def test_an_order_of_somebody_else_confirms_no_time(desk):
    book = await desk.open()
    await book.receive(signed(1)[:-3])
    desk.me = Identity("lab", "other", 7, ("x86-64-v3",), ("digits",))
    await (await desk.open()).receive(signed(1))
    assert desk.clock.for_updates() is None


@running
@pytest.mark.parametrize("jump", [-20 * DAY, 400 * DAY, UNSET - NOW, datetime(2099, 1, 1, tzinfo=UTC) - NOW])
async def test_a_clock_that_jumps_in_the_middle_of_a_run_deafens_nobody(desk, jump):
    book = await desk.open()
    await book.receive(signed(1))
    desk.now = datetime.now(UTC) + jump
    followed = await book.receive(signed(2))
    assert (followed is None) is (jump > timedelta(0)), "by a later clock it has expired"
    found = desk.clock.for_updates()
    assert found is not None
    assert found > datetime.now(UTC) - HOUR
    desk.now = None
    if book.is_late_no_more:
        assert (await book.try_again()).counter == 2
    assert (await book.receive(signed(3))).counter == 3
    assert desk.clock.doubt() == ""


@running
async def test_another_device_s_order_says_nothing_of_the_time(desk):
    book = await desk.open()
    desk.me = Identity("lab", "other", 7, ("x86-64-v3",), ("digits",))
    other = await desk.open()
    assert await other.receive(signed(1)) is None
    assert desk.clock.known() is None
    assert book.refused == ""


@running
async def test_a_new_enrolment_begins_its_own_count_of_orders(desk):
    """As after a fleet that counted by a clock of 2099 and was set up anew."""
    book = await desk.open()
    await book.receive(signed(4 * 10**12))
    desk.me = Identity("lab", "board", 8, ("x86-64-v3",), ("digits",))
    book = await desk.open()
    assert (book.counter, book.order) == (0, None)
    assert await book.receive(signed(4 * 10**12 + 1)) is None
    assert "enrolment" in book.refused


# -- starts ------------------------------------------------------------------------------------------------------------


def test_each_start_that_is_kept_takes_the_next_even_incarnation(tmp_path):
    state = StateFolder(tmp_path)
    boots = [identity.begin(state, 7).boot for _ in range(3)]
    assert [boot.incarnation for boot in boots] == [2, 4, 6]
    assert len({boot.nonce for boot in boots}) == 3


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_starts_on_a_disk_that_takes_nothing_are_one_run_between_two_that_were_kept(desk, number):
    """Two nonces of one incarnation would be a cloned card, and keep the device out of rollouts for good."""
    before = identity.begin(desk.state, 7)
    desk.error = number
    unkept = [identity.begin(desk.state, 7) for _ in range(3)]
    desk.error = 0
    after = identity.begin(desk.state, 7)
    assert len({start.boot for start in unkept}) == 1
    assert before.boot < unkept[0].boot < after.boot
    assert all(start.error is not None for start in unkept)
    assert [start.last_seq for start in unkept] == sorted(start.last_seq for start in unkept)
    assert unkept[0].last_seq > 10**12
    assert (before.last_seq, after.last_seq) == (0, 0)


def test_a_lost_count_of_starts_goes_on_above_every_count(tmp_path):
    state = StateFolder(tmp_path)
    identity.begin(state, 7)
    for path in tmp_path.iterdir():
        path.write_bytes(b"junk")
    start = identity.begin(state, 7)
    assert start.boot.incarnation > 10**9
    assert start.damaged == ("boot.json", "boot.json.2")
    assert identity.begin(state, 7).boot.incarnation == start.boot.incarnation + 2


HERE = Hardware({"board": ("a",)})
COPY = Hardware({"board": ("b",)})


def test_the_key_survives_a_damaged_copy_and_is_never_shown_to_others(tmp_path):
    state = StateFolder(tmp_path)
    made = identity.key_for(state, "token", HERE)
    state.key.write_bytes(b"")
    state.key.chmod(0o600)
    assert identity.key_for(state, "token", HERE) == made
    (tmp_path / "key.json.2").chmod(0o640)
    with pytest.raises(Exception, match="readable by others"):
        identity.key_for(state, "token", HERE)


def test_a_key_belongs_to_one_token_and_one_board(tmp_path):
    state = StateFolder(tmp_path)
    made = identity.key_for(state, "token", HERE)
    assert identity.key_for(state, "token", HERE) == made
    assert identity.key_for(state, "other token", HERE) != made
    assert identity.key_for(state, "token", COPY) != made


def test_the_key_of_the_present_identity_is_kept_while_others_are_made(tmp_path):
    state = StateFolder(tmp_path)
    file = EnrolmentFile(2, "lab", "board", "token", "", "", (), BrokerAddress("h", 1), {}, "{}", "", ())
    token = identity.token_digest("token")
    made = identity.key_for(state, token, HERE)
    answer = EnrolAnswer("board", 7, "", NOW, "")
    known = identity.made_of(file, answer, "x86-64-v3", HERE)
    identity.save(state, known)
    for other in ("b", "c", "d"):
        identity.key_for(state, other, HERE)
    assert identity.key_of(state, known) == made
    assert json.loads(state.key.read_bytes().split(b"\n")[0])["keys"][0]["token_sha256"] == token
    assert len(json.loads(state.key.read_bytes().split(b"\n")[0])["keys"]) == 2


# -- order keys that rotate ------------------------------------------------------------------------------------------

NEW_KEY = Ed25519PrivateKey.generate()
NEW = OrderKeys({"new": NEW_KEY.public_key().public_bytes_raw().hex()})


@running
async def test_after_a_rotation_the_new_key_is_followed_and_the_old_one_is_not_without_enrolling_again(desk):
    book = await desk.open()
    assert (await book.receive(signed(5))).counter == 5
    early = signed(7, key=NEW_KEY, keyid="new")
    assert await book.receive(early) is None
    assert book.lacks_key
    assert await book.trust(NEW)
    assert (await book.try_again()).counter == 7
    assert (book.lacks_key, book.refused) == (False, "")
    assert await book.receive(signed(9)) is None
    assert "no valid signature" in book.refused
    desk.start()
    book = await desk.open()
    assert (book.counter, book.keys) == (7, NEW.keys)
    assert await book.receive(signed(9)) is None
    assert (await book.receive(signed(10, key=NEW_KEY, keyid="new"))).counter == 10


@running
async def test_an_answer_that_lists_no_order_keys_takes_none_away(desk):
    book = await desk.open()
    assert not await book.trust(None)
    await book.trust(NEW)
    assert not await book.trust(None)
    assert not await book.trust(NEW)
    assert book.keys == NEW.keys


@running
async def test_keys_that_the_disk_does_not_take_are_followed_nevertheless(desk):
    book = await desk.open()
    desk.error = errno.ENOSPC
    assert await book.trust(NEW)
    desk.error = 0
    assert await book.receive(signed(5)) is None
    assert (await book.receive(signed(6, key=NEW_KEY, keyid="new"))).counter == 6
    desk.start()
    assert (await desk.open()).keys == NEW.keys


@running
async def test_another_enrolment_begins_with_its_own_keys(desk):
    book = await desk.open()
    await book.trust(NEW)
    desk.me = msgspec.structs.replace(ME, enrolment=8)
    desk.start()
    assert list((await desk.open()).keys) == ["orders"]


@running
async def test_a_wrong_signature_under_a_known_name_asks_for_no_keys(desk):
    """Anybody who may publish there could make the device ask otherwise."""
    book = await desk.open()
    assert await book.receive(signed(5, key=NEW_KEY)) is None
    assert not book.lacks_key
