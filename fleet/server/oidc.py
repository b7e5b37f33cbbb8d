"""The OpenID provider, over the network: where to send a browser, and what the code that comes back is worth.

OpenID Connect Core 1.0, authorization code flow with PKCE (RFC 7636); what a client must check is in 3.1.3.7. Authlib
speaks OAuth and judges claims, joserfc signatures.

Always true
 1. Only signatures by the provider's published asymmetric keys count: neither `none` nor an algorithm with a shared
    secret is ever looked at, whatever the provider's own description or the token says.
 2. The client's secret goes to the provider's token endpoint and nowhere else: no message here repeats what was sent.
 3. A provider that is slow, gone or talks nonsense costs its own sign-ins only: few requests at a time, all bounded in
    time and size, and after a failure none for a moment.
"""

import logging
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote_plus

import httpx2
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.httpx_client import OAuth2Client
from authlib.oauth2.auth import encode_client_secret_basic
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import (
    ExpiredTokenError,
    InvalidClaimError,
    InvalidKeyIdError,
    JoseError,
    MissingClaimError,
)
from joserfc.jwk import Key, KeySet, import_key
from joserfc.jws import JWSRegistry

from edgekit.errors import AuthError, UsageError
from fleet.rules import people
from fleet.rules.people import Claims, Oidc
from fleet.server.signin import ProviderError, Started

log = logging.getLogger(__name__)

SIGNATURES = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519",
)  # fmt: skip
_KINDS = ("RSA", "EC", "OKP")
# What clocks may differ by.
_LEEWAY_S = 60
# For each step of a request, and for a whole answer.
_TIMEOUT_S, _WHOLE_S = 5.0, 10.0
_MAX_ANSWER_BYTES = 1 << 20
_DESCRIPTION_FOR_S = 3600.0
_REST_AFTER_FAILURE_S = 5.0
_AT_ONCE = 4
_CODE = re.compile(r"^[a-z_]{1,40}$")


