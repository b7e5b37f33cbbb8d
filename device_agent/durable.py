"""The only place that writes what must survive a power cut.

Always true
 1. A file that `write` or `adopt` put in place is either the old one or the whole new one, never a mixture.
 2. When a function here returns, its effect is on the medium: data synced first, then the name, then the folder.
"""

import os
import shutil
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make renames, creations and removals inside `folder` permanent."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = 0o700) -> None:
    """Create `folder` and its parents, each entry synced; an existing one is left as it is."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=mode, exist_ok=True)
        sync_folder(path.parent)


def write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace `path` by `data`, whole or not at all."""
    partial = path.with_name(f".{path.name}.new")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def adopt(source: Path, target: Path) -> None:
    """Give a finished file its final name: sync its data, rename, sync the folder."""
    descriptor = os.open(source, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    source.replace(target)
    sync_folder(target.parent)


def point(link: Path, target: str) -> None:
    """Make the symbolic link `link` name `target`, atomically replacing what it named before."""
    partial = link.with_name(f".{link.name}.new")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    partial.replace(link)
    sync_folder(link.parent)


def remove(path: Path) -> None:
    """Remove a file, link or tree; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if path.parent.is_dir():
        sync_folder(path.parent)


def sync_tree(folder: Path) -> None:
    """Sync every folder below and including `folder`; the files in them were synced by their writer."""
    for path, _folders, _files in os.walk(folder):
        sync_folder(Path(path))
