"""Converted artifacts, kept between builds under a key of everything that decides their bytes.

Always true
 1. An entry is whole or absent: it is written beside and renamed, and its files' digests are checked when it is read.
 2. A key is a sha256 over named parts, EdgeKit's own converting code among them; two different inputs never share an entry.
 3. The cache costs no build: what cannot be read is made again, what cannot be kept is told once and goes on without.
 4. Builds side by side may share one folder.
"""

import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from converters.keep import own_code, room
from converters.source import linking, places
from edgekit.plain import plain

META = "entry.json"
_DIGESTS, _MADE = "files", "made"
_IS_THERE = frozenset({errno.ENOTEMPTY, errno.EEXIST})
Tell = Callable[[str], None]


def _silent(_: str) -> None:
    """Nobody listens."""


@dataclass
class Cache:
    """`root` None keeps nothing. `made` counts what had to be converted. `tell` hears of a cache that cannot be used."""

    root: Path | None
    made: int = 0
    tell: Tell = field(default=_silent, compare=False)
    _has_told: bool = False

    def __getstate__(self) -> dict[str, object]:
        """For another process, which has its own listener."""
        return {**vars(self), "tell": _silent}

    def fetch(
        self, parts: Mapping[str, object], folder: Path, make: Callable[[Path], dict[str, object]]
    ) -> dict[str, object]:
        """Fill the empty `folder` from the cache, or by `make(folder)`, whose result is kept beside the files."""
        entry = None if self.root is None else self.root / key({**parts, "code": own_code.digest()})
        stored = None if entry is None else self._read(entry, folder)
        if stored is not None:
            return stored
        self.made += 1
        meta = make(folder)
        if entry is not None:
            self.keeping(lambda: _store(entry, folder, meta))
        return meta

    def keeping(self, keep: Callable[[], object]) -> None:
        """Keep something and make room for it; a cache that cannot be written is told of, once, and costs nothing else."""
        assert self.root is not None
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            keep()
            room.make_room(self.root, room.limit_bytes())
        except OSError as error:
            self.trouble(error)

    def trouble(self, error: OSError | str) -> None:
        if self._has_told:
            return
        self._has_told = True
        what = error if isinstance(error, str) else error.strerror or str(error)
        self.tell(
            f"the cache in {self.root} cannot be used ({what}); the build goes on without (--cache, --no-cache)"
        )

    def _read(self, entry: Path, folder: Path) -> dict[str, object] | None:
        """What is kept there, copied into the folder; None if nothing is, or if it is damaged."""
        try:
            if not entry.is_dir():
                return None
            with room.lock(entry.parent, alone=False):
                return _copied_out(entry, folder)
        except FileNotFoundError:
            # Removed since, by a build or a person that made room.
            found = None
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.tell(f"a cache entry is damaged and made anew ({entry.name[:12]}…: {error})")
            _discard(entry)
            found = None
        for left in folder.iterdir():
            left.unlink()
        return found


def key(parts: Mapping[str, object]) -> str:
    """Hex digest over the parts' names and values (anything that JSON can hold)."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def default_root() -> Path:
    """`$EDGEKIT_CACHE`, or else the user's cache folder (XDG Base Directory Specification)."""
    return places.cache("artifacts")


def place(partial: Path, entry: Path) -> None:
    """Rename a finished folder to its entry; one that another build kept first stays. Raises: OSError."""
    try:
        partial.rename(entry)
    except OSError as error:
        # Asked of the error, not of the folder: who makes room may have removed the other build's entry since.
        if error.errno not in _IS_THERE:
            raise


def _copied_out(entry: Path, folder: Path) -> dict[str, object]:
    """Raises: OSError; ValueError, KeyError or TypeError for an entry that is not as it was written."""
    document = json.loads((entry / META).read_text(encoding="utf-8"))
    for name, digest in document[_DIGESTS].items():
        linking.put(entry / name, folder / name)
        if _digest(folder / name) != digest:
            raise ValueError(f"{name} is not what was kept")
    room.touch(entry)
    made: dict[str, object] = document[_MADE]
    return made


def _store(entry: Path, folder: Path, meta: Mapping[str, object]) -> None:
    partial = Path(tempfile.mkdtemp(prefix=".part-", dir=entry.parent))
    try:
        for file in folder.iterdir():
            linking.put(file, partial / file.name)
        digests = {file.name: _digest(file) for file in folder.iterdir()}
        document = json.dumps({_MADE: meta, _DIGESTS: digests}, sort_keys=True, default=plain)
        (partial / META).write_text(document, encoding="utf-8")
        place(partial, entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _discard(entry: Path) -> None:
    """Out of the way in one step, so that another reader sees it whole or not at all."""
    try:
        aside = Path(tempfile.mkdtemp(prefix=".part-", dir=entry.parent))
        entry.rename(aside / entry.name)
    except OSError:
        return
    shutil.rmtree(aside, ignore_errors=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
