"""A digest of EdgeKit's own code that decides an artifact's bytes: a mended rewrite must not be hidden by the cache."""

import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import converters
import edgekit

# What turns a source and its data into an artifact, and what it stands on. What judges, measures, tells and writes bundles
# comes after the artifact and is not among them.
_ROOMS = ("source", "data", "graph", "quantize", "recipes", "backends", "work")
_SHARED = ("engines", "transforms")


def files() -> Iterator[Path]:
    """Of both packages, in an order of their own."""
    root = Path(str(converters.__file__)).parent
    for room in _ROOMS:
        yield from sorted((root / room).rglob("*.py"))
    root = Path(str(edgekit.__file__)).parent
    for name in _SHARED:
        yield from sorted((root / name).rglob("*.py"))
    yield from sorted(root.glob("*.py"))


@cache
def digest() -> str:
    """Once a process: a build is not changed while it runs."""
    found = hashlib.sha256()
    for path in files():
        found.update(f"{path.parent.name}/{path.name}\0".encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()
