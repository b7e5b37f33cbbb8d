"""Converted artifacts, kept between builds under a key of everything that decides their bytes.

Always true
 1. An entry is whole or absent: it is written beside and renamed.
 2. A key is a sha256 over named parts; two different inputs never share an entry.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit.plain import plain

META = "entry.json"


@dataclass
class Cache:
    """`root` None keeps nothing. `made` counts what had to be converted."""

    root: Path | None
    made: int = 0

    def fetch(
        self, parts: Mapping[str, object], folder: Path, make: Callable[[Path], dict[str, object]]
    ) -> dict[str, object]:
        """Fill the empty `folder` from the cache, or by `make(folder)`, whose result is kept beside the files."""
        entry = None if self.root is None else self.root / key(parts)
        if entry is not None and (entry / META).is_file():
            for file in entry.iterdir():
                if file.name != META:
                    shutil.copyfile(file, folder / file.name)
            stored: dict[str, object] = json.loads((entry / META).read_text(encoding="utf-8"))
            return stored
        self.made += 1
        meta = make(folder)
        if entry is not None:
            _store(entry, folder, meta)
        return meta


def key(parts: Mapping[str, object]) -> str:
    """Hex digest over the parts' names and values (anything that JSON can hold)."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def default_root() -> Path:
    """`$EDGEKIT_CACHE`, or else the user's cache folder (XDG Base Directory Specification)."""
    if own := os.environ.get("EDGEKIT_CACHE"):
        return Path(own) / "artifacts"
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "edgekit" / "artifacts"


def _store(entry: Path, folder: Path, meta: Mapping[str, object]) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".part-", dir=entry.parent))
    try:
        for file in folder.iterdir():
            shutil.copyfile(file, partial / file.name)
        (partial / META).write_text(json.dumps(meta, sort_keys=True, default=plain), encoding="utf-8")
        partial.rename(entry)
    except OSError:
        # Another build stored the same entry first; its bytes are these bytes.
        if not entry.is_dir():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
