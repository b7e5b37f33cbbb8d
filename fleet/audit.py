"""The audit log's rules, for the service that keeps it and for whoever checks an export of it elsewhere.

Each entry carries the hash of the one before it, so a change in the middle breaks every hash after it. That does not
show a tail that was cut off: therefore the newest hash is signed from time to time (a *head*), and the newest head is
also kept outside the database.

Pure.

Always true of a log in which `examine` finds nothing wrong
 1. The first entry follows from GENESIS, every other from the one before it.
 2. Every head is signed by one of the given keys, and its entry is there with the hash that was signed.
 3. Entries that no head covers yet are younger than `HEAD_LATE_S`.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import msgspec

from edgekit.errors import SignatureRefusedError
from edgekit.trust import dsse
from fleet.audit_entry import Entry

GENESIS = "0" * 64
HEAD_TYPE = "application/vnd.edgekit.audit-head.v1+json"
# How often a head is signed where there is something new, and after how long its absence is a fault.
HEAD_EVERY_S = 60.0
HEAD_LATE_S = 600.0


class Head(msgspec.Struct, frozen=True):
    """The payload of a signed head: the log of `fleet` reached `entry` with this hash, `count` entries in all."""

    fleet: str
    entry: int
    hash: str
    count: int
    at: float


def digest(  # in the order of the columns
    previous: str,
    at: float,
    words: tuple[str, str, str, str],
    more: tuple[str, str, str] = ("", "", ""),
) -> str:
    """The hash of (actor, action, subject, detail) and (before, after, origin) after `previous`.

    Entries from before there were the last three have them empty, and keep the hash that they had.
    """
    parts = [previous, repr(at), *words, *(more if any(more) else ())]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def digest_of(entry: Entry) -> str:
    words = (entry.actor, entry.action, entry.subject, entry.detail)
    return digest(entry.previous, entry.at, words, (entry.before, entry.after, entry.origin))


def read_head(envelope: bytes, fleet: str, keys: Mapping[str, str]) -> Head:
    """A head that one of `keys` signed for this fleet. Raises: SignatureRefusedError."""
    try:
        head = msgspec.json.decode(dsse.verify(envelope, HEAD_TYPE, keys), type=Head)
    except msgspec.DecodeError as error:
        raise SignatureRefusedError(f"no head of an audit log: {error}") from error
    if head.fleet != fleet:
        raise SignatureRefusedError(f"a head of {head.fleet}, not of {fleet}")
    return head


@dataclass
class Walk:
    """Going through entries in order: `problem` is the first break, `count` and `last` how far it came."""

    last: str = GENESIS
    count: int = 0
    problem: str = ""
    newest_id: int = 0

    def over(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The same entries, each checked as it goes by."""
        for entry in entries:
            if not self.problem and (entry.previous != self.last or entry.hash != digest_of(entry)):
                self.problem = (
                    f"entry {entry.id} does not follow from the one before it: it, or one before it, was changed, "
                    "removed or moved"
                )
            self.last, self.newest_id = entry.hash, entry.id
            self.count += 1
            yield entry


@dataclass(frozen=True)
class Found:
    """How far a log goes: entries, the newest one, and the newest that a head covers; and what is wrong with it."""

    count: int
    newest: int
    hash: str
    covered: int
    heads: int
    problems: tuple[str, ...]


def examine(
    entries: Iterable[Entry],
    heads: Iterable[bytes],
    *,
    fleet: str,
    keys: Mapping[str, str],
    now: float,
    pinned: bytes | None = None,
) -> Found:
    """Go through a whole log; `problems` is empty if it is whole. `pinned` is a head that was kept elsewhere."""
    known, told = _read_heads(heads, pinned, fleet, keys)
    covered = max((head.entry for head in known), default=0)
    named = {head.entry for head in known}
    hashes: dict[int, str] = {}
    uncovered_since: float | None = None
    walk = Walk()
    for entry in walk.over(entries):
        if entry.id in named:
            hashes[entry.id] = entry.hash
        if entry.id > covered and uncovered_since is None:
            uncovered_since = entry.at
    if walk.problem:
        told.append(walk.problem)
    for head in known:
        if head.entry not in hashes:
            told.append(f"entry {head.entry}, which a signed head names, is gone: the log was cut")
        elif hashes[head.entry] != head.hash:
            told.append(f"entry {head.entry} is not the one that was signed: the log was rewritten")
    if uncovered_since is not None and now - uncovered_since > HEAD_LATE_S:
        told.append(
            f"the entries after {covered} were not signed in time: heads were removed, or signing fails"
        )
    return Found(walk.count, walk.newest_id, walk.last, covered, len(known), tuple(told))


def _read_heads(
    heads: Iterable[bytes], pinned: bytes | None, fleet: str, keys: Mapping[str, str]
) -> tuple[list[Head], list[str]]:
    """The heads that are what they claim to be, and what is wrong with the others."""
    known: list[Head] = []
    told: list[str] = []
    for number, envelope in enumerate(heads, 1):
        try:
            known.append(read_head(envelope, fleet, keys))
        except SignatureRefusedError as error:
            told.append(f"head {number}: {error}")
    if pinned is None:
        return known, told
    try:
        kept = read_head(pinned, fleet, keys)
    except SignatureRefusedError as error:
        return known, [*told, f"the head kept outside the database: {error}"]
    if kept not in known:
        told.append(f"the head of entry {kept.entry}, kept outside the database, is missing in it")
        known.append(kept)
    return known, told
