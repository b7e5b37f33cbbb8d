"""Metadata as static files, so that any web server, cache or bucket can give them out.

Always true
 1. A file is written whole, synced, and only then named; the one that leads to the others (timestamp) comes last.
 2. A file whose name carries a version never changes.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from fleet.tuf.documents import FLEET, ROOT, TIMESTAMP


def name(role: str, version: int) -> str:
    """The file name of a version, with consistent snapshots."""
    return f"{role}.json" if role == TIMESTAMP else f"{version}.{role}.json"


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files in the order given. Raises: OSError."""
    # It lies in a home that is for its owner alone; who gives the files out otherwise copies them.
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for file, data in files.items():
        path = folder / file
        if file[0].isdigit() and path.is_file() and path.read_bytes() == data:
            continue
        partial = folder / f".{file}.new"
        with partial.open("wb") as sink:
            sink.write(data)
            sink.flush()
            os.fsync(sink.fileno())
        partial.replace(path)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def versions(folder: Path, role: str) -> list[int]:
    """Which versions of a role lie there, ascending."""
    found = []
    for path in folder.glob(f"*.{role}.json"):
        number = path.name.removesuffix(f".{role}.json")
        if number.isdigit():
            found.append(int(number))
    return sorted(found)


def newest(folder: Path, role: str) -> bytes | None:
    found = versions(folder, role)
    return (folder / name(role, found[-1])).read_bytes() if found else None


def roots(folder: Path) -> list[bytes]:
    return [(folder / name(ROOT, version)).read_bytes() for version in versions(folder, ROOT)]


def delegated(folder: Path) -> list[str]:
    """The names of the roles there that targets delegate to: the models' and the fleet's."""
    names = {path.name.partition(".")[2].removesuffix(".json") for path in folder.glob("[0-9]*.*.json")}
    return sorted(role for role in names if role == FLEET or role.startswith("model."))
