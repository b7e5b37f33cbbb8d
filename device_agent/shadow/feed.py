"""The worker's end: which served inputs are copied to a shadow. In the engine's thread; it never waits.

Always true
 1. Nothing is copied that the shadow has not asked for, so a shadow that is behind costs a served call one look at a socket.
 2. What is served without a copy is counted, and the shadow told of it with the next.
"""

import socket
import time
from collections.abc import Callable, Mapping

from device_agent.shadow import copies
from device_agent.shadow.pace import Patience
from edgekit.tensors import Array


class Feed:
    """`sock` is taken over. After `is_open` is False it does nothing."""

    def __init__(
        self, sock: socket.socket, share: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._patience = Patience(share)
        self._clock = clock
        self._is_wanted = False
        self._skipped = 0
        self.is_open = True

    def is_busy(self) -> bool:
        """Whether the shadow works on a copy now, as far as it has told."""
        if self.is_open and not self._is_wanted:
            try:
                said = self._sock.recv(16)
            except BlockingIOError:
                return True
            except OSError:
                said = b""
            if not said:
                self.close()
                return False
            self._is_wanted = True
        return False

    def took(self, took_ms: float, *, beside: bool) -> bool:
        """A served call; whether its copy is wanted."""
        now = self._clock()
        self._patience.note(took_ms, now, beside=beside)
        if self.is_open and self._is_wanted and not self._patience.is_over(now):
            self._is_wanted = False
            return True
        self._skipped += 1
        return False

    def give(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], *, is_raw: bool, took_ms: float
    ) -> None:
        """The copy."""
        pieces = copies.packed(inputs, outputs, is_raw=is_raw, took_ms=took_ms, skipped=self._skipped)
        try:
            if self.is_open and pieces and copies.send(self._sock, pieces):
                self._skipped = 0
                return
        except OSError:
            self.close()
        self._skipped += 1

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._sock.close()
