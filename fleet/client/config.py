"""Where the fleet is: `--fleet DIR|client.toml`, or EDGEKIT_FLEET, or EDGEKIT_FLEET_URL with EDGEKIT_FLEET_TOKEN and,
over TLS, EDGEKIT_FLEET_CA (a PEM file).

Always true
 1. A token is never sent in the clear to another machine.
"""

import os
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from edgekit.errors import UsageError
from edgekit.wire.enrolment import is_loopback

FLEET = "EDGEKIT_FLEET"
URL = "EDGEKIT_FLEET_URL"
CA = "EDGEKIT_FLEET_CA"
TOKEN = "EDGEKIT_FLEET_TOKEN"  # noqa: S105  # the name of a variable, not a secret


@dataclass(frozen=True)
class Access:
    """`ca` is PEM text that pins the connection; `folder` is the service's state folder where the client file lies in
    one, for its publisher key.
    """

    url: str
    token: str
    folder: Path | None = None
    ca: str = ""


def find(given: str | None) -> Access:
    """Raises: UsageError if nothing says where the fleet is, or the file cannot be used."""
    place = given or os.environ.get(FLEET)
    if place:
        return _read(Path(place))
    url, token = os.environ.get(URL), os.environ.get(TOKEN)
    if url and token:
        return safe(Access(url.rstrip("/"), token, ca=_ca_file()))
    raise UsageError(
        f"which fleet? give --fleet DIR (the --state folder of 'edgekit fleet up', or its client.toml), "
        f"or set {FLEET}, or {URL} and {TOKEN}"
    )


def _read(place: Path) -> Access:
    path = place / "client.toml" if place.is_dir() else place
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}); 'edgekit fleet up --state DIR' writes it"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from error
    url, token = table.get("url"), table.get("token")
    if not isinstance(url, str) or not isinstance(token, str):
        raise UsageError(f"{path}: needs 'url' and 'token', as 'edgekit fleet up' writes them")
    ca = table.get("ca", "")
    if not isinstance(ca, str):
        raise UsageError(f"{path}: 'ca' must be PEM text, as 'edgekit fleet up' writes it")
    return safe(Access(url.rstrip("/"), token, path.parent, ca))


def _ca_file() -> str:
    place = os.environ.get(CA)
    if not place:
        return ""
    try:
        return Path(place).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{CA}={place}: cannot be read ({error})") from error


def client_file(url: str, token: str, ca: str) -> str:
    """The text of a client file."""
    text = (
        "# How 'edgekit fleet' reaches the service. Whoever reads this file can do all that its token may: keep it to "
        f'yourself.\nurl = "{url}"\ntoken = "{token}"\n'
    )
    return f"{text}ca = '''\n{ca}'''\n" if ca else text


def read_secret(path: Path, what: str) -> str:
    """The first line of a file that nobody else may read. Raises: UsageError."""
    try:
        mode, text = stat.S_IMODE(path.stat().st_mode), path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {what} cannot be read from it") from error
    if mode & 0o077:
        raise UsageError(f"{path}: {what} is readable by others (mode {mode:04o}); run: chmod 600 {path}")
    lines = text.splitlines()
    if not lines or not lines[0]:
        raise UsageError(f"{path}: {what} is empty")
    return lines[0]


def safe(access: Access) -> Access:
    """Raises: UsageError where a secret would go in the clear to another machine."""
    parts = urlsplit(access.url)
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise UsageError(
            f"{access.url}: a token is not sent in the clear to another machine; use the fleet's https address"
        )
    return access
