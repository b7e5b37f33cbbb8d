"""Commands come in here, are done one at a time, and are answered for until the fleet has heard.

Always true
 1. A command is in the ledger on disk before it is acted on, and marked as under way before it begins: whatever cuts in,
    none is done twice, and each that was accepted is answered for.
 2. One is done at a time. Whatever it raises is how it ended, and never more.
 3. How it ended is kept, and sent again with back-off and at each reconnect, until the fleet acknowledges exactly that.
    What it says on the way is sent like it, and kept in memory only.
"""

import asyncio
import random
import sqlite3
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from device_agent import log
from device_agent.clock import Clock
from device_agent.conditions import Conditions
from device_agent.folder import StateFolder
from device_agent.record import Record
from device_agent.reporter import Numbers
from device_agent.storage import Storage
from edgekit.errors import CommandRefusedError, EdgeKitError, MessageError, SignatureRefusedError
from edgekit.protocol import commands
from edgekit.protocol.commands import Ledger
from edgekit.protocol.orders import Identity
from edgekit.trust import dsse
from edgekit.wire import messages
from edgekit.wire.commands import OVER, Action, Command, CommandId, CommandState, Payload, Result, kind_of
from edgekit.wire.messages import Ack, Boot

FIRST_RETRY_S, LONGEST_RETRY_S = 5.0, 300.0
# Envelopes that came and were not looked at yet; a fleet sends again what it hears nothing of.
MAX_UNREAD = 32
CONDITION = "command-refused"


class FailedError(EdgeKitError):
    """A command could not be done; the message is what the fleet is told. `payload` is what there is to show all the same."""

    code = "command-failed"

    def __init__(self, message: str, payload: Payload | None = None) -> None:
        super().__init__(message)
        self.payload = payload


# Does what is asked, and returns what there is to show. Raises: FailedError; anything else is a failure too.
Act = Callable[[Action], Awaitable[Payload | None]]


@dataclass(frozen=True)
class Speaker:
    """What a result is sent by: `send` publishes a payload, and says whether the link took it."""

    device: str
    boot: Boot
    numbers: Numbers
    send: Callable[[bytes], bool]


@dataclass
class _Telling:
    """What the fleet is to hear of one command, and when next."""

    state: CommandState
    reason: str = ""
    payload: Payload | None = None
    due: float = 0.0
    tries: int = 0
    seqs: set[int] = field(default_factory=set)


