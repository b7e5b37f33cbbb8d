"""What waits to be claimed once, by a secret that only the right one has: sign-ins on their way, codes for a terminal.

Always true
 1. A secret opens once, and only within its life; whatever is asked for again is not there.
 2. Memory is bounded: when it is full, the oldest goes.
 3. Nothing outlives the process, which is the one that the answer comes back to.
"""

import hashlib
import threading
from typing import Generic, TypeVar

from fleet.server.store.settings import new_secret

T = TypeVar("T")
CAPACITY = 10_000


class Once(Generic[T]):
    def __init__(self, life_s: float, capacity: int = CAPACITY) -> None:
        self._life_s = life_s
        self._capacity = capacity
        # In the order in which they end. By the hash: how long a look-up takes says nothing about a secret.
        self._waiting: dict[bytes, tuple[float, T]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, thing: T, now: float) -> str:
        """The secret that it is claimed with."""
        secret = new_secret()
        with self._lock:
            while self._waiting:
                oldest = next(iter(self._waiting))
                if self._waiting[oldest][0] > now and len(self._waiting) < self._capacity:
                    break
                del self._waiting[oldest]
            self._waiting[_key(secret)] = (now + self._life_s, thing)
        return secret

    def take(self, secret: str, now: float) -> T | None:
        with self._lock:
            ends_at, thing = self._waiting.pop(_key(secret), (0.0, None))
        return thing if now < ends_at else None


def _key(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()
