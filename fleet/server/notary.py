"""Signs the audit log's newest hash from time to time, and says whether the log is whole.

    DIR/audit.head      the newest head, also outside the database

Always true
 1. A head is signed only over a log that still follows from the head before it: whoever cut or rewrote it cannot have
    that signed afterwards.
 2. The newest head lies outside the database before anybody relies on it: who can write only the database cannot hide
    that the log was cut.
"""

import logging
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import msgspec

from edgekit.errors import SignatureRefusedError
from fleet import audit as rules
from fleet.audit import Found, Head
from fleet.audit_entry import Entry
from fleet.publish import SigningKey, sign, write_private
from fleet.server.database import Database
from fleet.server.store import audit

log = logging.getLogger(__name__)

HEAD_FILE = "audit.head"


class Notary:
    """`key` is the fleet's own for this log (`Keys.audit`), which never rotates; operators hear it with its other keys."""

    def __init__(self, database: Database, fleet: str, key: SigningKey, folder: Path) -> None:
        self._database = database
        self._fleet = fleet
        self._key = key
        self._file = folder / HEAD_FILE
        self._keys = {key.keyid: key.public_hex}
        self._signed_at: float | None = None
        self._has_complained = False
        self._lock = threading.Lock()

    @property
    def is_whole(self) -> bool:
        """Whether the log followed from what was signed of it when that was last looked at."""
        return not self._has_complained

    def sign_if_due(self, now: float) -> bool:
        """Sign the newest entry, at most every `HEAD_EVERY_S`; whether it did."""
        with self._lock:
            if self._signed_at is not None and 0 <= now - self._signed_at < rules.HEAD_EVERY_S:
                return False
            self._signed_at = now
            return self._sign(now)

    def _sign(self, now: float) -> bool:
        with self._database.begin() as connection:
            try:
                newest = audit.newest_head(connection)
                last = self._last_head(newest)
                start = last.entry if last is not None else 0
                walk = rules.Walk(last.hash if last else rules.GENESIS, last.count if last else 0)
                if last is not None and not _has(audit.entries(connection, after=start - 1, limit=1), last):
                    raise SignatureRefusedError(f"entry {start}, which was signed, is gone or another one")
                for _ in walk.over(audit.entries(connection, after=start)):
                    pass
                if walk.problem:
                    raise SignatureRefusedError(walk.problem)
            except SignatureRefusedError as error:
                self._complain(error)
                return False
            if not walk.newest_id:
                if newest is not None and self._pinned() is None:
                    # Moved away, after the database was restored: what was checked just now is what it goes on from.
                    write_private(self._file, newest)
                return False
            head = Head(self._fleet, walk.newest_id, walk.last, walk.count, now)
            envelope = sign(msgspec.json.encode(head), rules.HEAD_TYPE, self._key)
            audit.add_head(connection, head, envelope)
        write_private(self._file, envelope)
        self._has_complained = False
        return True

    def _last_head(self, in_database: bytes | None) -> Head | None:
        """The head to go on from: the database's, which must not be behind the one outside.

        A stop between the commit and the file leaves the file one behind. Raises: SignatureRefusedError.
        """
        outside = self._pinned()
        there = rules.read_head(in_database, self._fleet, self._keys) if in_database is not None else None
        if outside is None:
            return there
        kept = rules.read_head(outside, self._fleet, self._keys)
        if there is None or there.entry < kept.entry:
            raise SignatureRefusedError(
                f"the head of entry {kept.entry}, kept in {self._file}, is missing in the database"
            )
        return there

    def _complain(self, error: SignatureRefusedError) -> None:
        if not self._has_complained:
            log.error("the audit log is not signed any further: %s; see 'edgekit fleet audit verify'", error)
        self._has_complained = True

    def _pinned(self) -> bytes | None:
        try:
            return self._file.read_bytes()
        except FileNotFoundError:
            return None

    def examine(self, now: float) -> Found:
        """The whole log, every head, and the head outside the database."""
        with self._lock, self._database.begin() as connection:
            found = rules.examine(
                audit.entries(connection),
                audit.heads(connection),
                fleet=self._fleet,
                keys=self._keys,
                now=now,
                pinned=self._pinned(),
            )
        if found.heads and not self._file.exists():
            missing = f"{self._file} is gone: nothing outside the database says how far the log went"
            return replace(found, problems=(*found.problems, missing))
        return found


def _has(entries: Iterable[Entry], head: Head) -> bool:
    found = next(iter(entries), None)
    return found is not None and found.id == head.entry and found.hash == head.hash
