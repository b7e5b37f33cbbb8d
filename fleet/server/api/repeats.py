"""`Idempotency-Key`: a POST that is sent again, because nobody knows whether it arrived, is done once
(draft-ietf-httpapi-idempotency-key-header).

Always true
 1. The same caller's same request with the same key gets the first one's answer; any other request with it is refused.
 2. Only what succeeded is kept: after a refusal nothing was done, and the same key may try again.
 3. An answer may hold a secret, so it is kept sealed with the caller's own secret, of which the fleet has only a hash;
    who is admitted is asked anew before an answer is given again.
 4. Where the service died in the middle nobody knows what was done: the key stays taken until its time is over.
"""

import hashlib
import hmac
import os
import re
from dataclasses import dataclass

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool

from edgekit.errors import ConflictError, KeyReusedError, UsageError
from fleet.server.api.admission import session_of
from fleet.server.api.context import Context, Ctx, bearer, read_body
from fleet.server.store import repeats
from fleet.server.store.repeats import LIFE_S

HEADER, REPLAYED = "Idempotency-Key", "Idempotency-Replayed"
# A string of RFC 8941, or the same without its quotes.
_CHARACTERS = r"[!#-+\--:<-\[\]-~]"
PATTERN = rf'^(?:{_CHARACTERS}{{1,200}}|"{_CHARACTERS}{{1,200}}")$'
_KEY = re.compile(PATTERN)
_NONCE_BYTES = 12
_KEPT_HEADERS = ("content-type", "cache-control")


class _Kept(msgspec.Struct, frozen=True):
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class _Under:
    """A request with a key, while it is answered."""

    context: Context
    name: str
    seal: bytes


class ReplayedError(Exception):
    """Not an error: the request was answered before, and this is how."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response


async def once(request: Request, ctx: Ctx) -> None:
    """A dependency of the whole application, after `admit`; routes that are open have no caller whose key it could be.

    Raises: ReplayedError; UsageError, ConflictError, KeyReusedError, TooLargeError.
    """
    given = request.headers.get(HEADER)
    if given is None or request.method != "POST" or not hasattr(request.state, "principal"):
        return
    if not _KEY.match(given):
        raise UsageError(f"{HEADER}: 1 to 200 visible ASCII characters, in quotes, best a random UUID")
    key = given.strip('"').encode()
    secret = (bearer(request) if "authorization" in request.headers else session_of(request, ctx)).encode()
    parts = (request.method, str(request.url.path), request.url.query, await read_body(request))
    asked = hashlib.sha256(msgspec.json.encode(parts)).hexdigest()
    under = _Under(
        ctx,
        hmac.digest(secret, b"edgekit idempotency name\0" + key, "sha256").hex(),
        hmac.digest(secret, b"edgekit idempotency seal\0" + key, "sha256"),
    )
    await run_in_threadpool(_begin, under, asked)
    request.state.under = under


def _begin(under: _Under, asked: str) -> None:
    with under.context.database.begin() as connection:
        found = repeats.begin(connection, under.name, asked, under.context.clock())
    if found is None:
        return
    if found.request != asked:
        raise KeyReusedError(f"this {HEADER} was another request's; make a new key for each")
    if found.sealed is None:
        raise ConflictError(
            f"a request with this {HEADER} is being answered, or the service ended in the middle of it; look whether it "
            f"was done before you send it with another key (this one is free again after {LIFE_S / 3600:.0f} h)"
        )
    nonce, sealed = found.sealed[:_NONCE_BYTES], found.sealed[_NONCE_BYTES:]
    kept = msgspec.msgpack.decode(AESGCM(under.seal).decrypt(nonce, sealed, None), type=_Kept)
    raise ReplayedError(Response(kept.body, kept.status, {**kept.headers, REPLAYED: "true"}))


async def done(request: Request, response: Response) -> None:
    """The request was answered so: what succeeded is kept."""
    under: _Under | None = getattr(request.state, "under", None)
    if under is None:
        return
    if not 200 <= response.status_code < 300:
        await failed(request)
        return
    headers = {name: value for name in _KEPT_HEADERS if (value := response.headers.get(name))}
    kept = msgspec.msgpack.encode(_Kept(response.status_code, headers, bytes(response.body)))
    nonce = os.urandom(_NONCE_BYTES)
    sealed = nonce + AESGCM(under.seal).encrypt(nonce, kept, None)
    await run_in_threadpool(_keep, under, sealed)


async def failed(request: Request) -> None:
    """Nothing was done: the key is free again."""
    under: _Under | None = getattr(request.state, "under", None)
    if under is not None:
        await run_in_threadpool(_forget, under)


def _keep(under: _Under, sealed: bytes) -> None:
    with under.context.database.begin() as connection:
        repeats.keep(connection, under.name, sealed)


def _forget(under: _Under) -> None:
    with under.context.database.begin() as connection:
        repeats.forget(connection, under.name)
