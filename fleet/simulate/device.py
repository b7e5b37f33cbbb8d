"""One virtual device: it reports, follows orders by the real rules, and has no model.

Always true
 1. An order counts only if the fleet's key signed it and `edgekit.protocol.orders` accepts it.
 2. A report is kept, and sent again with back-off, until its exact number is acknowledged; at each reconnect at once.
 3. What it says of itself goes out after every change, and after every connect.
"""

import asyncio
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from edgekit.errors import CommandRefusedError, MessageError, OrderRefusedError, SignatureRefusedError
from edgekit.protocol import commands, orders
from edgekit.trust import dsse
from edgekit.wire import topics
from edgekit.wire.commands import Command, CommandState, Measure, Result, SelfTest
from edgekit.wire.enrolment import EnrolmentFile
from edgekit.wire.messages import (
    Ack,
    Boot,
    DeploymentReport,
    Order,
    OrderedBundle,
    Report,
    Reported,
    Status,
    decode,
    encode,
)
from edgekit.wire.states import AgentState
from fleet.simulate import mqtt
from fleet.simulate.behaviour import Windows, World
from fleet.simulate.line import Line
from fleet.simulate.tally import Tally

# As the agent's.
FIRST_RETRY_S, LONGEST_RETRY_S = 5.0, 300.0
MOST_KEPT = 1000


class Identity(NamedTuple):
    """What a device got by enrolling, and has kept since. `certificate` is a PEM chain with its key, empty on a plain
    fleet; `runs` are (deployment, digest, name, version), `followed` the newest order.
    """

    name: str
    enrolment: int
    profile: str
    incarnation: int
    certificate: str = ""
    runs: tuple[tuple[str, str, str, str], ...] = ()
    followed: orders.Followed = orders.Followed()


@dataclass(frozen=True)
class Shared:
    """What all devices of a run have in common. `order_keys` are those of the enrolment file."""

    file: EnrolmentFile
    world: World
    windows: Windows
    tally: Tally
    engines: Mapping[str, str]
    random: random.Random
    chain: Mapping[str, tuple[str, ...]]


@dataclass
class _Kept:
    """A report that is not acknowledged yet."""

    payload: bytes
    made: float
    due: float
    pause_s: float = FIRST_RETRY_S
    was_sent: bool = False


@dataclass
class _Slot:
    """One deployment."""

    state: AgentState = AgentState.IDLE
    digest: str | None = None
    ordered: str | None = None
    title: tuple[str, str] = ("", "")
    reason: str = ""
    is_silent: bool = False
    refused: set[str] = field(default_factory=set)
    task: asyncio.TimerHandle | None = None