class Provider:
    """One provider, as `[oidc]` names it."""

    def __init__(
        self, oidc: Oidc, secret: str, redirect_uri: str, clock: Callable[[], float] = time.time
    ) -> None:
        """Raises: UsageError if the provider's authority cannot be read."""
        self.oidc = oidc
        self._secret = secret
        self._redirect_uri = redirect_uri
        self._clock = clock
        try:
            self._verify: ssl.SSLContext | bool = (
                ssl.create_default_context(cafile=oidc.ca) if oidc.ca else True
            )
        except OSError as error:
            raise UsageError(f"[oidc] ca = {oidc.ca!r}: no PEM certificates can be read ({error})") from error
        self._turn = threading.BoundedSemaphore(_AT_ONCE)
        self._description: tuple[float, Mapping[str, Any]] | None = None
        self._keys: KeySet | None = None
        self._failed: tuple[float, str] | None = None

    def address(self, state: str, started: Started) -> str:
        """Where the browser goes to sign in. Raises: ProviderError."""
        with self._talking() as client:
            description = self._described(client)
            url, _ = client.create_authorization_url(
                description["authorization_endpoint"],
                state=state,
                code_verifier=started.verifier,
                nonce=started.nonce,
            )
        return str(url)

    def claims(self, code: str, started: Started, issuer: str) -> Claims:
        """What the provider vouches for. `issuer` is who says to have sent the code (RFC 9207), empty if nobody does.

        Raises: AuthError if it proves nothing; ProviderError.
        """
        with self._talking() as client:
            description = self._described(client)
            must_say = description.get("authorization_response_iss_parameter_supported") is True
            if issuer != self.oidc.issuer and (issuer or must_say):
                raise AuthError("this answer is not from the provider that was asked; nothing was done")
            token = client.fetch_token(
                description["token_endpoint"],
                grant_type="authorization_code",
                code=code,
                code_verifier=started.verifier,
            )
            claims = self._proven(client, token, started.nonce)
            if not people.groups(claims, self.oidc.groups_claim):
                claims = self._completed(client, claims)
        return claims

    def _proven(self, client: Any, token: Mapping[str, Any], nonce: str) -> Claims:
        """The claims of the ID token, once all of OpenID Connect Core 3.1.3.7 holds for it."""
        text = token.get("id_token")
        if not isinstance(text, str):
            raise ProviderError(self.oidc.issuer, "it sent no ID token")
        supported = self._described(client).get("id_token_signing_alg_values_supported")
        allowed = [one for one in SIGNATURES if isinstance(supported, list) and one in supported] or ["RS256"]
        try:
            try:
                decoded = _decoded(text, self._key_set(client), allowed)
            except InvalidKeyIdError:
                # Keys rotate: perhaps this one is newer than what is known here.
                decoded = _decoded(text, self._key_set(client, is_anew=True), allowed)
            claims = CodeIDToken(
                decoded.claims,
                decoded.header,
                {
                    "iss": {"essential": True, "value": self.oidc.issuer},
                    "aud": {"essential": True, "value": self.oidc.client_id},
                },
                {
                    "nonce": nonce,
                    "client_id": self.oidc.client_id,
                    "access_token": token.get("access_token"),
                },
            )
            claims.validate(now=int(self._clock()), leeway=_LEEWAY_S)
            if not 0 < len(claims["sub"]) <= 255:
                raise InvalidClaimError("sub")
        except TypeError as error:
            # The libraries take some parts for what they should be: `crit` for a list, `at_hash` for a text.
            raise self._refused("form") from error
        return dict(claims)

    def _completed(self, client: Any, claims: Claims) -> Claims:
        """With what only the user-info endpoint tells, such as groups at some providers (Core 5.3.2)."""
        endpoint = self._described(client).get("userinfo_endpoint")
        if not people.is_safe_url(endpoint, self.oidc.issuer):
            return claims
        more = _json(client.get(endpoint))
        if more.get("sub") != claims["sub"]:
            raise InvalidClaimError("sub")
        return {**more, **claims}

    def _described(self, client: Any) -> Mapping[str, Any]:
        """OpenID Connect Discovery 1.0, section 4."""
        now = self._clock()
        if self._description is not None and 0 <= now - self._description[0] < _DESCRIPTION_FOR_S:
            return self._description[1]
        url = f"{self.oidc.issuer.rstrip('/')}/.well-known/openid-configuration"
        found = _json(client.request("GET", url, withhold_token=True))
        said = found.get("issuer")
        if said != self.oidc.issuer:
            raise ProviderError(
                self.oidc.issuer, f"it calls itself {str(said)[:200]!r}; 'issuer' must say just that"
            )
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            if not people.is_safe_url(found.get(name), self.oidc.issuer):
                raise ProviderError(self.oidc.issuer, f"its {name} is no https address")
        self._description = (now, found)
        return found

    def _key_set(self, client: Any, *, is_anew: bool = False) -> KeySet:
        if self._keys is None or is_anew:
            found = _json(client.request("GET", self._described(client)["jwks_uri"], withhold_token=True))
            listed = found.get("keys")
            keys = [key for one in (listed if isinstance(listed, list) else ()) if (key := _key(one))]
            self._keys = KeySet(keys)
        return self._keys

    @contextmanager
    def _talking(self) -> Iterator[Any]:
        """A client; whatever goes wrong with it comes out as one of two errors, and never says more than it must."""
        if self._failed is not None and 0 <= self._clock() - self._failed[0] < _REST_AFTER_FAILURE_S:
            raise ProviderError(self.oidc.issuer, self._failed[1])
        if not self._turn.acquire(timeout=1.0):
            raise ProviderError(self.oidc.issuer, "too many sign-ins wait for it")
        try:
            with self._client() as client:
                yield client
        except (ExpiredTokenError, MissingClaimError, InvalidClaimError) as error:
            raise self._refused(f"claim {error.claim!r}") from error
        except JoseError as error:
            raise self._refused("signature") from error
        except AuthlibBaseError as error:
            raise self._refused(_word(error.error)) from error
        except httpx2.HTTPStatusError as error:
            raise self._unusable(f"it answered {error.response.status_code}") from error
        except httpx2.TransportError as error:
            raise self._unusable(f"it cannot be reached ({type(error).__name__})") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            raise self._unusable(f"its answer makes no sense ({type(error).__name__})") from error
        except ProviderError as error:
            raise self._unusable(error.why) from error
        finally:
            self._turn.release()

    def _refused(self, what: str) -> AuthError:
        log.warning("what %s sent for a sign-in was refused: %s", self.oidc.issuer, what)
        return AuthError(
            f"what {self.oidc.issuer} sent does not prove who you are ({what}); nothing was done, please try again"
        )

    def _unusable(self, why: str) -> ProviderError:
        error = ProviderError(self.oidc.issuer, why)
        self._failed = (self._clock(), why)
        log.warning("%s", error)
        return error

    def _client(self) -> Any:
        supported = (self._description[1] if self._description else {}).get(
            "token_endpoint_auth_methods_supported"
        )
        is_post = isinstance(supported, list) and "client_secret_basic" not in supported
        client = OAuth2Client(
            self.oidc.client_id,
            self._secret,
            token_endpoint_auth_method="client_secret_post" if is_post else "client_secret_basic",
            scope=" ".join(self.oidc.scopes),
            redirect_uri=self._redirect_uri,
            code_challenge_method="S256",
            verify=self._verify,
            timeout=_TIMEOUT_S,
            follow_redirects=False,
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
            event_hooks={"response": [_bound]},
        )
        client.register_client_auth_method(("client_secret_basic", _basic))
        return client


