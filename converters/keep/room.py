"""Room in the cache: how much it may hold, what lies in it, and what goes when it is full.

Always true
 1. What is being read or written is not removed: readers share a lock, and who removes has it alone or removes nothing.
 2. The entries used last stay. Nothing but entries (folders named by a sha256) is ever touched.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import UsageError

BUILDS = "builds"
# Beside them, what searches tried (rounds/trials.py).
SEARCHES = "searches"
VARIABLE = "EDGEKIT_CACHE_LIMIT"
DEFAULT_BYTES = 10_000_000_000
_LOCK = ".lock"
# Of an entry that a build works in for long (a search): its folder's own lock.
IN_USE = "in-use.lock"
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Kept:
    """An entry; `used` is the time of its last use, in seconds since the epoch."""

    path: Path
    size_bytes: int
    used: float


def limit_bytes() -> int:
    """`$EDGEKIT_CACHE_LIMIT` (500MB, 10GB, a number of bytes), or the default. Raises: UsageError."""
    text = os.environ.get(VARIABLE, "")
    return parse_size(text, f"${VARIABLE}") if text else DEFAULT_BYTES


def parse_size(text: str, what: str) -> int:
    """Raises: UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B?)", text.strip().upper())
    unit = match[2] if match else ""
    unit = unit if unit in _UNITS or unit == "B" else f"{unit}B"
    if match is None:
        raise UsageError(f"{what}: {text!r} is no size; give e.g. 500MB, 10GB or a number of bytes")
    return int(float(match[1]) * _UNITS.get(unit, 1))


def folders(root: Path) -> dict[str, Path]:
    """Where each kind of entry lies."""
    return {"artifacts": root, "builds": root / BUILDS, "searches": root / SEARCHES}


def entries(folder: Path) -> list[Kept]:
    """Folders with an entry's name: a sha256, so that nothing else that lies there is ever touched."""
    if not folder.is_dir():
        return []
    named = (path for path in folder.iterdir() if len(path.name) == 64 and set(path.name) <= _HEX)
    return sorted((_kept(path) for path in named if path.is_dir()), key=lambda item: item.path)


def everything(root: Path) -> list[Kept]:
    return [item for folder in folders(root).values() for item in entries(folder)]


def touch(entry: Path) -> None:
    """It was used now. An entry that cannot be marked is used all the same."""
    try:
        os.utime(entry)
    except OSError:
        return


def make_room(root: Path, limit: int) -> int:
    """Remove the entries used longest ago until the rest fit; gives how many went. Where others are reading, nothing goes
    this time. Raises: OSError.
    """
    kept = everything(root)
    excess = sum(item.size_bytes for item in kept) - limit
    if excess <= 0:
        return 0
    removed = 0
    with lock(root, alone=True, wait=False) as has_lock:
        if not has_lock:
            return 0
        for item in sorted(kept, key=lambda item: item.used):
            if excess <= 0:
                break
            if _is_in_use(item.path):
                continue
            shutil.rmtree(item.path, ignore_errors=True)
            excess -= item.size_bytes
            removed += 1
    return removed


@contextmanager
def lock(folder: Path, *, alone: bool, wait: bool = True, name: str = _LOCK) -> Iterator[bool]:
    """Share the folder's lock, or have it alone; gives whether that is so. A folder that takes no lock (read-only, or a
    file system without) is read as it is: nothing can be removed from the first, and on the second a reader checks what it
    reads.
    """
    try:
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        yield False
        return
    try:
        try:
            kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
            fcntl.flock(descriptor, kind | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _is_in_use(entry: Path) -> bool:
    if not (entry / IN_USE).is_file():
        return False
    with lock(entry, alone=True, wait=False, name=IN_USE) as has_lock:
        return not has_lock


def _kept(path: Path) -> Kept:
    """Of a folder that may vanish meanwhile."""
    size, used = 0, _modified(path)
    # Not `rglob`, which raises where a folder goes between its being listed and its being opened.
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                stat = Path(folder, name).stat()
            except OSError:
                continue
            # A search's journal is written to, not touched.
            used = max(used, stat.st_mtime)
            # A large file may be linked by several entries, or be in use elsewhere: each counts its share.
            size += stat.st_size // stat.st_nlink
    return Kept(path, size, used)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
