"""`edgekit fleet audit list|verify|export`: what was changed, by whom, and whether the log of it is whole.

An export is a file of JSON lines: first what it is of, then every entry, then every signed head.
"""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from edgekit.errors import FleetError, UsageError
from fleet.audit_entry import Entry
from fleet.client import render
from fleet.client.options import connected, examples, with_fleet
from fleet.client.rest import Client
from fleet.client.sheet import Column, Sheet

_PAGE = 1000


class _Export(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first line of an export."""

    fleet: str
    at: float
    format: int = 1


class _HeadLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    head: str


@click.group(
    epilog=examples(
        "edgekit fleet audit list --limit 20",
        "edgekit fleet audit export audit-2026-11.jsonl",
        "edgekit fleet audit verify audit-2026-10.jsonl",
    )
)
def audit() -> None:
    """What was changed, by whom, from where."""


@audit.command(
    "list",
    epilog=examples(
        "edgekit fleet audit list --limit 20", "edgekit fleet audit list --json | jq '.[].action'"
    ),
)
@click.option("--limit", type=click.IntRange(1, _PAGE), default=50, show_default=True)
@with_fleet
def list_entries(*, limit: int, place: str | None, as_json: bool) -> None:
    """Show the newest changes, the newest first."""
    with connected(place) as client:
        found = client.audit(None, limit)
    if as_json:
        render.show_json(found)
        return
    prose = ("before", "after", "")
    titles = ("when", "who", "from", "what", "of", *prose)
    table = Sheet([Column(title, is_prose=title in prose) for title in titles])
    for entry in found:
        when = f"{datetime.fromtimestamp(entry.at, UTC):%Y-%m-%d %H:%M:%S}"
        words = (
            entry.actor,
            entry.origin,
            entry.action,
            entry.subject,
            entry.before,
            entry.after,
            entry.detail,
        )
        table.add(when, *words)
    render.show(table)


@audit.command(epilog=examples("edgekit fleet audit export audit-2026-11.jsonl"))
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.jsonl")
@with_fleet
def export(*, file: Path, place: str | None, as_json: bool) -> None:
    """Write the whole log into FILE, to be kept elsewhere: 'verify' compares with it."""
    if file.exists():
        raise UsageError(f"{file}: exists already; remove it or choose another name")
    with connected(place) as client:
        count = _write(client, file)
    if as_json:
        render.show_json({"file": str(file), "entries": count})
    else:
        render.say(f"{file}: {count} entries")


def _write(client: Client, file: Path) -> int:
    fleet = client.keys().fleet
    count = 0
    try:
        # What is private to the fleet is so in its export.
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(msgspec.json.encode(_Export(fleet, datetime.now(UTC).timestamp())) + b"\n")
            # The heads first: then each has its entry among those that are read after it.
            heads = client.audit_heads()
            for entry in _entries(client):
                stream.write(msgspec.json.encode(entry) + b"\n")
                count += 1
            for head in heads:
                stream.write(msgspec.json.encode(_HeadLine(head)) + b"\n")
    except OSError as error:
        raise UsageError(f"{file}: cannot be written ({error.strerror})") from error
    return count


def _entries(client: Client) -> Iterator[Entry]:
    after = 0
    while page := client.audit(after, _PAGE):
        yield from page
        after = page[-1].id


@audit.command(
    epilog=examples("edgekit fleet audit verify", "edgekit fleet audit verify audit-2026-10.jsonl")
)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=False)
@with_fleet
def verify(*, file: Path | None, place: str | None, as_json: bool) -> None:
    """Check the log; with FILE, an earlier export: that it is whole, and that the fleet's log still begins with it.

    Exit code 5 if anything is wrong.
    """
    with connected(place) as client:
        verdict = client.audit_verdict()
        problems = list(verdict.problems)
        if file is not None:
            problems += _compare(client, file)
    if as_json:
        render.show_json(msgspec.structs.replace(verdict, problems=tuple(problems)))
    if problems:
        raise FleetError("the audit log is not whole:\n" + "\n".join(f"  {one}" for one in problems))
    if not as_json:
        render.say(
            f"whole: {verdict.entries} entries, signed up to entry {verdict.covered} by {verdict.heads} heads"
            + (f"; begins with what is in {file}" if file is not None else "")
        )


def _compare(client: Client, file: Path) -> list[str]:
    """What is wrong with an export, or with the fleet's log against it."""
    # Only here: it brings cryptography, which no other command of a client needs.
    from fleet import audit as rules

    keys = client.keys()
    made, entries, heads = _read(file)
    if made.fleet != keys.fleet:
        raise UsageError(f"{file}: of {made.fleet}, not of {keys.fleet}")
    found = rules.examine(entries, heads, fleet=keys.fleet, keys=keys.audit_keys, now=0.0)
    told = [f"{file}: {problem}" for problem in found.problems]
    if not entries:
        return told
    there = client.audit(entries[-1].id - 1, 1)
    if not there or there[0].hash != entries[-1].hash:
        told.append(
            f"the fleet's log is another one than at the time of {file}: its entry {entries[-1].id} is gone or changed"
        )
    return told


def _read(file: Path) -> tuple[_Export, list[Entry], list[bytes]]:
    """Raises: UsageError."""
    try:
        lines = file.read_bytes().splitlines()
        made = msgspec.json.decode(lines[0], type=_Export)
        entries = [
            msgspec.json.decode(line, type=Entry) for line in lines[1:] if not line.startswith(b'{"head"')
        ]
        heads = [
            msgspec.json.decode(line, type=_HeadLine).head.encode()
            for line in lines[1:]
            if line.startswith(b'{"head"')
        ]
    except (OSError, IndexError, msgspec.DecodeError) as error:
        raise UsageError(f"{file}: no export of an audit log ({error})") from error
    return made, entries, heads


COMMANDS = (audit,)
