"""Whom alerts are told in tests: a webhook receiver and a mail server, real ones, on loopback."""

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller as MailServer
from aiosmtpd.smtp import AuthResult
from fleet_support import free_port

SECRET = "a-secret-of-the-receiver-0123456789"


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def is_signed(self, secret: str = SECRET) -> bool:
        """As a receiver checks it, by the specification of Standard Webhooks."""
        signed = f"{self.id}.{self.headers['webhook-timestamp']}.".encode() + self.body
        right = base64.b64encode(hmac.new(secret.encode(), signed, hashlib.sha256).digest()).decode()
        return hmac.compare_digest(f"v1,{right}", self.headers["webhook-signature"])


@dataclass
class Receiver:
    """Keeps what it got; answers `status`, once for each of `first` before that."""

    status: int = 204
    first: list[int] = field(default_factory=list)
    location: str = ""
    got: list[Received] = field(default_factory=list)
    taken: list[Received] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook/s3cret-path"

    def kinds(self) -> list[str]:
        """Of every alert that it was told of, and took."""
        return [alert["kind"] for one in self.taken for alert in one.content.get("opened", ())]


@contextmanager
def receiver() -> Iterator[Receiver]:
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            one = Received(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            made.got.append(one)
            status = made.first.pop(0) if made.first else made.status
            if 200 <= status < 300:
                made.taken.append(one)
            self.send_response(status)
            if made.location:
                self.send_header("location", made.location)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Mailbox:
    port: int = 0
    mails: list[tuple[list[str], Message]] = field(default_factory=list)
    refuses: int = 0
    logins: list[tuple[bytes, bytes]] = field(default_factory=list)

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802  # aiosmtpd's name
        if self.refuses:
            self.refuses -= 1
            return "451 later"
        self.mails.append((envelope.rcpt_tos, message_from_bytes(envelope.content)))
        return "250 taken"


@contextmanager
def mailbox(**options: Any) -> Iterator[Mailbox]:
    """A mail server; `options` are aiosmtpd's."""
    made = Mailbox()

    def login(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
        made.logins.append((data.login, data.password))
        return AuthResult(success=data.password == b"right", handled=False)

    if options.pop("has_login", False):
        options |= {"authenticator": login, "auth_required": True}
    made.port = free_port()
    server = MailServer(made, hostname="127.0.0.1", port=made.port, ready_timeout=40, **options)
    server.start()
    try:
        yield made
    finally:
        server.stop(no_assert=True)
