"""The supervisor's part: who may keep samples, what waits, and its way to the fleet.

Always true
 1. What is kept and sent follows the policies of the newest order accepted, and no other. One that ended, by an order or
    by time, leaves nothing behind: what waited by it is deleted.
 2. A sample is deleted after the fleet acknowledged it, or does not want it; until then it survives restarts.
 3. Serving never waits for any of this.
"""

import asyncio
import contextlib
import dataclasses
import os
import random
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from device_agent import log
from device_agent.blocking import Stopper, run_blocking
from device_agent.channel import Sampling
from device_agent.clock import Clock
from device_agent.config import Who
from device_agent.folder import StateFolder
from device_agent.network import Access
from device_agent.samples import allowance, sending
from device_agent.samples.allowance import Taken
from device_agent.samples.sending import Outcome, Sent
from device_agent.samples.store import Held, Store, Waiting
from device_agent.storage import Storage
from edgekit.wire.messages import DeploymentWindow, Order
from edgekit.wire.samples import SamplePolicy, sample_url

FIRST_RETRY_S = 5.0
LONGEST_RETRY_S = 300.0
# Samples between a worker and the disk.
MOST_IN_HAND = 4
# A shift by convention (Yurdakul 2018), of the index that a window says of an input.
DRIFT_METRIC, DRIFT_PSI = "drift_psi", 0.2
# How often it is looked at what a policy still allows.
LOOK_S = 2.0


@dataclass
class Tally:
    """Since the agent started. `passed_over` are inputs that a policy wanted and that could not be kept in time."""

    kept: int = 0
    sent: int = 0
    unwanted: int = 0
    passed_over: int = 0
    dropped: int = 0


def made(state: StateFolder, storage: Storage, who: Who, may_send: Callable[[int], bool]) -> "Keeper":
    """Of an agent."""
    url = sample_url(who.identity.file.enrol_url)
    return Keeper(Store(state.samples), storage, who.clock, who.access, url=url, may_send=may_send)


