"""Bringing a target here from a mirror that names files as the specification does (6.2, 5.7).

Always true
 1. Under a target's name lies a whole file with the signed length and hashes, or none.
 2. What an earlier try received is gone on from; it lies in `.partial`, under a name that the signed length and hashes
    determine, so that no other file is continued with it.
"""

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import quote

import msgspec
from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import TargetFile

from device_agent import durable
from device_agent.blocking import Stopper
from device_agent.tuf.web import Web, below
from device_agent.update.fetch import FetchError, Part, receive

# What most file systems take as one name.
_NAME_BYTES = 200


def local_name(path: str) -> str:
    """One file name for a target's path, no two alike."""
    name = quote(path, safe="")
    if name in (".", "..") or name.startswith(".partial") or len(name) > _NAME_BYTES:
        return hashlib.sha256(path.encode()).hexdigest()
    return name


def bring(web: Web, base_url: str, target: TargetFile, folder: Path, *, is_consistent: bool) -> Path:
    """The target, in `folder`; not asked for if it is there already. Raises: FetchError, OSError."""
    final = folder / local_name(target.path)
    if _is_right(target, final):
        return final
    durable.make_folder(folder)
    parts = folder / ".partial"
    durable.make_folder(parts)
    if target.length == 0:
        durable.write(final, b"")
        return final
    # Any of the signed hashes names the file; the first is as good as another.
    name = target.get_prefixed_paths()[0] if is_consistent else target.path
    url = below(base_url, name)

    def ask(headers: Mapping[str, str]) -> AbstractContextManager[HTTPResponse]:
        return web.get(url, headers)

    key = _key(target)
    for stale in parts.iterdir():
        if not stale.name.startswith(key):
            durable.remove(stale)
    part = Part.find(parts, key, target.length)
    receive(ask, target.path, target.length, part, Stopper())
    if not _is_right(target, part.path):
        durable.remove(part.path)
        raise FetchError(f"{target.path}: altered or damaged on the way, not what was signed")
    durable.rename(part.path, final)
    return final


def _is_right(target: TargetFile, path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            target.verify_length_and_hashes(stream)
    except (OSError, LengthOrHashMismatchError):
        return False
    return True


def _key(target: TargetFile) -> str:
    signed = [target.path, target.length, sorted(target.hashes.items())]
    return hashlib.sha256(msgspec.json.encode(signed)).hexdigest()
