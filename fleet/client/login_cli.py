"""`edgekit fleet login|logout`: a person signs in at a terminal, by the browser on the same machine (RFC 8252).

Always true
 1. What comes back on loopback counts only with the state that this command made; anything else is told so and ignored.
 2. The secret goes into a file that is its owner's alone, and is shown nowhere.
"""

import base64
import hashlib
import html
import secrets
import time
import webbrowser
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import click

from edgekit.errors import AuthError, UsageError
from fleet.client import render
from fleet.client.config import Access, client_file, find, safe
from fleet.client.files import write_secret
from fleet.client.options import examples
from fleet.client.rest import Client
from fleet.terminal import PREFIX, NewTerminal, mark

_WAIT_S = 600.0
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}

_EXAMPLES = """\b
Examples:
  edgekit fleet login me.toml --url https://fleet.example:8443 --ca fleet-ca.pem
  export EDGEKIT_FLEET=me.toml
  edgekit fleet login me.toml           # again, tomorrow
"""


class _Listener(HTTPServer):
    """Waits on loopback for the browser to bring the code."""

    def __init__(self, state: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.state = state
        self.code = ""

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def wait(self, wait_s: float) -> str:
        """The code. Raises: AuthError if it does not come."""
        ends_at = time.monotonic() + wait_s
        while not self.code:
            self.timeout = ends_at - time.monotonic()
            if self.timeout <= 0:
                raise AuthError("nobody allowed it in the browser; start again")
            self.handle_request()
        return self.code


class _Handler(BaseHTTPRequestHandler):
    server: _Listener
    # A connection that says nothing must not keep the browser's from being heard.
    timeout = 5

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        given = {name: values[0] for name, values in parse_qs(url.query).items()}
        is_ours = secrets.compare_digest(given.get("state", "").encode(), self.server.state.encode())
        if url.path != "/" or not is_ours or not given.get("code"):
            self._tell(HTTPStatus.NOT_FOUND, "This is not what the terminal waits for.")
            return
        self.server.code = given["code"]
        self._tell(HTTPStatus.OK, "Done. Go on at the terminal; this window can be closed.")

    def _tell(self, status: HTTPStatus, words: str) -> None:
        page = f"<!doctype html><title>edgekit fleet login</title><p>{html.escape(words)}".encode()
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Length": str(len(page))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base's name
        """Nothing: the address holds the code."""


@click.command(epilog=_EXAMPLES)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--url", default="", help="The fleet's address; FILE says it from the second time on.")
@click.option(
    "--ca",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    default=None,
    help="What pins the connection (PEM): the fleet's keys/ca.pem.",
)
@click.option("--no-browser", is_flag=True, help="Only print the address to open on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON on stdout.")
def login(*, file: Path, url: str, ca: Path | None, no_browser: bool, as_json: bool) -> None:
    """Sign in by a browser on this machine; FILE is then what --fleet takes, for 8 hours."""
    access = _where(file, url, ca)
    state, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(48)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    client = Client(access)
    listener = _Listener(state)
    try:
        wanted = urlencode({"port": listener.port, "state": state, "challenge": challenge})
        address = f"{access.url}/login/terminal?{wanted}"
        if no_browser or not webbrowser.open(address):
            render.say("Open this in a browser on this machine:", err=True)
            render.say(f"  {address}", err=True)
        render.say(f"Allow it there if the page shows {mark(challenge)}; waiting …", err=True)
        made = client.begin_terminal(NewTerminal(listener.wait(_WAIT_S), verifier))
    finally:
        listener.server_close()
        client.close()
    _keep(file, client_file(access.url, made.secret, access.ca or made.ca))
    if as_json:
        render.show_json({"name": made.name, "ends": made.ends, "file": str(file)})
    else:
        render.say(
            f"{file}: you are {made.name} until {made.ends:%Y-%m-%d %H:%M} UTC; use it: --fleet {file}"
        )


@click.command(epilog=examples("edgekit fleet logout me.toml"))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON on stdout.")
def logout(*, file: Path, as_json: bool) -> None:
    """End what 'edgekit fleet login FILE' began, before its time."""
    access = find(str(file))
    if not access.token.startswith(PREFIX):
        raise UsageError(
            f"{file}: holds a machine's token; that is ended with: edgekit fleet token revoke NAME"
        )
    client = Client(access)
    try:
        done = client.end_terminal()
    finally:
        client.close()
    if as_json:
        render.show_json(done)
    else:
        render.say(f"{file}: signed out")


def _where(file: Path, url: str, ca: Path | None) -> Access:
    """Where to sign in: as the options say, or an earlier sign-in's file. Raises: UsageError."""
    known = find(str(file)) if file.exists() else None
    if known is not None and not known.token.startswith(PREFIX):
        raise UsageError(f"{file}: holds a machine's token, which this would overwrite; choose another name")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"{file.parent}: there is no such folder")
    if not url and known is None:
        raise UsageError(f"{file}: where is the fleet? give --url https://HOST:PORT the first time")
    try:
        pem = ca.read_text(encoding="utf-8") if ca else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--ca {ca}: cannot be read ({error})") from error
    return safe(
        Access(
            url.rstrip("/") or (known.url if known else ""),
            "",
            ca=pem or (known.ca if known and not url else ""),
        )
    )


def _keep(file: Path, text: str) -> None:
    """Whole or not at all, in place of an earlier one."""
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}.part")
    try:
        write_secret(partial, text.encode())
        partial.replace(file)
    except OSError as error:
        raise UsageError(f"{file}: cannot be written ({error.strerror})") from error
    finally:
        partial.unlink(missing_ok=True)


COMMANDS = (login, logout)
