"""Values for the shell's completion: devices, releases, rollouts, users, tokens, as the fleet has them now.

Always true
 1. Completion says nothing but values, and never fails: a fleet that is away, refuses or is slow means no values.
 2. What was found, nothing too, is kept for `KEEP_S` in a file of its owner's, so that a second TAB costs no request.
 3. Only what needs no quoting is offered: a shell never gets a character that it acts on.
"""

import contextlib
import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import click
import httpx
import msgspec
from click.shell_completion import CompletionItem

from edgekit import safe
from fleet.client import config
from fleet.client.rest import Client

KEEP_S = 5.0
MOST = 200
_TIMEOUT = httpx.Timeout(1.0, connect=0.5)
_PLAIN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._/@+-]*$")

# A value and a few words about it.
Found = list[tuple[str, str]]
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _releases(client: Client, _typed: str) -> Found:
    return [(f"{one.name}@{one.version}", f"{len(one.bundles)} bundles") for one in client.releases()]


def _rollouts(client: Client, _typed: str) -> Found:
    return [(one.id, f"{one.release}, {one.status}") for one in client.rollouts()]


def _devices(client: Client, typed: str) -> Found:
    # In the order of names, what begins with what was typed comes right behind it.
    return [(name, "") for name in client.names_after(typed, MOST)]


_KINDS: Mapping[str, Callable[[Client, str], Found]] = {
    "device": _devices,
    "release": _releases,
    "rollout": _rollouts,
    "user": lambda client, _: [(one.name, one.role) for one in client.users()],
    "token": lambda client, _: [(one.name, one.role) for one in client.tokens()],
    "assignment": lambda client, _: [(one.id, f"{one.release} to {one.to}") for one in client.assignments()],
    "experiment": lambda client, _: [(one.id, one.status) for one in client.experiments()],
    "shadow": lambda client, _: [(one.id, f"{one.release}, {one.status}") for one in client.shadows()],
    "samples": lambda client, _: [(one.id, f"{one.deployment}, {one.state}") for one in client.collections()],
    "batch": lambda client, _: [(one.id, one.state) for one in client.batches()],
    "waiting": lambda client, _: [(one.device, one.profile) for one in client.waiting()],
    "alert": lambda client, _: [(one.id, one.kind) for one in client.alerts()],
    "target": lambda client, _: [(one.name, one.kind) for one in client.targets()],
    "blocked": lambda client, _: [(one.subject, one.reason) for one in client.blocked()],
}


def completes(kind: str) -> Complete:
    """The completion of an argument that names such a thing."""

    def complete(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        # Nothing that goes wrong here may reach the line that a person is typing.
        with contextlib.suppress(Exception):
            return _items(_found(kind, _place(ctx), incomplete), incomplete)
        return []

    return complete


def listed(values: Iterable[str]) -> Complete:
    """The completion of a list of known words with commas between them."""
    words = tuple(values)

    def complete(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        return [CompletionItem(f"{before}{comma}{word}") for word in words if word.startswith(last)]

    return complete


def _items(found: Found, incomplete: str) -> list[CompletionItem]:
    return [
        CompletionItem(value, help=safe.text(words) or None)
        for value, words in found
        if value.startswith(incomplete) and _PLAIN.match(value)
    ]


def _place(ctx: click.Context) -> str | None:
    """The fleet that the line names so far."""
    here: click.Context | None = ctx
    while here is not None:
        if found := here.params.get("place"):
            return str(found)
        here = here.parent
    return None


def _found(kind: str, place: str | None, typed: str) -> Found:
    access = config.find(place)
    about = [access.url, access.token, kind, typed if kind == "device" else ""]
    file = _folder() / f"{hashlib.sha256(msgspec.json.encode(about)).hexdigest()[:32]}.json"
    kept = _kept(file)
    if kept is not None:
        return kept
    found: Found = []
    try:
        client = Client(access, _TIMEOUT)
        try:
            found = _KINDS[kind](client, typed)[:MOST]
        finally:
            client.close()
    finally:
        _keep(file, found)
    return found


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "edgekit" / "completion"


def _kept(file: Path) -> Found | None:
    try:
        if time.time() - file.stat().st_mtime < KEEP_S:
            return msgspec.json.decode(file.read_bytes(), type=Found)
    except (OSError, msgspec.DecodeError):
        pass
    return None


def _keep(file: Path, found: Found) -> None:
    """Whole or not at all; what cannot be kept is asked for again. Older files go."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for old in file.parent.glob("*"):
            if time.time() - old.stat().st_mtime > 10 * KEEP_S:
                old.unlink()
        partial = file.with_suffix(f".{secrets.token_hex(4)}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(msgspec.json.encode(found))
        partial.replace(file)
