"""JSON lines in a file, rotated by size: PATH is the newest, PATH.1 the one before.

Always true
 1. A line is whole and on disk before its answer leaves the outbox; a torn one, as a power cut leaves it, is cut off by
    the next that comes.
 2. Several sources may write to one file: whoever writes holds a lock on `.PATH.lock` beside it.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from device_agent import durable
from device_agent.agentfile import FileSink
from device_agent.sinks.delivery import Taken
from device_agent.sources.outbox import Owed
from edgekit.errors import FeedError

# Sources of two users may write to one file (`sources/access.py`).
_FILE_MODE = 0o660
# A torn line is looked for this far back at a time.
_BLOCK = 64 << 10


class File:
    def __init__(self, spec: FileSink) -> None:
        self._path = Path(spec.path)
        self._max_bytes = spec.max_mb * 1_000_000
        self._keep = spec.keep

    def deliver(self, answers: Sequence[Owed]) -> Taken:
        """See `delivery.Sink`."""
        lines = b"".join(answer.body + b"\n" for answer in answers)
        try:
            with self._locked():
                is_new = self._rotate(len(lines))
                with durable.writing(self._path, at=_whole(self._path), mode=_FILE_MODE) as sink:
                    sink.write(lines)
                if is_new:
                    durable.sync_folder(self._path.parent)
        except OSError as error:
            raise FeedError(f"{self._path}: cannot be written ({error.strerror or error})") from error
        return Taken(tuple(answer.number for answer in answers))

    def close(self) -> None:
        pass

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = self._path.with_name(f".{self._path.name}.lock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _rotate(self, more: int) -> bool:
        """Make room for `more` bytes; whether the file is begun anew."""
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return True
        if size == 0 or size + more <= self._max_bytes:
            return False
        for number in range(self._keep, 0, -1):
            older = self._numbered(number)
            newer = self._numbered(number - 1) if number > 1 else self._path
            if newer.exists():
                durable.rename(newer, older)
        return True

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _whole(path: Path) -> int:
    """Up to where a file holds whole lines, in bytes; 0 where there is none."""
    try:
        with path.open("rb") as stream:
            end = stream.seek(0, os.SEEK_END)
            while end > 0:
                begin = max(0, end - _BLOCK)
                stream.seek(begin)
                block = stream.read(end - begin)
                if (found := block.rfind(b"\n")) >= 0:
                    return begin + found + 1
                end = begin
    except FileNotFoundError:
        pass
    return 0
