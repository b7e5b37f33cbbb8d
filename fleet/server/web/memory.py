"""Counts that took the database long, kept for a little: many people look at one fleet.

Always true
 1. What is told by a version is as good as the database's: a new version is counted anew.
 2. What has no version is kept ten times as long as counting it took, so a small fleet's is always fresh.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from fleet.server.database import Database

T = TypeVar("T")
_MOST = 256
_TIMES = 10.0


class _Kept(NamedTuple):
    version: Hashable
    value: Any
    until: float


class Memory:
    """Of one database; used by all threads."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()

    def counted(self, key: Hashable, count: Callable[[], T], *, version: Hashable = None) -> T:
        """What `count` gives, or gave a moment ago; with a version, what it gave for that version."""
        with self._lock:
            found = self._kept.get(key)
        now = self._monotonic()
        if found is not None and (found.version == version if version is not None else now < found.until):
            value: T = found.value
            return value
        value = count()
        took = self._monotonic() - now
        with self._lock:
            self._kept[key] = _Kept(version, value, now + _TIMES * took)
            self._kept.move_to_end(key)
            while len(self._kept) > _MOST:
                self._kept.popitem(last=False)
        return value


_MEMORIES: "WeakKeyDictionary[Database, Memory]" = WeakKeyDictionary()


def of(database: Database) -> Memory:
    return _MEMORIES.setdefault(database, Memory())


def forget(database: Database) -> None:
    """Everything is counted anew."""
    _MEMORIES.pop(database, None)
