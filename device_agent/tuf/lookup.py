"""Asking what is signed, from the supervisor: one `child` at a time, ended when nobody waits for it any more.

Imports nothing of `tuf`. What a child writes is whole or not at all, so it may be ended at any moment.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from pathlib import Path

import msgspec

from device_agent.clock import Clock
from device_agent.traffic import Traffic
from device_agent.tuf.question import Answer, Listed, Question
from device_agent.update.events import Cause
from device_agent.update.fetch import FetchError
from edgekit import delta
from edgekit.manifest import Sha256
from edgekit.trust.orderkeys import OrderKeys
from edgekit.wire.enrolment import EnrolmentFile
from edgekit.wire.messages import OrderedBundle

# So long may one look take: with a mirror that sends every document at its slowest it ends without a result.
TIMEOUT_S = 600.0

Heard = Callable[[OrderKeys | None], Awaitable[None]]


async def in_child(question: Question) -> Answer:
    """Raises: FetchError if the child says nothing; OSError if no process can be had."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "device_agent.tuf.child", "--parent", str(os.getpid()),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(TIMEOUT_S):
            said, _ = await process.communicate(msgspec.json.encode(question))
    except TimeoutError as error:
        raise FetchError(f"the metadata were not there after {TIMEOUT_S:.0f} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        return msgspec.json.decode(said, type=Answer)
    except msgspec.DecodeError as error:
        raise FetchError(f"the look at the metadata ended with exit code {process.returncode}") from error


class Lookup:
    """What one enrolment's publishers signed. `heard` is told of the order keys in every answer, `traffic` what it took."""

    def __init__(self, folder: Path, file: EnrolmentFile, clock: Clock, heard: Heard) -> None:
        self._folder = folder
        self._file = file
        self._clock = clock
        self._heard = heard
        self._turn = asyncio.Lock()
        self.traffic = Traffic()

    async def look(self, *paths: str) -> dict[str, Listed]:
        """Bring the metadata up to date; those of `paths` that are targets.

        Raises: FetchError, of which nobody's bundle is the cause; OSError.
        """
        return await self._look(self._clock.trusted(), *paths)

    async def _look(self, now: datetime, *paths: str) -> dict[str, Listed]:
        file = self._file
        async with self._turn:
            question = Question(
                str(self._folder), file.tuf_root, file.metadata_url, file.allowed_hosts, file.ca,
                now=now, known=self._clock.known(), paths=paths,
            )  # fmt: skip
            told = await in_child(question)
        self.traffic.add("models", told.passed)
        if told.trouble:
            raise FetchError(f"the publisher's metadata: {told.trouble}")
        await self._heard(told.order_keys)
        return told.listed

    async def check(self, wanted: OrderedBundle, bases: Iterable[Sha256]) -> dict[Sha256, Listed]:
        """That the publisher signed just this bundle, by what has not expired; the deltas to it that he signed too, by
        their base.

        Raises: FetchError, OSError.
        """
        now = self._clock.for_updates()
        if now is None:
            # By a clock of last year, metadata that somebody held back would be good still.
            raise FetchError(
                "updates wait until the time is known: nothing synchronizes this clock, and no order came since the start"
            )
        paths = {base: delta.path(wanted.target, base, wanted.sha256) for base in bases}
        found = await self._look(now, wanted.target, *paths.values())
        listed = found.get(wanted.target)
        if listed is None:
            raise FetchError(f"{wanted.target} is not among what the publisher signed", Cause.ORDER)
        if (listed.sha256, listed.length) != (wanted.sha256, wanted.length):
            raise FetchError(
                f"the order wants {wanted.target} with {wanted.length} bytes, sha256 {wanted.sha256[:12]}…, the"
                f" publisher signed {listed.length} bytes, sha256 {listed.sha256[:12]}…",
                Cause.ORDER,
            )
        offered = {base: found[path] for base, path in paths.items() if path in found}
        return {base: one for base, one in offered.items() if (one.base, one.method) == (base, delta.METHOD)}
