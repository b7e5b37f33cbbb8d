"""Small state files that know when they are damaged, kept twice where they cannot be had again.

A record is its JSON and a line with its generation and the sha256 of both. Two copies lie beside each other, `NAME` and
`NAME.2`, written together: a card that loses one block, or a hand that edits one, loses nothing.

Always true
 1. `load` gives a value that `save` was given, or None; never a mixture and never an altered one.
 2. Of two copies the newer counts. A power cut between them leaves both whole, so it is never taken for damage.
 3. A damaged copy is set aside (`NAME.damaged`) where the folder can be written, and told in `trouble`.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import msgspec

from device_agent import durable, log

T = TypeVar("T")


class _Copy(NamedTuple):
    generation: int
    data: bytes


class Record(Generic[T]):
    """One record of type `kind` at `path`; `trouble` says what was found damaged when it was read last."""

    def __init__(self, path: Path, kind: type[T], *, copies: int = 2) -> None:
        self._kind = kind
        self.paths: Sequence[Path] = (path, path.with_name(f"{path.name}.2"))[:copies]
        self._generation = 0
        self.trouble: tuple[str, ...] = ()

    @property
    def exists(self) -> bool:
        return any(path.is_file() for path in self.paths)

    def load(self) -> T | None:
        """The newest whole copy, the others mended where that can be written; None if there is none."""
        best, damaged, missing = self._found()
        for path in damaged:
            log.trouble("a state file is damaged and set aside", file=path)
            with suppress(OSError):
                durable.set_aside(path)
        if best is None:
            return None
        if damaged or missing:
            with suppress(OSError):
                self.save(best)
        return best

    def peek(self) -> T | None:
        """As `load`, for those who look at the folder of another process: nothing is written."""
        return self._found()[0]

    def _found(self) -> tuple[T | None, list[Path], int]:
        """The newest whole copy, the damaged ones, and how many are missing."""
        best: tuple[int, T] | None = None
        damaged: list[Path] = []
        missing = 0
        for path in self.paths:
            try:
                copy = _unseal(path.read_bytes())
                value = msgspec.json.decode(copy.data, type=self._kind)
            except FileNotFoundError:
                missing += 1
                continue
            except (OSError, ValueError, msgspec.DecodeError):
                damaged.append(path)
                continue
            if best is None or copy.generation > best[0]:
                best = copy.generation, value
        self.trouble = tuple(path.name for path in damaged)
        if best is None:
            return None, damaged, missing
        self._generation = best[0]
        return best[1], damaged, missing

    def save(self, value: T) -> None:
        """Keep `value`, synced, in place of what was there. Raises: OSError."""
        sealed = _seal(_Copy(self._generation + 1, msgspec.json.encode(value)))
        durable.write_all(dict.fromkeys(self.paths, sealed))
        self._generation += 1


def _seal(copy: _Copy) -> bytes:
    return copy.data + f"\n{copy.generation} {_digest(copy)}\n".encode()


def _unseal(sealed: bytes) -> _Copy:
    """Raises: ValueError unless the seal fits."""
    data, line, end = sealed.rsplit(b"\n", 2)
    generation, digest = line.decode("ascii").split(" ")
    copy = _Copy(int(generation), data)
    if end or digest != _digest(copy):
        raise ValueError("its checksum does not fit")
    return copy


def _digest(copy: _Copy) -> str:
    return hashlib.sha256(b"%d\n%b" % (copy.generation, copy.data)).hexdigest()