class Desk:
    """Used from the event loop only; `load` it before anything else."""

    def __init__(
        self,
        state: StateFolder,
        storage: Storage,
        conditions: Conditions,
        clock: Clock,
        *,
        identity: Callable[[], Identity],
        keys: Callable[[], dict[str, str]],
        speaker: Speaker,
        act: Act,
    ) -> None:
        self._record = Record(state.commands, Ledger)
        self._storage = storage
        self._conditions = conditions
        self._clock = clock
        self._identity, self._keys = identity, keys
        self._speaker = speaker
        self._act = act
        self._ledger = Ledger()
        self._unread: deque[bytes] = deque(maxlen=MAX_UNREAD)
        self._came = asyncio.Event()
        self._more = asyncio.Event()
        self._telling: dict[CommandId, _Telling] = {}
        self._turn = asyncio.Lock()

    async def load(self) -> None:
        """What an earlier run left. With both copies damaged, none of before is followed any more."""
        kept = await self._storage.do(self._record.load)
        if kept is None and self._record.trouble:
            lost = "both copies of the ledger of commands were damaged and are set aside; none from before now is followed"
            self._conditions.notice("commands-lost", lost)
            kept = Ledger(since=self._clock.trusted())
        self._ledger = commands.resumed(kept or Ledger(), self._identity().enrolment)
        for entry in self._ledger.entries:
            if entry.state in OVER and not entry.is_told:
                self._telling[entry.id] = _Telling(entry.state, entry.reason, entry.payload)
        self._more.set()

    # -- for the supervisor --------------------------------------------------------------------------------------

    def heard(self, envelope: bytes) -> None:
        self._unread.append(envelope)
        self._came.set()

    def link_up(self) -> None:
        """What was sent before may be lost: all of it is due again."""
        for telling in self._telling.values():
            telling.due, telling.tries = 0.0, 0
        self.tick()

    def acknowledged(self, payload: bytes) -> None:
        """An ack names results too; those of another boot, and reports, are not looked for here."""
        with suppress(MessageError):
            ack = messages.decode(payload, Ack)
            if ack.boot == self._speaker.boot:
                for number in [n for n, one in self._telling.items() if one.seqs & set(ack.seqs)]:
                    self._was_told(number)

    def tick(self) -> None:
        """Send what is due."""
        now = time.monotonic()
        for number, telling in self._telling.items():
            if telling.due <= now and not self._send(number, telling, now):
                return

    async def run(self) -> None:
        """Take what comes and do it, for ever; what is under way when this is cancelled is found by the next start."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._take())
            tasks.create_task(self._do())

    # -- taking --------------------------------------------------------------------------------------------------

    async def _take(self) -> None:
        while True:
            await self._came.wait()
            self._came.clear()
            while self._unread:
                await self._receive(self._unread.popleft())

    async def _receive(self, envelope: bytes) -> None:
        try:
            command = messages.decode(dsse.verify(envelope, dsse.COMMAND_TYPE, self._keys()), Command)
        except (SignatureRefusedError, MessageError) as error:
            self._refuse("a command", str(error))
            return
        async with self._turn:
            try:
                now = self._clock.trusted(command.issued)
                ledger = commands.accept(command, self._identity(), self._ledger, now)
            except CommandRefusedError as error:
                if error.is_ours:
                    log.trouble("command refused", id=command.id, reason=error)
                    self._tell(command.id, CommandState.REFUSED, str(error))
                else:
                    self._refuse(command.id, str(error))
                return
            self._conditions.clear(CONDITION)
            if ledger is None:
                self._tell_again(command.id)
                return
            self._clock.hear_command(command.issued)
            if await self._save(ledger):
                log.event("command accepted", id=command.id, kind=kind_of(command.action))
                self._tell(command.id, CommandState.ACCEPTED)
                self._more.set()

    def _refuse(self, what: str, reason: str) -> None:
        """Nobody is to be told over the link that this came by; who looks at the device is."""
        log.trouble("command refused", id=what, reason=reason)
        self._conditions.set(CONDITION, reason[:2000])

    async def _save(self, ledger: Ledger) -> bool:
        """On disk, and then true. What could not be stored was not accepted: the fleet sends it again."""
        try:
            await self._storage.do(lambda: self._record.save(ledger))
        except (OSError, sqlite3.Error) as error:
            log.trouble("the ledger of commands cannot be written", reason=error)
            return False
        self._ledger = ledger
        return True

    # -- doing ---------------------------------------------------------------------------------------------------

    async def _do(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            while (entry := commands.waiting(self._ledger)) is not None:
                await self._do_one(entry)

    async def _do_one(self, entry: commands.Entry) -> None:
        if entry.expires <= self._clock.trusted():
            await self._move(entry.id, CommandState.FAILED, "it expired while it waited for its turn")
            return
        if not await self._begin(entry.id):
            await asyncio.sleep(FIRST_RETRY_S)
            return
        log.event("command begins", id=entry.id, kind=kind_of(entry.action))
        self._tell(entry.id, CommandState.RUNNING)
        try:
            payload = await self._act(entry.action)
        except FailedError as error:
            await self._move(entry.id, CommandState.FAILED, str(error), error.payload)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is how this command ended
            await self._move(entry.id, CommandState.FAILED, str(error) or repr(error))
        else:
            await self._move(entry.id, CommandState.DONE, "", payload)

    async def _begin(self, number: CommandId) -> bool:
        async with self._turn:
            return await self._save(commands.moved(self._ledger, number, CommandState.RUNNING))

    async def _move(
        self, number: CommandId, state: CommandState, reason: str, payload: Payload | None = None
    ) -> None:
        """How it ended: told even where the disk does not take it, and then not done again in this run."""
        log.event("command over", id=number, state=state.value, reason=reason or "-")
        async with self._turn:
            ledger = commands.moved(self._ledger, number, state, reason, payload)
            if not await self._save(ledger):
                self._ledger = ledger
        self._tell(number, state, reason, payload)

    # -- telling -------------------------------------------------------------------------------------------------

    def _tell(
        self, number: CommandId, state: CommandState, reason: str = "", payload: Payload | None = None
    ) -> None:
        self._telling[number] = _Telling(state, reason[:2000], payload)
        if state is CommandState.REFUSED and len(self._telling) > commands.MAX_KNOWN:
            self._telling.pop(next(iter(self._telling)))
        self.tick()

    def _tell_again(self, number: CommandId) -> None:
        """The fleet sends what it has heard nothing of."""
        entry = self._ledger.get(number)
        if entry is not None:
            self._tell(number, entry.state, entry.reason, entry.payload)

    def _send(self, number: CommandId, telling: _Telling, now: float) -> bool:
        speaker = self._speaker
        result = Result(
            speaker.device, speaker.boot, speaker.numbers.take(), number, telling.state, telling.reason, telling.payload
        )  # fmt: skip
        if not speaker.send(messages.encode(result)):
            return False
        telling.seqs.add(result.seq)
        pause = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2**telling.tries) * random.uniform(0.7, 1.3)  # noqa: S311  # jitter
        telling.due, telling.tries = now + pause, telling.tries + 1
        return True

    def _was_told(self, number: CommandId) -> None:
        """Forgotten on disk with the next change: what is told twice does no harm."""
        state = self._telling.pop(number).state
        entry = self._ledger.get(number)
        if entry is not None and state in OVER and entry.state is state:
            self._ledger = commands.told(self._ledger, number)


def extended(identity: Identity, deployments: tuple[str, ...]) -> Identity:
    """An identity with the deployments that the device has by now."""
    return msgspec.structs.replace(identity, deployments=deployments)
