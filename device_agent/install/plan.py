"""Which steps lead from what a board has to what it should have. Pure: what is there is given.

Always true
 1. What is there already and right is not touched: a second install changes nothing and restarts nothing.
 2. Drop-ins, the enrolment file and the state are the user's: an install leaves them, an uninstall too unless `purge`.
 3. Nobody loses a user or a folder while the service still runs: it is ended first.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath

import msgspec

from device_agent.install import files
from device_agent.install.files import Wanted

# What lies at a path: its bytes, or None for nothing (or for something that is no file, which only removal meets).
Seen = Mapping[PurePosixPath, bytes | None]


class Write(msgspec.Struct, frozen=True, tag=True):
    """A file, whole or not at all. `was` is "created" or "changed"."""

    path: str
    data: bytes
    mode: int
    was: str


class Keep(msgspec.Struct, frozen=True, tag=True):
    """A file that is right as it is."""

    path: str


class Remove(msgspec.Struct, frozen=True, tag=True):
    """A file or a whole folder."""

    path: str


class Link(msgspec.Struct, frozen=True, tag=True):
    """In a tree, what `systemctl enable` would make."""

    path: str
    target: str


class Run(msgspec.Struct, frozen=True, tag=True):
    """A program of the system. In a tree, `can_wait` says that the first boot does the same."""

    words: tuple[str, ...]
    can_wait: bool = False


Step = Write | Keep | Remove | Link | Run


def install(wanted: Wanted, seen: Seen, *, root: str, starts: bool) -> list[Step]:
    """`root` is the tree that is installed into; empty for the running system, whose service is then brought up to date."""
    writes = [_file(path, text.encode(), 0o644, seen) for path, text in files.texts(wanted).items()]
    if wanted.enrolment is not None:
        writes.append(_file(files.ENROLMENT, wanted.enrolment, 0o600, seen))
    changed = {step.path for step in writes if isinstance(step, Write)}
    into = (f"--root={root}",) if root else ()
    steps: list[Step] = [*writes]
    steps.append(Run(("systemd-sysusers", *into, files.USERS.name), can_wait=True))
    steps.append(Run(("systemd-tmpfiles", *into, "--create", files.FOLDERS.name), can_wait=True))
    if root:
        if starts:
            steps.append(Link(str(files.WANTED), str(files.UNIT)))
        return steps
    if str(files.UNIT) in changed:
        steps.append(Run(("systemctl", "daemon-reload")))
    if str(files.JOURNAL) in changed:
        steps.append(Run(("systemctl", "try-restart", "systemd-journald")))
    if starts:
        steps.append(Run(("systemctl", "enable", files.SERVICE)))
        steps.append(Run(("systemctl", "restart" if changed else "start", files.SERVICE)))
    elif changed:
        # An agent that runs goes on with the new file; one that does not stays as it is.
        steps.append(Run(("systemctl", "try-restart", files.SERVICE)))
    return steps


def uninstall(seen: Seen, *, root: str, purge: bool) -> list[Step]:
    """`purge` takes the state, the settings, the drop-ins and the users too: the device's identity is then gone."""
    is_there = {path for path, data in seen.items() if data is not None}
    steps: list[Step] = []
    if not root and files.UNIT in is_there:
        steps.append(Run(("systemctl", "disable", "--now", files.SERVICE)))
    ours = (files.WANTED, files.UNIT, files.USERS, files.FOLDERS, files.JOURNAL)
    theirs = (files.DROP_INS, files.SETTINGS, files.RUNTIME, files.STATE)
    steps += [Remove(str(path)) for path in (*ours, *(theirs if purge else ())) if path in is_there]
    if purge:
        prefix = ("--prefix", root) if root else ()
        steps += [Run(("userdel", *prefix, name)) for name in (files.WORKER, files.AGENT)]
    if not root and files.UNIT in is_there:
        steps.append(Run(("systemctl", "daemon-reload")))
    return steps


def looked_at(wanted: Wanted | None = None) -> tuple[PurePosixPath, ...]:
    """The paths that a plan needs to know of."""
    named = (*files.texts(wanted or Wanted()), files.JOURNAL, files.ENROLMENT, files.WANTED, files.DROP_INS)
    return tuple(dict.fromkeys((*named, files.SETTINGS, files.RUNTIME, files.STATE)))


def _file(path: PurePosixPath, data: bytes, mode: int, seen: Seen) -> Step:
    there = seen.get(path)
    if there == data:
        return Keep(str(path))
    return Write(str(path), data, mode, "created" if there is None else "changed")