class Keeper:
    """Used from the event loop. `may_send` says whether this many bytes may go out now."""

    def __init__(
        self,
        store: Store,
        storage: Storage,
        clock: Clock,
        access: Access,
        *,
        url: str,
        may_send: Callable[[int], bool] = lambda _size: True,
    ) -> None:
        self._store = store
        self._storage = storage
        self._clock = clock
        self._access = access
        self._url = url
        self._may_send = may_send
        self.tally = Tally()
        self._policies: dict[str, SamplePolicy] = {}
        self._ended: set[str] = set()
        self._drifting: set[str] = set()
        self._held = Held()
        self._in_hand: set[asyncio.Task[None]] = set()
        self._told: dict[str, Sampling] = {}
        self._due = asyncio.Event()
        self._is_to_clear = True
        self._under_way: tuple[Waiting, Stopper] | None = None
        self._tries, self._next_try = 0, 0.0

    @property
    def waiting(self) -> int:
        """How many samples wait for the fleet."""
        return len(self._held.waiting)

    def prometheus(self) -> str:
        """The counts in Prometheus' text format, version 0.0.4."""
        lines = [
            "# HELP edgekit_samples_total Inputs for retraining.",
            "# TYPE edgekit_samples_total counter",
        ]
        lines += [
            f'edgekit_samples_total{{what="{what}"}} {count}'
            for what, count in dataclasses.asdict(self.tally).items()
        ]
        lines += ["# HELP edgekit_samples_waiting On disk.", "# TYPE edgekit_samples_waiting gauge"]
        return "\n".join([*lines, f"edgekit_samples_waiting {self.waiting}"]) + "\n"

    # -- what may be kept ----------------------------------------------------------------------------------------

    def follow(self, order: Order) -> None:
        """The newest order, accepted and synced; call it before anything is taken."""
        self._policies = {policy.id: policy for policy in order.samples}
        self._ended &= self._policies.keys()
        self._look()

    def judged(self, windows: tuple[DeploymentWindow, ...]) -> tuple[DeploymentWindow, ...]:
        """Windows that were closed, as they are: what they say of drift holds until the next ones."""
        self._drifting = {window.deployment for window in windows if _drifts(window)}
        self._tell()
        return windows

    def sampling(self, deployment: str) -> Sampling:
        """What the workers of a deployment are to keep; the same object until that changes."""
        return self._told.get(deployment, _NOTHING)

    def passed_over(self, inputs: int) -> None:
        self.tally.passed_over += inputs

    def _in_force(self, now: datetime) -> dict[str, SamplePolicy]:
        return {
            name: policy
            for name, policy in self._policies.items()
            if name not in self._ended and not allowance.is_over(policy, now)
        }

    def _look(self) -> None:
        """What has ended leaves nothing; workers hear what is left."""
        in_force = self._in_force(self._clock.trusted())
        gone = {one.policy for one in self._held.waiting} | self._held.taken.keys()
        if gone - in_force.keys():
            self._is_to_clear = True
        if self._under_way is not None and self._under_way[0].policy not in in_force:
            self._under_way[1].set()
        if self._is_to_clear:
            self._due.set()
        self._tell()

    def _tell(self) -> None:
        now, known = self._clock.trusted(), self._clock.known()
        wanted: dict[str, list[SamplePolicy]] = {}
        for policy in self._in_force(now).values():
            if allowance.has_room(policy, self._held.taken.get(policy.id, Taken()), now, known):
                wanted.setdefault(policy.deployment, []).append(policy)
        made = {name: Sampling(tuple(policies), name in self._drifting) for name, policies in wanted.items()}
        self._told = {
            name: self._told[name] if self._told.get(name) == one else one for name, one in made.items()
        }

    # -- what comes from workers ---------------------------------------------------------------------------------

    def take(self, deployment: str, descriptor: int) -> None:
        """A worker's sample; the descriptor is closed here."""
        is_wanted = bool(self.sampling(deployment).policies) and not self._storage.condition
        if not is_wanted or len(self._in_hand) >= MOST_IN_HAND:
            os.close(descriptor)
            self.tally.dropped += 1
            return
        task = asyncio.create_task(self._keep(deployment, descriptor))
        self._in_hand.add(task)
        task.add_done_callback(self._in_hand.discard)

    async def _keep(self, deployment: str, descriptor: int) -> None:
        now, known = self._clock.trusted(), self._clock.known()

        def work() -> Held:
            # What holds when its turn has come: a policy may have ended while it waited for the disk.
            return self._store.keep(descriptor, deployment, self._in_force(now), now, known)

        try:
            self._adopt(await self._storage.do(work))
        except (OSError, sqlite3.Error) as error:
            self.tally.dropped += 1
            log.trouble("a sample could not be kept", deployment=deployment, reason=error)
        finally:
            os.close(descriptor)
        self._due.set()
        self._tell()

    def _adopt(self, held: Held) -> None:
        self.tally.kept += held.kept - self._held.kept
        self.tally.dropped += held.dropped - self._held.dropped
        self._held = held

    # -- to the fleet --------------------------------------------------------------------------------------------

    def nudge(self) -> None:
        """The fleet can be reached again."""
        self._next_try = 0.0
        self._due.set()

    async def run(self) -> None:
        """Clear what has ended, and send what waits, oldest first, for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._due.wait()
            self._due.clear()
            self._look()
            if not self._is_to_clear or await self._clear():
                await self._bring_all()

    async def _bring_all(self) -> None:
        """What waits, until one is to be tried again later."""
        while not self._is_to_clear and time.monotonic() >= self._next_try and self._held.waiting:
            first = self._held.waiting[0]
            if not self._may_send(first.size):
                return
            if await self._bring(first):
                self._tries = 0
                continue
            pause = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2**self._tries) * random.uniform(0.7, 1.3)  # noqa: S311  # jitter
            self._tries, self._next_try = min(self._tries + 1, 10), time.monotonic() + pause

    async def _clear(self) -> bool:
        """Whether nothing is left of what has ended."""
        self._is_to_clear = False
        try:
            names = tuple(self._in_force(self._clock.trusted()))
            self._adopt(await self._storage.do(lambda: self._store.follow(names)))
        except (OSError, sqlite3.Error) as error:
            self._is_to_clear = True
            log.trouble("samples of a policy that ended cannot be deleted yet", reason=error)
            return False
        return True

    async def _bring(self, one: Waiting) -> bool:
        """Offer a sample, and do with it what the answer says; False if it is to be tried again."""
        try:
            data = await self._storage.do(lambda: self._store.read(one))
            if data is None:
                self._adopt(await self._storage.do(lambda: self._store.held))
                return True
            if one.policy not in self._in_force(self._clock.trusted()):
                self._is_to_clear = True
                self._due.set()
                return True
            sent = await self._send(one, data)
            if sent.outcome is Outcome.LATER:
                log.trouble("a sample could not be brought to the fleet; trying again", reason=sent.why)
                return False
            self._adopt(await self._storage.do(lambda: self._store.remove(one)))
        except (OSError, sqlite3.Error) as error:
            log.trouble("a sample could not be read or deleted", reason=error)
            return False
        self._note(one, sent)
        return True

    async def _send(self, one: Waiting, data: bytes) -> Sent:
        stopper = Stopper()
        self._under_way = (one, stopper)
        try:
            return await run_blocking(
                lambda: sending.send(self._access, f"{self._url}/{one.sha256}", data, stopper)
            )
        finally:
            self._under_way = None
            # Abandoned where this task was cancelled: the thread is woken, and ends.
            stopper.set()

    def _note(self, one: Waiting, sent: Sent) -> None:
        if sent.outcome is Outcome.STORED:
            self.tally.sent += 1
            return
        self.tally.unwanted += 1
        log.event("the fleet does not want a sample; it is deleted", policy=one.policy, reason=sent.why)
        if sent.outcome is Outcome.ENDED:
            self._ended.add(one.policy)
            self._look()


_NOTHING = Sampling()


def _drifts(window: DeploymentWindow) -> bool:
    """Now, or over the day."""
    found = window.metrics.get(DRIFT_METRIC)
    now = max((index for label, index in window.drift.items() if label.startswith("inputs/")), default=0.0)
    return now > DRIFT_PSI or (found is not None and found.mean > DRIFT_PSI)