class _NonsenseError(ValueError):
    """An answer that is none."""


class _Bounded(httpx2.SyncByteStream):
    """An answer that ends in an error where it is too large or takes too long."""

    def __init__(self, stream: httpx2.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        left, ends_at = _MAX_ANSWER_BYTES, time.monotonic() + _WHOLE_S
        for chunk in self._stream:
            left -= len(chunk)
            if left < 0 or time.monotonic() > ends_at:
                raise ValueError("the answer is too large, or takes too long")
            yield chunk

    def close(self) -> None:
        self._stream.close()


def _bound(response: httpx2.Response) -> None:
    if "content-encoding" in response.headers:
        raise ValueError("the answer is compressed, which was not asked for")
    assert isinstance(response.stream, httpx2.SyncByteStream)
    response.stream = _Bounded(response.stream)


def _json(response: httpx2.Response) -> dict[str, Any]:
    """Raises: httpx2.HTTPStatusError; ValueError for what is no JSON object."""
    response.raise_for_status()
    found = response.json()
    if not isinstance(found, dict):
        raise _NonsenseError("not a JSON object")
    return found


def _decoded(text: str, keys: KeySet, allowed: list[str]) -> jwt.Token:
    """Raises: JoseError."""
    # An empty list of algorithms would mean the library's own, one with a shared secret among them.
    assert allowed
    return jwt.decode(text, keys, registry=JWSRegistry(algorithms=allowed, strict_check_header=False))


def _key(published: Any) -> Key | None:
    """A public key for signatures; None for any other, such as the one that a shared secret would be."""
    if not isinstance(published, dict) or published.get("kty") not in _KINDS:
        return None
    if published.get("use", "sig") != "sig":
        return None
    try:
        return import_key(published)
    except (JoseError, ValueError, TypeError):
        return None


def _basic(client: Any, method: str, uri: str, headers: Any, body: Any) -> Any:
    """RFC 6749, 2.3.1: id and secret are form-encoded first, which Authlib 1.9 leaves out."""
    quoted = _Quoted(quote_plus(client.client_id), quote_plus(client.client_secret))
    return encode_client_secret_basic(quoted, method, uri, headers, body)


@dataclass(frozen=True)
class _Quoted:
    client_id: str
    client_secret: str = field(repr=False)


def _word(error: Any) -> str:
    """The code of an OAuth error (RFC 6749, 5.2), or nothing of what else stands there."""
    return error if isinstance(error, str) and _CODE.match(error) else "refused"
