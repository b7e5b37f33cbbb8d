"""What every endpoint needs, and how bodies and credentials are read.

Always true
 1. A body is bounded before it is read, and validated by msgspec before anything looks into it.
 2. Secrets arrive in the Authorization header or a cookie, never in an address.
"""

import time as wall
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import Depends, Request, Response

from edgekit.errors import AuthError, UsageError
from fleet.rules.attempts import Limits
from fleet.server.certificates import Certificates
from fleet.server.clock import Clock
from fleet.server.database import Database
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
    """The body, at most `limit` bytes. Raises: TooLargeError."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise TooLargeError(f"the request is larger than {limit} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def body_or(default: T) -> Callable[[Request], Awaitable[T]]:
    """The same for a body that may be left out."""
    read_given = body(type(default))

    async def read(request: Request) -> T:
        return default if request.headers.get("content-length", "0") == "0" else await read_given(request)

    return read


def body(kind: type[T]) -> Callable[[Request], Awaitable[T]]:
    """A dependency that reads and validates a JSON body. Raises: UsageError naming the field."""

    async def read(request: Request) -> T:
        data = await read_body(request)
        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.DecodeError as error:
            raise UsageError(f"{kind.__name__}: {error}") from error

    return read


def answer(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
