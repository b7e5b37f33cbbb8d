"""Keeping order keys and metadata up to date where no update does it: a while after the start, once a day, and when an
order comes that none of the known keys signed.

Always true
 1. Whoever can publish to this device's topic makes it ask at most once in `NUDGED_S`.
 2. A key that the publisher took from the list is followed for a day at most, where the metadata can be had.
"""

import asyncio
import random

from device_agent import log
from device_agent.tuf.lookup import Lookup
from edgekit.errors import EdgeKitError

FIRST_S = 300.0
DAY_S = 86_400.0
# After a look that failed; and the least time between two looks.
AGAIN_S = 600.0
NUDGED_S = 20.0


class Watch:
    """Asks through `lookup`, which tells the order book what it heard."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._nudged = asyncio.Event()

    def nudge(self) -> None:
        """An order was signed by a key that is not known here."""
        self._nudged.set()

    async def run(self) -> None:
        pause = FIRST_S
        while True:
            try:
                async with asyncio.timeout(pause * random.uniform(0.5, 1.0)):  # noqa: S311  # jitter, no secret
                    await self._nudged.wait()
            except TimeoutError:
                pass
            self._nudged.clear()
            try:
                await self._lookup.look()
                pause = DAY_S
            except (EdgeKitError, OSError) as error:
                log.trouble("the publisher's metadata cannot be brought up to date", reason=error)
                pause = AGAIN_S
            await asyncio.sleep(NUDGED_S)
