"""What the controller takes away with time, in small steps: a tick is never long for it, and nothing is left behind.

Always true
 1. A step is a transaction of its own with a bounded number of rows; where there is more, the next tick goes on.
"""

import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection

from fleet.rules.retention import Kept, Retention, checked
from fleet.server import collecting
from fleet.server.clock import Now
from fleet.server.lock import Lock
from fleet.server.store import collecting as collections
from fleet.server.store import commands, retention, telemetry, workers

# How often each is looked at while it finds nothing to do.
_EVERY_S = {
    "parts": 15.0, "devices": 60.0, "report keys": 60.0, "workers": 600.0, "samples": 600.0, "commands": 1.0,
}  # fmt: skip


class Pruning:
    """Used by the controller's thread only."""

    def __init__(self, lock: Lock, wanted: Retention, samples: Path | None = None) -> None:
        """Raises: UsageError."""
        self._lock = lock
        self._kept = checked(wanted)
        self._due: dict[str, float] = {}
        self._steps: dict[str, Callable[[Connection, Kept, Now], bool]] = {
            "parts": lambda connection, kept, now: retention.roll(connection, kept, now.wall),
            "devices": lambda connection, kept, now: retention.thin(connection, kept, now.wall),
            "report keys": lambda connection, kept, now: telemetry.prune(
                connection, now.steady, kept.report_keys_s
            ),
            "workers": lambda connection, _, now: workers.prune(connection, now.steady),
            "commands": lambda connection, _, now: commands.expire(connection, now.wall),
        }
        if samples is not None:
            self._steps["samples"] = lambda connection, kept, now: _samples(connection, samples, kept, now)

    def step(self, now: Now) -> None:
        """Raises: LostError, SQLAlchemyError."""
        ticks = time.monotonic()
        for name, work in self._steps.items():
            if self._due.get(name, 0.0) > ticks:
                continue
            with self._lock.begin() as connection:
                has_more = work(connection, self._kept, now)
            self._due[name] = 0.0 if has_more else ticks + _EVERY_S[name]


def _samples(connection: Connection, folder: Path, kept: Kept, now: Now) -> bool:
    has_more = collections.prune(connection, now.wall - kept.samples_s)
    # What this transaction forgets goes with the next sweep, when that is certain.
    collecting.sweep(connection, folder)
    return has_more
