"""The one writer of everything that must survive a power cut.

Work runs in one thread, in the order in which it was given, so that the event loop never waits for a disk.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Storage:
    """`condition` is "" while writes succeed."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._lock = asyncio.Lock()
        self.changed = changed
        self.condition = ""

    async def do(self, work: Callable[[], T]) -> T:
        """The result of `work`. Raises: what `work` raises."""
        async with self._lock:
            return await asyncio.to_thread(work)
