"""Chunked bodies, read with bounds on everything that is not body.

Always true
 1. What is held is the body, at most `limit` bytes, and at most `MAX_OVERHEAD` bytes of chunk lines or trailers.
 2. Trailers are read and dropped. What follows the body is never taken for a part of it.

Source: RFC 9112, 7.1 (chunked transfer coding). The grammar is llhttp's, through httptools, which joins the pieces of an
unfinished trailer without telling anybody; so bytes that bring nothing new are counted here.
"""

import httptools

from device_agent.serve.http import HttpError

# Chunk extensions and trailers together, without any body in between.
MAX_OVERHEAD = 8 * 1024
_SLICE = 4 * 1024
# A parser starts with a head; this one stands for the request's own, which was read before.
_HEAD = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"


class ChunkedBody:
    """Collects a chunked body of up to `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._idle = 0
        self._moved = False
        self._is_complete = False
        self.body = bytearray()
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(_HEAD)

    def on_body(self, data: bytes) -> None:
        if not self._is_complete:
            self._moved = True
            self.body += data

    def on_message_complete(self) -> None:
        self._is_complete = True

    def feed(self, data: bytes) -> bool:
        """Whether the body is complete. Raises: HttpError."""
        for start in range(0, len(data), _SLICE):
            piece = data[start : start + _SLICE]
            self._moved = False
            try:
                self._parser.feed_data(piece)
            except httptools.HttpParserError as error:
                if not self._is_complete:
                    raise HttpError(400, f"chunked body: {error}") from error
            if len(self.body) > self._limit:
                raise HttpError(413, f"the body is larger than {self._limit} bytes, the most taken here")
            if self._is_complete:
                return True
            self._idle = 0 if self._moved else self._idle + len(piece)
            if self._idle > MAX_OVERHEAD:
                raise HttpError(431, f"chunk extensions or trailers of more than {MAX_OVERHEAD} bytes")
        return False
