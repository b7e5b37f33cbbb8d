"""A folder as a source: each file is read once, and goes to `done/` or `failed/` below the folder.

Always true
 1. A file is taken once its size and time have stayed the same; names that begin with `.`, or end in `.part` or `.tmp`, are
    somebody's unfinished work and left alone. So is what is no plain file.
 2. The answer and the claim that this very file (inode, time, size) has one are one transaction. Only then is the file
    moved, and only after that is on disk is the claim forgotten. So whenever the process ends: no file without a claim
    has an answer, and a file with one is moved and not read again.
 3. A file that takes a name while the one before it is being answered is another file, and read as such.
"""

import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from device_agent import durable, log
from device_agent.agentfile import FolderSource
from device_agent.sources.ask import Refused
from device_agent.sources.feed import About, Feed, Given
from device_agent.sources.outbox import Remember
from edgekit.errors import FeedError

DONE, FAILED = "done", "failed"
# What a file may have at most; what a model takes is less.
MAX_BYTES = 64 << 20
# Folders of files are for people and other programs too.
_FOLDER_MODE, _FILE_MODE = 0o755, 0o644
_UNFINISHED = (".part", ".tmp")
_TYPES: Mapping[str, str] = {
    ".json": "application/json",
    ".npy": "application/x-npy",
    ".npz": "application/x-npz",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
    ".wav": "audio/wav",
    ".flac": "audio/flac",
}


class Claim(NamedTuple):
    """That the file `mark` has its answer; `reason` why it was refused, or empty."""

    mark: str
    reason: str


class Folder:
    def __init__(self, spec: FolderSource, clock: Callable[[], float] = time.monotonic) -> None:
        self._spec = spec
        self._root = Path(spec.path)
        self._clock = clock
        # Name → its mark, and when that was seen first.
        self._seen: dict[str, tuple[str, float]] = {}

    def run(self, feed: Feed) -> None:
        """See `feed.Source`."""
        self.prepare()
        while True:
            self.turn(feed)
            feed.pause(self._spec.poll_s)

    def prepare(self) -> None:
        """Raises: FeedError."""
        try:
            for name in (DONE, FAILED):
                durable.make_folder(self._root / name, mode=_FOLDER_MODE)
            os.scandir(self._root).close()
        except OSError as error:
            raise FeedError(
                f"{self._root}: cannot be read and written ({error.strerror}); make the folder, or give it to the agent's"
                " user"
            ) from error

    def turn(self, feed: Feed) -> None:
        """One look at the folder: every file that is complete is answered and moved. Raises: FeedError, StoppedError."""
        present = dict(sorted(self._files(), key=lambda one: one[1].st_mtime_ns))
        for name in self._seen.keys() - present.keys():
            del self._seen[name]
        claims = feed.outbox.remember(_claims)
        for name in claims.keys() - present.keys():
            feed.outbox.remember(_forgotten(name))
        for name, status in present.items():
            mark = _mark(status)
            claim = claims.get(name)
            if claim is not None and claim.mark == mark:
                self._move(feed, name, claim)
            elif self._is_settled(name, mark):
                feed.wait_for_room()
                self._take(feed, name, mark)

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        try:
            with os.scandir(self._root) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name.endswith(_UNFINISHED):
                        continue
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if stat.S_ISREG(status.st_mode):
                        yield entry.name, status
        except OSError as error:
            raise FeedError(f"{self._root}: cannot be read ({error.strerror})") from error

    def _is_settled(self, name: str, mark: str) -> bool:
        known, since = self._seen.get(name, ("", 0.0))
        if known != mark:
            since = self._clock()
            self._seen[name] = (mark, since)
        return self._clock() - since >= self._spec.settle_s

    def _take(self, feed: Feed, name: str, mark: str) -> None:
        path = self._root / name
        problem = ""
        try:
            body = _read(path)
        except FileNotFoundError:
            return
        except OSError as error:
            body, problem = b"", f"cannot be read ({error.strerror})"
        if _mark_at(path) != mark:
            return
        problem = problem or _problem(path, len(body))
        feed.tally.count("read")
        uid = hashlib.sha256(
            f"{mark}\n{self._spec.name}\n".encode() + os.fsencode(name) + b"\n" + body
        ).hexdigest()[:32]
        content_type = _TYPES.get(path.suffix.lower(), "")
        about: About = {
            "file": os.fsencode(name).decode("utf-8", "replace"),
            "bytes": int(mark.rpartition(":")[2]),
        }
        given = Given(uid, content_type, body, about)
        found: msgspec.Raw | Refused = Refused("input", problem) if problem else feed.answer(given)
        claim = Claim(mark, f"{found.code}: {found.reason}" if isinstance(found, Refused) else "")
        feed.keep(given, found, _claimed(name, claim))
        self._move(feed, name, claim)

    def _move(self, feed: Feed, name: str, claim: Claim) -> None:
        """To where an answered file belongs; done again from wherever it was cut off. Raises: OSError."""
        path, folder = self._root / name, self._root / (FAILED if claim.reason else DONE)
        target = _free(folder, name)
        if _mark_at(path) == claim.mark:
            if claim.reason:
                reason = msgspec.json.encode({"file": target.name, "reason": claim.reason})
                durable.write(folder / f"{target.name}.reason.json", reason + b"\n", _FILE_MODE)
                log.trouble("a file was refused", file=target, reason=claim.reason)
            durable.move(path, target)
            if _mark_at(target) != claim.mark:
                # Another file took the name in this very moment.
                durable.move(target, path)
        feed.outbox.remember(_forgotten(name))
        self._seen.pop(name, None)


def _read(path: Path) -> bytes:
    """What a file holds, up to a byte beyond `MAX_BYTES`. Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read(MAX_BYTES + 1)


def _problem(path: Path, size: int) -> str:
    if path.suffix.lower() not in _TYPES:
        return f"its name does not say what it holds; known are {' '.join(_TYPES)}"
    return f"it has more than {MAX_BYTES >> 20} MiB" if size > MAX_BYTES else ""


def _mark(status: os.stat_result) -> str:
    """What tells this file from another of its name; a rename leaves it as it is."""
    return f"{status.st_ino}:{status.st_mtime_ns}:{status.st_size}"


def _mark_at(path: Path) -> str:
    """Empty where there is no such file."""
    try:
        return _mark(path.lstat())
    except FileNotFoundError:
        return ""


def _free(folder: Path, name: str) -> Path:
    """`name` in `folder`, or `name` with a number where there is one."""
    wanted = folder / name
    number = 1
    while wanted.exists():
        stem, dot, suffix = name.rpartition(".")
        wanted = folder / (f"{stem}.{number}.{suffix}" if dot and stem else f"{name}.{number}")
        number += 1
    return wanted


# -- claims ----------------------------------------------------------------------------------------------------------


def _claims(db: sqlite3.Connection) -> dict[str, Claim]:
    return {
        os.fsdecode(name): Claim(mark.decode(), reason.decode())
        for name, mark, reason in db.execute("SELECT name, mark, reason FROM claim")
    }


def _claimed(name: str, claim: Claim) -> Remember:
    def claimed(db: sqlite3.Connection) -> None:
        db.execute("INSERT OR REPLACE INTO claim VALUES (?, ?, ?)", (os.fsencode(name), *claim))

    return claimed


def _forgotten(name: str) -> Remember:
    def forgotten(db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM claim WHERE name = ?", (os.fsencode(name),))

    return forgotten
