"""Asking the deployment: the same HTTP as every client's, so that admission, counting, drift and what guards a model hold.

Connections come from the supervisor as descriptors (`Dial`), so that a source needs no address and no port.

Always true
 1. Whatever is answered is one of three: an answer, a refusal of this very input (`Refused`), or that no answer is to be
    had now (`UnavailableError`), which says nothing of the input.
 2. An input whose request was cut off or timed out `MAX_LOST` times is refused: it may be what ends the worker.
"""

import http.client
import json
import socket
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from edgekit.errors import FeedError

# The engine has 60 s, and a turn at it comes within 30.
TIMEOUT_S = 120.0
MAX_LOST = 3
# Status codes that judge the input, and by what word.
_REFUSES = {400: "input", 413: "too-large", 415: "media-type", 422: "input", 500: "engine"}


class Refused(NamedTuple):
    """The model's side will not answer this input: a stable word, and why."""

    code: str
    reason: str


class UnavailableError(FeedError):
    """No answer now; the input may be asked again. `is_lost`: a request was begun, and its answer did not come."""

    code = "unavailable"

    def __init__(self, message: str, *, is_lost: bool = False) -> None:
        super().__init__(message)
        self.is_lost = is_lost


class _Connection(http.client.HTTPConnection):
    """Over a socket that somebody else connected."""

    def __init__(self, dial: Callable[[], socket.socket]) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._dial = dial

    def connect(self) -> None:
        self.sock = self._dial()
        self.sock.settimeout(TIMEOUT_S)


class Asker:
    """One connection, made anew when it ended. `dial` raises OSError. Used by one thread."""

    def __init__(self, dial: Callable[[], socket.socket], deployment: str) -> None:
        self._connection = _Connection(dial)
        self._path = f"/predict/{deployment}" if deployment else "/predict"

    def ask(self, body: bytes, content_type: str) -> msgspec.Raw | Refused:
        """One try. Raises: UnavailableError."""
        status, answer = self._exchange(body, content_type)
        if status == 200:
            return msgspec.Raw(msgspec.json.format(answer, indent=-1))
        told = _error(answer)
        if status in _REFUSES:
            return Refused(told.code or _REFUSES[status], told.reason or f"answered with {status}")
        # 504: the engine hung, perhaps over this input.
        raise UnavailableError(told.reason or f"answered with {status}", is_lost=status == 504)

    def close(self) -> None:
        self._connection.close()

    def _exchange(self, body: bytes, content_type: str) -> tuple[int, bytes]:
        """Raises: UnavailableError."""
        was_open = self._connection.sock is not None
        try:
            return self._once(body, content_type)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if not was_open:
                raise UnavailableError(f"the request was lost ({_cause(error)})", is_lost=True) from error
        # A connection that was kept may have been closed by the other side meanwhile.
        try:
            return self._once(body, content_type)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise UnavailableError(f"the request was lost ({_cause(error)})", is_lost=True) from error

    def _once(self, body: bytes, content_type: str) -> tuple[int, bytes]:
        if self._connection.sock is None:
            try:
                self._connection.connect()
            except OSError as error:
                raise UnavailableError(f"the agent gives no connection ({_cause(error)})") from error
        self._connection.request("POST", self._path, body, {"Content-Type": content_type})
        response = self._connection.getresponse()
        return response.status, response.read()


def _error(answer: bytes) -> Refused:
    """What an error's body says; empty where it says nothing."""
    try:
        said = json.loads(answer)
        return Refused(str(said.get("code", "")), str(said.get("error", "")))
    except (ValueError, AttributeError):
        return Refused("", "")


def _cause(error: Exception) -> str:
    return str(error) or type(error).__name__
