"""The certificate's life: renewed at two thirds of it, tried again while that fails, told while it does.

Always true
 1. What serves, and the link that is up, wait for nothing here. The present certificate is shown until the next one
    came, and that one from the next connection on.
 2. A certificate that came is kept in memory where the disk does not take it, and written when it does.
 3. A device whose clock says that every certificate has run out asks at most once in a day.
"""

import asyncio
import random
from datetime import datetime, timedelta

from device_agent import enrol, identity, log
from device_agent.blocking import run_blocking
from device_agent.clock import Clock
from device_agent.conditions import Conditions
from device_agent.enrol import FleetUnreachableError
from device_agent.folder import StateFolder
from device_agent.identity import DeviceIdentity, DeviceKey
from device_agent.network import Access
from device_agent.storage import Storage
from edgekit.errors import EdgeKitError
from edgekit.wire.enrolment import RENEW_AT

FIRST_PAUSE_S = 60.0
LONGEST_PAUSE_S = 6 * 3600.0
# How often the clock is looked at while nothing is due: it may jump.
LOOK_S = 600.0
# Of a certificate's life, how far around `RENEW_AT` devices spread.
_SPREAD = 0.04
_CONDITION = "certificate-not-renewed"


def due(begin: datetime, end: datetime, jitter: float) -> datetime:
    """When to renew a certificate; `jitter` between -1 and 1 spreads the devices of a fleet."""
    return begin + (end - begin) * (RENEW_AT + _SPREAD * jitter)


def least_pause(begin: datetime, end: datetime) -> timedelta:
    """The time after one renewal before the next, whatever the clock says."""
    return min(timedelta(days=1), (end - begin) / 4)


class Renewal:
    """Renews one identity."""

    def __init__(
        self,
        state: StateFolder,
        storage: Storage,
        conditions: Conditions,
        access: Access,
        clock: Clock,
        *,
        known: DeviceIdentity,
        key: DeviceKey,
    ) -> None:
        self._state = state
        self._storage = storage
        self._conditions = conditions
        self._access = access
        self._clock = clock
        self._key = key
        self.known = known
        self._nudged = asyncio.Event()
        self._is_unsaved = False

    def nudge(self) -> None:
        """The broker closes connections without a word, as one does that finds a certificate run out."""
        if self._clock.known() is None:
            self._nudged.set()

    async def run(self) -> None:
        pause = FIRST_PAUSE_S
        jitter = random.uniform(-1, 1)  # noqa: S311  # jitter, no secret
        while True:
            begin, end = self.known.life
            await self._until(due(begin, end, jitter), (end - begin).total_seconds())
            if await self._renew():
                pause = FIRST_PAUSE_S
                jitter = random.uniform(-1, 1)  # noqa: S311  # jitter, no secret
                await asyncio.sleep(least_pause(*self.known.life).total_seconds())
            else:
                life_s = (end - begin).total_seconds()
                await asyncio.sleep(min(pause, life_s / 20) * random.uniform(0.7, 1.3))  # noqa: S311  # jitter
                pause = min(LONGEST_PAUSE_S, pause * 2)
            self._nudged.clear()

    async def _until(self, moment: datetime, life_s: float) -> None:
        """Until it is `moment` by a clock that may jump, or somebody nudges; what is unsaved is saved meanwhile."""
        while (now := self._clock.trusted()) < moment:
            left_s = min(LOOK_S, (moment - now).total_seconds(), life_s / 20)
            try:
                async with asyncio.timeout(max(0.05, left_s)):
                    await self._nudged.wait()
                return
            except TimeoutError:
                await self._save()

    async def _renew(self) -> bool:
        try:
            answer = await run_blocking(lambda: enrol.renew(self._access, self.known, self._key))
        except FleetUnreachableError as error:
            self._tell(str(error))
            return False
        except EdgeKitError as error:
            self._tell(f"{error}; enrol this device again if that is not a mistake")
            return False
        is_new = answer.certificate != self.known.answer.certificate
        self.known = identity.renewed(self.known, answer)
        self._access.show(answer.certificate, self._key.pem, answer.credential)
        self._is_unsaved = True
        await self._save()
        self._conditions.clear(_CONDITION)
        told = "certificate renewed" if is_new else "the fleet gave the same certificate again"
        log.event(told, device=answer.device, until=answer.not_after.isoformat())
        return True

    async def _save(self) -> None:
        if not self._is_unsaved or self._storage.condition:
            return
        known = self.known
        try:
            await self._storage.do(lambda: identity.save(self._state, known))
        except OSError as error:
            log.trouble("the renewed certificate cannot be kept yet", reason=error)
        else:
            self._is_unsaved = False

    def _tell(self, reason: str) -> None:
        _begin, end = self.known.life
        self._conditions.set(_CONDITION, f"it ends at {end.isoformat()}; the last try: {reason}")
