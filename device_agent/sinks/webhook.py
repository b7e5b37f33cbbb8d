"""A webhook as a sink: each answer is a POST, signed where there is a secret (Standard Webhooks, standardwebhooks.com).

Always true
 1. An answer counts as taken when it was answered with 2xx; with a status that judges this very body it never will be, and
    goes, counted. Everything else is tried again.
 2. A redirect is not followed: what was to go to one place goes to no other. No proxy is used.
"""

import base64
import binascii
import hashlib
import hmac
import http.client
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from device_agent import log
from device_agent.agentfile import WebhookSink
from device_agent.sinks.delivery import Taken
from device_agent.sources.access import host_and_port
from device_agent.sources.outbox import Owed
from edgekit import __version__
from edgekit.errors import FeedError

_SHORTEST_SECRET = 16
_PREFIX = "whsec_"
# What says of this body that it will never be taken (RFC 9110, 15.5).
_NEVER = (400, 406, 410, 411, 413, 414, 415, 422)


class Webhook:
    def __init__(self, spec: WebhookSink) -> None:
        self._spec = spec
        self._host, self._port = host_and_port(spec.url)
        parts = urlsplit(spec.url)
        self._is_tls = parts.scheme == "https"
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._connection: http.client.HTTPConnection | None = None

    def deliver(self, answers: Sequence[Owed]) -> Taken:
        """See `delivery.Sink`. One after the other: what went well before a failure is told."""
        has: list[int] = []
        refused: list[int] = []
        for answer in answers:
            try:
                status = self._post(answer)
            except (OSError, http.client.HTTPException, FeedError) as error:
                self.close()
                if has or refused:
                    break
                raise FeedError(f"{self._spec.url}: {error or type(error).__name__}") from error
            if 200 <= status < 300:
                has.append(answer.number)
            else:
                log.trouble(
                    "a webhook refuses an answer for good", sink=self._spec.name, status=status, id=answer.uid
                )
                refused.append(answer.number)
        return Taken(tuple(has), tuple(refused))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _post(self, answer: Owed) -> int:
        """The status, if it settles the matter. Raises: FeedError, OSError or http.client.HTTPException otherwise."""
        if self._connection is None:
            self._connection = self._connect()
        self._connection.request("POST", self._path, answer.body, self._headers(answer))
        response = self._connection.getresponse()
        response.read(64 << 10)
        if response.length or response.will_close:
            self.close()
        if 300 <= response.status < 400:
            raise FeedError(
                f"answered with {response.status}; redirects are not followed, give the final address"
            )
        if not 200 <= response.status < 300 and response.status not in _NEVER:
            raise FeedError(f"answered with {response.status}")
        return response.status

    def _connect(self) -> http.client.HTTPConnection:
        if not self._is_tls:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._spec.timeout_s)
        context = ssl.create_default_context(cafile=self._spec.ca_file or None)
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=self._spec.timeout_s, context=context
        )

    def _headers(self, answer: Owed) -> dict[str, str]:
        at = int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"edgekit-agent/{__version__}",
            "webhook-id": answer.uid,
            "webhook-timestamp": str(at),
        }
        if self._spec.secret_file:
            headers["webhook-signature"] = signature(
                _key(self._spec.secret_file), answer.uid, at, answer.body
            )
        return headers


def signature(key: bytes, uid: str, at: int, body: bytes) -> str:
    """What `webhook-signature` holds: HMAC-SHA256 over id, time and body, in base64."""
    signed = f"{uid}.{at}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def _key(path: str) -> bytes:
    """Read anew each time, so that it can be changed. Raises: FeedError, OSError."""
    secret = Path(path).read_text(encoding="utf-8").strip()
    if len(secret) < _SHORTEST_SECRET:
        raise FeedError(f"{path}: at least {_SHORTEST_SECRET} characters, as from: openssl rand -hex 32")
    if not secret.startswith(_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error as error:
        raise FeedError(f"{path}: a secret that begins with {_PREFIX} goes on in base64") from error
