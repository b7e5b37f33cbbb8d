"""What a camera or a microphone gives while the model is busy: the newest few, the oldest go, counted."""

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Newest(Generic[T]):
    """At most `size` of what was put; `end` says that nothing more comes, perhaps with the reason."""

    def __init__(self, size: int) -> None:
        self._held: deque[T] = deque()
        self._size = size
        self._changed = threading.Condition()
        self._is_over = False
        self._failure: BaseException | None = None

    def put(self, one: T) -> int:
        """How many older ones went."""
        with self._changed:
            self._held.append(one)
            gone = max(0, len(self._held) - self._size)
            for _ in range(gone):
                self._held.popleft()
            self._changed.notify()
            return gone

    def end(self, failure: BaseException | None = None) -> None:
        with self._changed:
            self._is_over, self._failure = True, failure
            self._changed.notify()

    def take(self, patience_s: float) -> T | None:
        """The oldest of those held, or None if none came in time.

        Raises: EOFError when there is nothing more, or what `end` was given.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._held or self._is_over, patience_s)
            if self._held:
                return self._held.popleft()
            if self._failure is not None:
                raise self._failure
            if self._is_over:
                raise EOFError
            return None
