"""What every endpoint needs, and how bodies and credentials are read.

Always true
 1. A body is bounded before it is read, and validated by msgspec before anything looks into it.
 2. Secrets arrive in the Authorization header or a cookie, never in an address.
"""

import time as wall
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from fastapi import Depends, Request, Response

from edgekit.errors import AuthError, UsageError
from fleet.rules.attempts import Limits
from fleet.server.certificates import Certificates
from fleet.server.clock import Clock
from fleet.server.database import Database
from fleet.server.events import Hub
from fleet.server.link import Link
from fleet.server.metrics import Metrics
from fleet.server.notary import Notary
from fleet.server.places import Places
from fleet.server.sealing import TARGETS, Seal
from fleet.server.signin import SignIns
from fleet.server.state import Keys, StateFolder
from fleet.server.store.enrolments import Registrar
from fleet.server.store.orders import Issuer
from fleet.tuf.online import Online

MAX_BODY_BYTES = 8 << 20
T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """The running service, as endpoints see it."""

    database: Database
    folder: StateFolder
    keys: Keys
    issuer: Issuer
    link: Link
    places: Places
    certificates: Certificates
    ca_bundle: str
    wake: Callable[[], None]
    tuf: Online
    notary: Notary
    metrics: Metrics
    dropped: Counter[str] = field(default_factory=Counter)
    limits: Limits = field(default_factory=Limits)
    sign_ins: SignIns = field(default_factory=SignIns)
    # The wall clock, for what people and signatures are told; `time` has steady time as well.
    clock: Callable[[], float] = wall.time
    time: Clock = field(default_factory=Clock)
    is_controller: Callable[[], bool] = lambda: True

    @cached_property
    def hub(self) -> Hub:
        """All who watch what changes."""
        return Hub(self.database)

    @property
    def seal(self) -> Seal:
        """Keeps the secrets of alert targets."""
        return Seal(self.keys, TARGETS)

    @property
    def registrar(self) -> Registrar:
        """Who gives identities to devices."""

        def credential(device: str, enrolment: int) -> str:
            return self.keys.derive("device credential", self.issuer.fleet, device, str(enrolment))

        return Registrar(self.certificates.authority, self.issuer.fleet, credential)


class TooLargeError(UsageError):
    code = "too-large"
    http_status = 413


class UnauthenticatedError(AuthError):
    http_status = 401


def context(request: Request) -> Context:
    found: Context = request.app.state.context
    return found


Ctx = Annotated[Context, Depends(context)]


def bearer(request: Request) -> str:
    """The bearer secret of a request. Raises: UnauthenticatedError."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret:
        raise UnauthenticatedError("this needs a token: send 'Authorization: Bearer …'")
    return secret.strip()


async def read_body(request: Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """The body, at most `limit` bytes; it may be read more than once. Raises: TooLargeError."""
    known: bytes | None = getattr(request.state, "body", None)
    if known is not None:
        return known
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise TooLargeError(f"the request is larger than {limit} bytes")
        chunks.append(chunk)
    request.state.body = b"".join(chunks)
    return b"".join(chunks)


class Body(Generic[T]):
    """A dependency that reads and validates a JSON body, and says of what kind it is (`describe` asks).

    With a `default` the body may be left out. Calling it raises: UsageError naming the field; TooLargeError.
    """

    def __init__(self, kind: type[T], default: T | None = None) -> None:
        self.kind = kind
        self.default = default

    async def __call__(self, request: Request) -> T:
        data = await read_body(request)
        if not data and self.default is not None:
            return self.default
        try:
            return msgspec.json.decode(data, type=self.kind)
        except msgspec.ValidationError as error:
            return self._again(data, error)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError(f"{self.kind.__name__}: {error}") from error

    def _again(self, data: bytes, why: msgspec.ValidationError) -> T:
        """JSON has one kind of number: `5.0` is the integer 5 too, whatever wrote it."""
        try:
            return msgspec.convert(_integral(msgspec.json.decode(data)), self.kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # It need not be JSON at all: what was wrong first is told.
            raise UsageError(f"{self.kind.__name__}: {why}") from why


def _integral(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _integral(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_integral(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def body(kind: type[T]) -> Body[T]:
    return Body(kind)


def body_or(default: T) -> Body[T]:
    return Body(type(default), default)


class Answer(Response, Generic[T]):
    """A JSON answer of one kind. An endpoint's annotation names it, mypy holds it to that, and `describe` tells it."""

    media_type = "application/json"

    def __init__(self, value: T, status: int = 200) -> None:
        super().__init__(msgspec.json.encode(value), status)


def answer(value: T, status: int = 200) -> Answer[T]:
    return Answer(value, status)
