"""A body on its way in: received straight into a buffer of the length announced, or collected chunk by chunk."""

from device_agent.serve.chunked import ChunkedBody
from device_agent.serve.http import Head

# Room for a chunked body is asked for in pieces of this size.
STEP_BYTES = 64 * 1024


def room_for(head: Head, limit: int) -> int:
    """What a body of at most `limit` bytes asks for before it comes: all of it, or a first piece if nobody knows."""
    return min(STEP_BYTES, limit) if head.length is None else head.length


class Incoming:
    """The body of a request with this head, of at most `limit` bytes."""

    def __init__(self, head: Head, limit: int) -> None:
        self._chunked = ChunkedBody(limit) if head.length is None else None
        self._whole = bytearray(head.length or 0)
        self.received = 0
        self.is_complete = head.length == 0

    @property
    def content(self) -> bytearray:
        return self._whole if self._chunked is None else self._chunked.body

    def free(self) -> memoryview | None:
        """Where the next bytes belong; None for a chunked body, which takes them by `add`."""
        return memoryview(self._whole)[self.received :] if self._chunked is None else None

    def filled(self, count: int) -> None:
        """So many bytes were put into `free`."""
        self.received += count
        self.is_complete = self.received == len(self._whole)

    def room_with(self, more: int) -> int:
        """How much room the body takes with so many bytes more."""
        if self._chunked is None:
            return len(self._whole)
        return -(-(self.received + more) // STEP_BYTES) * STEP_BYTES

    def add(self, data: bytes) -> bytes:
        """Take what belongs to the body; what is left follows it. Raises: HttpError."""
        if self._chunked is None:
            taken = data[: len(self._whole) - self.received]
            self._whole[self.received : self.received + len(taken)] = taken
            self.filled(len(taken))
            return data[len(taken) :]
        self.is_complete = self._chunked.feed(data)
        self.received = len(self._chunked.body)
        return b""
