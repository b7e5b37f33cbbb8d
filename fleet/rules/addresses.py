"""Where alerts may go: what an administrator may give as an address, and what of it is shown.

Pure. An address is the administrator's choice, also one inside the network: what is refused is only what would send
secrets in the clear to another machine, or is no address at all (docs/monitoring.md).
"""

import base64
import binascii
import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

from edgekit.errors import UsageError
from edgekit.wire.enrolment import is_loopback

_MAIL = re.compile(r"^[^\s@<>,;:\"()]{1,64}@[A-Za-z0-9.-]{1,190}$")
# By which receivers' libraries know a secret that is base64 (Standard Webhooks, "Secrets").
SECRET_PREFIX = "whsec_"  # noqa: S105  # a prefix, not a secret
MIN_SECRET = 16


def webhook(url: str) -> str:
    """What may be shown of a webhook's address: scheme and host, as the rest may be a secret. Raises: UsageError."""
    parts = _split(url, "webhook", ("https", "http"))
    if parts.username or parts.password:
        raise UsageError("webhook: no user or password in the address; the signature says who sends")
    if parts.fragment:
        raise UsageError("webhook: what follows # is never sent; leave it out")
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise UsageError("webhook: http:// only to this machine; give https://…")
    return f"{parts.scheme}://{parts.netloc}/…"


def signing_key(secret: str) -> bytes:
    """The key that a secret's text means. Raises: UsageError."""
    if len(secret) < MIN_SECRET:
        raise UsageError(
            f"webhook: its secret has {len(secret)} characters; give at least {MIN_SECRET}, as from: openssl rand -hex 32"
        )
    if not secret.startswith(SECRET_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error as error:
        raise UsageError(f"webhook: a secret that begins with {SECRET_PREFIX} goes on in base64") from error


def mail_server(server: str, *, has_login: bool) -> tuple[str, str, int]:
    """(scheme, host, port) of `smtp://HOST:PORT` or `smtps://HOST:PORT`. Raises: UsageError."""
    parts = _split(server, "mail server", ("smtp", "smtps"))
    if parts.username or parts.password or parts.path.strip("/") or parts.query:
        raise UsageError("mail server: smtps://HOST:PORT or smtp://HOST:PORT, and nothing else")
    host = parts.hostname or ""
    if has_login and parts.scheme == "smtp" and is_loopback(host):
        raise UsageError(
            "mail server: the one of this machine is spoken to in the clear, and takes no password"
        )
    return parts.scheme, host, parts.port or {"smtp": 587, "smtps": 465}[parts.scheme]


def is_plain(scheme: str, host: str) -> bool:
    """Whether a mail server is spoken to without TLS: only the one of this machine."""
    return scheme == "smtp" and is_loopback(host)


def mailbox(address: str) -> str:
    """Raises: UsageError."""
    if not _MAIL.match(address):
        raise UsageError(f"{address[:80]!r} is no mail address; write ops@example.org")
    return address


def _split(text: str, what: str, schemes: tuple[str, ...]) -> SplitResult:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"{what}: no address ({error})") from error
    if parts.scheme not in schemes or not parts.hostname or not _is_clean(text):
        raise UsageError(f"{what}: give {' or '.join(f'{one}://HOST…' for one in schemes)}")
    if (host := parts.hostname) and ":" in host:
        try:
            ipaddress.ip_address(host)
        except ValueError as error:
            raise UsageError(f"{what}: {host[:80]!r} is no address") from error
    return parts


def _is_clean(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text
