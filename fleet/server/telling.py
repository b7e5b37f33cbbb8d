"""How a target is told: a webhook, a mail, a line in the service's log.

Always true
 1. What goes wrong is said without the address and its secrets.
 2. A webhook's answer is read no further than its status, and no redirect is followed: nobody learns through it what an
    address inside the network answers.

Source: Standard Webhooks (standardwebhooks.com, specification 1.0.0): headers, signature, what is signed.
"""

import base64
import hashlib
import hmac
import logging
import smtplib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime

import httpx
import msgspec

from edgekit import __version__
from edgekit.errors import UsageError
from fleet.api.alerts import Mail, NewTarget, Webhook
from fleet.rules import addresses
from fleet.server.sealing import Seal

log = logging.getLogger("fleet.alerts")

TIMEOUT_S = 10.0
_MAX_LINE = 120


class NotToldError(Exception):
    """The target did not take it; the text says why, and holds no secret."""


class Said(msgspec.Struct, frozen=True):
    """What of a body a mail and a log need."""

    type: str
    id: str
    fleet: str
    text: str
    url: str = ""


def check(wanted: NewTarget) -> tuple[str, bytes]:
    """What may be shown of a target's address, and what is to be sealed. Raises: UsageError."""
    has = {"webhook": wanted.webhook is not None, "smtp": wanted.mail is not None}
    if has != {kind: wanted.kind == kind for kind in has}:
        raise UsageError(f"a target of kind {wanted.kind} has exactly what that kind needs (webhook or mail)")
    if wanted.webhook is not None:
        shown = addresses.webhook(wanted.webhook.url)
        addresses.signing_key(wanted.webhook.secret)
        _trust(wanted.webhook.ca)
        return shown, msgspec.json.encode(wanted.webhook)
    if wanted.mail is not None:
        mail = wanted.mail
        scheme, host, port = addresses.mail_server(mail.server, has_login=bool(mail.user or mail.password))
        for one in (mail.sender, *mail.recipients):
            addresses.mailbox(one)
        if bool(mail.user) != bool(mail.password):
            raise UsageError("mail server: a user and its password go together")
        _trust(mail.ca)
        more = f" and {len(mail.recipients) - 3} more" if len(mail.recipients) > 3 else ""
        shown = f"{', '.join(mail.recipients[:3])}{more} by {scheme}://{host}:{port}"
        return shown[:500], msgspec.json.encode(mail)
    return "the service's log", b"{}"


@dataclass(frozen=True)
class Target:
    """Of a target's row, what says where it is."""

    name: str
    kind: str
    sealed: str = field(repr=False)


def tell(target: Target, body: str, seal: Seal, now: float) -> str:
    """Send one message; what the receiver said. Raises: NotToldError."""
    if target.kind == "log":
        return _log(body)
    secret = seal.open(target.name, target.sealed)
    if target.kind == "webhook":
        return _webhook(msgspec.json.decode(secret, type=Webhook), body, now)
    return _mail(msgspec.json.decode(secret, type=Mail), body, now)


def signature(key: bytes, message: str, at: int, body: bytes) -> str:
    """What `webhook-signature` holds."""
    signed = f"{message}.{at}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def headers(hook: Webhook, message: str, body: bytes, now: float) -> Mapping[str, str]:
    at = int(now)
    return {
        "content-type": "application/json",
        "user-agent": f"edgekit-fleet/{__version__}",
        "webhook-id": message,
        "webhook-timestamp": str(at),
        "webhook-signature": signature(addresses.signing_key(hook.secret), message, at, body),
    }


def _webhook(hook: Webhook, body: str, now: float) -> str:
    said, data = _read(body), body.encode()
    try:
        with (
            httpx.Client(verify=_trust(hook.ca), timeout=TIMEOUT_S, trust_env=False) as client,
            client.stream(
                "POST", hook.url, content=data, headers=headers(hook, said.id, data, now)
            ) as response,
        ):
            status = response.status_code
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise NotToldError(_cause(error)) from error
    if not 200 <= status < 300:
        raise NotToldError(f"it answered {status}")
    return f"it answered {status}"


def _mail(mail: Mail, body: str, now: float) -> str:
    said = _read(body)
    message = EmailMessage()
    message["From"] = mail.sender
    message["To"] = ", ".join(mail.recipients)
    message["Subject"] = said.text.partition("\n")[0][:_MAX_LINE]
    message["Date"] = format_datetime(datetime.fromtimestamp(now, UTC))
    # The same at each try: mail systems know a repeat by it.
    message["Message-ID"] = f"<{said.id}@{said.fleet}.edgekit>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(said.text + (f"\n\n{said.url}\n" if said.url else "\n"))
    scheme, host, port = addresses.mail_server(mail.server, has_login=bool(mail.user))
    context = _trust(mail.ca)
    try:
        with _server(scheme, host, port, context) as server:
            if scheme == "smtp" and not addresses.is_plain(scheme, host):
                server.starttls(context=context)
            if mail.user:
                server.login(mail.user, mail.password)
            refused = server.send_message(message)
    except (OSError, smtplib.SMTPException) as error:
        raise NotToldError(_mail_cause(error)) from error
    if refused:
        # Those that were taken must not get it again.
        return f"taken, but not for {', '.join(sorted(refused))}"
    return "taken"


def _server(scheme: str, host: str, port: int, context: ssl.SSLContext) -> smtplib.SMTP:
    if scheme == "smtps":
        return smtplib.SMTP_SSL(host, port, timeout=TIMEOUT_S, context=context)
    return smtplib.SMTP(host, port, timeout=TIMEOUT_S)


def _mail_cause(error: OSError | smtplib.SMTPException) -> str:
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return f"the mail server refuses the login ({error.smtp_code})"
    if isinstance(error, smtplib.SMTPResponseException):
        return f"the mail server answered {error.smtp_code}"
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return f"the mail server takes no mail for {', '.join(sorted(error.recipients))}"
    return _cause(error)


def _log(body: str) -> str:
    said = _read(body)
    log.warning("%s (%s)", said.text.replace("\n", " | "), said.id)
    return "written"


def _read(body: str) -> Said:
    return msgspec.json.decode(body, type=Said)


def _cause(error: Exception) -> str:
    """Why no answer came, without the address: messages of libraries may hold it."""
    cause: BaseException = error
    while cause.__cause__ is not None or cause.__context__ is not None:
        cause = cause.__cause__ or cause.__context__ or cause
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({cause.verify_message})"
    if isinstance(error, httpx.TimeoutException) or isinstance(cause, TimeoutError):
        return f"no answer within {TIMEOUT_S:.0f} s"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return type(error).__name__


def _trust(ca: str) -> ssl.SSLContext:
    """The public authorities, or only the one given. Raises: UsageError."""
    try:
        made = ssl.create_default_context(cadata=ca or None)
    except ssl.SSLError as error:
        raise UsageError(f"--ca-file: no PEM certificates can be read from it ({error})") from error
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    return made