class Device:
    """From `start` on everything happens by itself in the event loop until `stop`; who connects it is `carrier`'s."""

    def __init__(self, identity: Identity, shared: Shared) -> None:
        self.identity, self._shared = identity, shared
        self._loop = asyncio.get_running_loop()
        self._line: Line | None = None
        self._is_ending = False
        self._incarnation, self._nonce = identity.incarnation, _nonce(shared.random)
        self._seq = self._said = 0
        self._drifts = shared.windows.drifts(identity.name)
        self._followed = identity.followed
        self._asked_for = commands.Ledger()
        self._refused = ""
        self._slots: dict[str, _Slot] = {name: _Slot() for name in shared.file.deployments}
        for name, digest, model, version in identity.runs:
            self._slots[name] = _Slot(digest=digest, ordered=digest, title=(model, version))
        self._kept: dict[tuple[Boot, int], _Kept] = {}
        self._level = shared.windows.level()
        self._topic = {leaf: topics.of(identity.name, leaf) for leaf in _LEAVES}

    @property
    def kept(self) -> Identity:
        """What outlives the run."""
        runs = tuple(
            (name, slot.digest, *slot.title) for name, slot in self._slots.items() if slot.digest is not None
        )
        return self.identity._replace(incarnation=self._incarnation, runs=runs, followed=self._followed)

    @property
    def waiting(self) -> int:
        """Reports that are not acknowledged."""
        return len(self._kept)

    def start(self) -> None:
        """Report from some moment of the first window on."""
        self._loop.call_later(self._shared.random.random() * self._shared.world.window_s, self._window)

    def end(self) -> None:
        """No further reports and drops; what is kept is still sent until it is acknowledged."""
        self._is_ending = True

    def stop(self) -> None:
        """Say goodbye."""
        self._is_ending = True
        self._status(is_online=False)

    def starts_anew(self) -> None:
        """It is another run from now on; what the one before it kept is still to be sent."""
        # Two a start, as the agent's (`device_agent.start`): clean and unclean ones differ.
        self._incarnation, self._nonce = self._incarnation + 2, _nonce(self._shared.random)
        self._seq = self._said = 0

    @property
    def will(self) -> mqtt.Will:
        return mqtt.Will(self._topic[topics.STATUS], encode(Status(online=False, boot=self._boot)))

    @property
    def _boot(self) -> Boot:
        return Boot(self.identity.enrolment, self._incarnation, self._nonce)

    def up(self, line: Line) -> None:
        """There is a connection."""
        self._line = line
        line.subscribe(
            (self._topic[topics.DESIRED], 1), (self._topic[topics.COMMAND], 1), (self._topic[topics.ACK], 0)
        )
        self._status(is_online=True)
        self._say()
        for kept in self._kept.values():
            kept.due = 0.0
        self._send_kept()

    def lost(self) -> None:
        """There is none any more."""
        self._line = None

    def _status(self, *, is_online: bool) -> None:
        if self._line is not None:
            status = encode(Status(online=is_online, boot=self._boot))
            self._line.publish(self._topic[topics.STATUS], status, retain=True)

    def message(self, topic: str, payload: bytes) -> None:
        try:
            if topic == self._topic[topics.ACK]:
                self._acknowledged(decode(payload, Ack))
            elif topic == self._topic[topics.DESIRED] and payload:
                self._ordered(payload)
            elif topic == self._topic[topics.COMMAND] and payload:
                self._asked(payload)
        except CommandRefusedError:
            # What is not meant for it, or has expired by now, the fleet finds unanswered.
            return
        except (MessageError, SignatureRefusedError, OrderRefusedError) as error:
            self._shared.tally.orders_refused += 1
            self._refused = str(error)
            self._say()

    @property
    def _me(self) -> orders.Identity:
        profile = self.identity.profile
        chain = self._shared.chain.get(profile, (profile,))
        return orders.Identity(
            self._shared.file.fleet, self.identity.name, self.identity.enrolment, chain, tuple(self._slots)
        )

    def _asked(self, data: bytes) -> None:
        """It has no model to test or measure; the rest it says that it did. A fleet that heard nothing asks again."""
        command = decode(dsse.verify(data, dsse.COMMAND_TYPE, self._shared.file.order_keys), Command)
        self._asked_for = (
            commands.accept(command, self._me, self._asked_for, datetime.now(UTC)) or self._asked_for
        )
        is_real = isinstance(command.action, SelfTest | Measure)
        state = CommandState.FAILED if is_real else CommandState.DONE
        self._said += 1
        reason = "this device is simulated, and has no model" if is_real else ""
        result = Result(self.identity.name, self._boot, self._said, command.id, state, reason)
        if self._line is not None:
            self._line.publish(self._topic[topics.RESULT], encode(result))

    def _ordered(self, data: bytes) -> None:
        payload = dsse.verify(data, dsse.ORDER_TYPE, self._shared.file.order_keys)
        order = decode(payload, Order)
        followed = orders.accept(order, payload, self._me, self._followed, datetime.now(UTC))
        if followed is None:
            return
        self._followed, self._refused = followed, ""
        self._shared.tally.orders_followed += 1
        for name in order.added:
            self._slots.setdefault(name, _Slot())
        for name, slot in self._slots.items():
            if order.options.retry:
                slot.refused.clear()
            probation_s = order.options.probation_s
            self._follow(slot, order.deployments.get(name), probation_s)
        self._say()

    def _follow(self, slot: _Slot, wanted: OrderedBundle | None, probation_s: float | None) -> None:
        if slot.task is not None:
            slot.task.cancel()
            slot.task = None
        slot.ordered, slot.reason = (wanted.sha256 if wanted else None), ""
        if wanted is None:
            slot.state, slot.digest, slot.title, slot.is_silent = AgentState.IDLE, None, ("", ""), False
        elif wanted.sha256 == slot.digest:
            slot.state = AgentState.IDLE
        elif wanted.sha256 in slot.refused:
            slot.state, slot.reason = AgentState.IDLE, "this device has refused it before"
        else:
            slot.state = AgentState.FETCH
            pause_s = self._shared.random.expovariate(1 / max(0.001, self._shared.world.fetch_s))
            slot.task = self._loop.call_later(pause_s, self._fetched, slot, wanted, probation_s)

    def _fetched(self, slot: _Slot, wanted: OrderedBundle, probation_s: float | None) -> None:
        release = self._shared.world.release(wanted.target.split("/")[1])
        if self._shared.random.random() < release.install_failures:
            slot.state, slot.reason = AgentState.IDLE, "self-test: other outputs than the golden ones"
            slot.refused.add(wanted.sha256)
            self._shared.tally.installs_failed += 1
        else:
            slot.state = AgentState.PROBATION
            wait_s = self._shared.world.probation_s if probation_s is None else probation_s
            slot.task = self._loop.call_later(wait_s, self._committed, slot, wanted)
        self._say()

    def _committed(self, slot: _Slot, wanted: OrderedBundle) -> None:
        name, version, *_ = wanted.target.split("/")
        slot.state, slot.digest, slot.title, slot.task = AgentState.IDLE, wanted.sha256, (name, version), None
        slot.is_silent = self._shared.random.random() < self._shared.world.release(version).silent
        self._shared.tally.updates += 1
        self._say()

    def _say(self) -> None:
        if self._line is None:
            return
        self._said += 1
        reported = Reported(
            device=self.identity.name,
            boot=self._boot,
            seq=self._said,
            order_counter=self._followed.counter,
            deployments={name: _report_of(slot) for name, slot in self._slots.items()},
            profile=self.identity.profile,
            isa=(),
            engines=dict(self._shared.engines),
            agent_version="simulated",
            bundle_format=1,
            free_bytes=16 << 30,
            free_memory_mb=2048.0,
            refused=self._refused,
        )
        self._line.publish(self._topic[topics.REPORTED], encode(reported), retain=True)

    def _window(self) -> None:
        """A window ended."""
        if self._is_ending:
            return
        window_s = self._shared.world.window_s
        self._loop.call_later(window_s, self._window)
        if any(slot.is_silent for slot in self._slots.values()):
            return
        self._seq += 1
        report = Report(
            device=self.identity.name,
            boot=self._boot,
            seq=self._seq,
            started=datetime.now(UTC) - timedelta(seconds=window_s),
            length_s=window_s,
            clock_ok=True,
            deployments=tuple(
                self._shared.windows.window(
                    name, slot.digest, slot.title[1], self._level, drifts=self._drifts
                )
                for name, slot in self._slots.items()
                if slot.digest is not None
            ),
        )
        now = self._loop.time()
        if len(self._kept) >= MOST_KEPT:
            self._kept.pop(next(iter(self._kept)))
            self._shared.tally.reports_lost += 1
        self._kept[self._boot, self._seq] = _Kept(encode(report), now, 0.0)
        self._shared.tally.reports_made += 1
        self._send_kept()

    def _send_kept(self) -> None:
        """Send what is due, and come back when the next is."""
        if self._line is None or not self._kept:
            return
        now, soonest = self._loop.time(), math.inf
        for kept in self._kept.values():
            if kept.due <= now:
                self._line.publish(self._topic[topics.TELEMETRY], kept.payload)
                self._shared.tally.reports_resent += kept.was_sent
                kept.was_sent = True
                kept.due = now + kept.pause_s
                kept.pause_s = min(2 * kept.pause_s, LONGEST_RETRY_S)
            soonest = min(soonest, kept.due)
        self._loop.call_at(soonest + 0.01, self._send_due)

    def _send_due(self) -> None:
        if any(kept.due <= self._loop.time() for kept in self._kept.values()):
            self._send_kept()

    def _acknowledged(self, ack: Ack) -> None:
        now = self._loop.time()
        for seq in ack.seqs:
            kept = self._kept.pop((ack.boot, seq), None)
            if kept is not None:
                self._shared.tally.acknowledged(now - kept.made)


_LEAVES = (
    topics.COMMAND,
    topics.RESULT,
    topics.DESIRED,
    topics.ACK,
    topics.STATUS,
    topics.REPORTED,
    topics.TELEMETRY,
)


def _nonce(source: random.Random) -> str:
    return f"{source.getrandbits(64):016x}"


def _report_of(slot: _Slot) -> DeploymentReport:
    name, version = slot.title
    return DeploymentReport(
        slot.state,
        digest=slot.digest,
        committed=slot.digest,
        ordered=slot.ordered,
        model=name,
        model_version=version,
        reason=slot.reason,
        memory_mb=64.0 if slot.digest else None,
    )
