"""The only place that writes what must survive a power cut.

Always true
 1. A file that `write` put in place is either the old one or the whole new one, never a mixture.
 2. When a function here returns, its effect is on the medium: data synced first, then the name, then the folder.
    Not so `write_unsynced`, what is called with `sync=False`, and removals: what must stay gone is followed by
    `sync_folder`, and everything else that comes back is found and removed again.
 3. Every change of the disk is announced to the watcher before it is made. Tests use that to record the operations of
    a whole update, to cut the power between any two, and to let each of them fail.

Called from the storage thread (`device_agent.storage`); an fsync on a worn card takes seconds.
"""

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

Kind = Literal[
    "create", "cut", "write", "sync", "rename", "symlink", "unlink", "mkdir", "rmdir", "sync-folder"
]


class Operation(NamedTuple):
    """One change of the disk. `detail`: data written, length cut to, new name, or what a link names."""

    kind: Kind
    path: Path
    detail: bytes | int | str | Path = b""


Watcher = Callable[[Operation], None]
_watchers: list[Watcher] = []


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Show `watcher` every operation before it is made; what it raises, the operation raises."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def _about_to(kind: Kind, path: Path, detail: bytes | int | str | Path = b"") -> None:
    for watcher in _watchers:
        watcher(Operation(kind, path, detail))


class Writer:
    """A file being written at `position`; made by `writing`."""

    def __init__(self, path: Path, descriptor: int, position: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self.position = position

    def write(self, data: bytes | memoryview) -> None:
        left = memoryview(data)
        _about_to("write", self._path, bytes(left))
        while left:
            done = os.write(self._descriptor, left)
            self.position += done
            left = left[done:]

    def sync(self) -> None:
        """Everything written so far is on the medium."""
        _about_to("sync", self._path)
        os.fsync(self._descriptor)

    def adopt(self, target: Path) -> None:
        """Sync, and only then give the file another name in the same folder; writing goes on."""
        self.sync()
        rename(self._path, target)
        self._path = target


@contextmanager
def writing(path: Path, *, at: int = 0, mode: int = 0o600, sync: bool = True) -> Iterator[Writer]:
    """Write `path` from `at` on, cutting off what lies behind; synced at the end unless `sync` is false.

    The file's name is on the medium only after its folder was synced.
    """
    if at == 0:
        _about_to("create", path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    else:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if at and os.fstat(descriptor).st_size != at:
            _about_to("cut", path, at)
            os.ftruncate(descriptor, at)
        os.lseek(descriptor, at, os.SEEK_SET)
        writer = Writer(path, descriptor, at)
        yield writer
        if sync:
            writer.sync()
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make renames, creations and removals inside `folder` permanent."""
    _about_to("sync-folder", folder)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = 0o700, *, sync: bool = True) -> None:
    """Create `folder` and its parents, each entry synced unless `sync` is false; an existing one is left as it is."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        _about_to("mkdir", path)
        path.mkdir(mode=mode, exist_ok=True)
        if sync:
            sync_folder(path.parent)


def write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace `path` by `data`, whole or not at all."""
    write_all({path: data}, mode)


def write_all(files: Mapping[Path, bytes], mode: int = 0o600) -> None:
    """Replace files of one folder, each whole or not at all, with one sync of the folder for all."""
    try:
        for path, data in files.items():
            with writing(_partial(path), mode=mode) as sink:
                sink.write(data)
        for path in files:
            _rename(_partial(path), path)
    except OSError:
        # A full disk gets back what the attempt took.
        for path in files:
            with suppress(OSError):
                _unlink(_partial(path))
        raise
    sync_folder(next(iter(files)).parent)


def write_unsynced(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace `path` without waiting for the medium: after a power cut it may hold anything. For what is made anew."""
    with writing(_partial(path), mode=mode, sync=False) as sink:
        sink.write(data)
    _rename(_partial(path), path)


def rename(source: Path, target: Path) -> None:
    """Give a file whose data is synced another name in the same folder."""
    _rename(source, target)
    sync_folder(target.parent)


def move(source: Path, target: Path) -> None:
    """Take a file to another folder of the same filesystem. Cut off in between it is in one of them, or in both."""
    _rename(source, target)
    sync_folder(target.parent)
    sync_folder(source.parent)


def set_aside(path: Path) -> None:
    """Move a damaged file out of the way, over the one set aside before: `NAME.damaged`. Not synced: it is found again."""
    _rename(path, path.with_name(f"{path.name}.damaged"))


def point(link: Path, target: str) -> None:
    """Make the symbolic link `link` name `target`, atomically replacing what it named before."""
    partial = _partial(link)
    _unlink(partial)
    _about_to("symlink", partial, target)
    partial.symlink_to(target)
    _rename(partial, link)
    sync_folder(link.parent)


def remove(path: Path) -> bool:
    """Remove a file, link or tree; whether there was one. Not synced: after a power cut it may be there again."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        _remove_tree(path)
    else:
        _unlink(path)
    return True


def sync_tree(folder: Path) -> None:
    """Sync every folder below and including `folder`; the files in them were synced by their writer."""
    for path, _folders, _files in os.walk(folder):
        sync_folder(Path(path))


def _remove_tree(folder: Path) -> None:
    for place, folders, files in os.walk(folder, topdown=False):
        for name in files:
            _unlink(Path(place, name))
        for name in folders:
            below = Path(place, name)
            if below.is_symlink():
                _unlink(below)
            else:
                _rmdir(below)
    _rmdir(folder)


def _rmdir(folder: Path) -> None:
    _about_to("rmdir", folder)
    folder.rmdir()


def _unlink(path: Path) -> None:
    if not path.is_symlink() and not path.exists():
        return
    _about_to("unlink", path)
    path.unlink(missing_ok=True)


def _rename(source: Path, target: Path) -> None:
    _about_to("rename", source, target)
    source.replace(target)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")
