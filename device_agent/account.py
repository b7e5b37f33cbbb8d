"""The user that workers run as, where the agent may choose one: `edgekit agent install` makes it.

A worker is held by Landlock to its slot and cache (`device_agent.confined`). Where the kernel has no Landlock this user is
what stands between a broken engine and the keys; where it has, both do. The user shares the agent's group and nothing
else: the agent's files are its owner's alone, but for what `let_in` gives to the group.

Always true
 1. Keys, spool, order and identity are open to the agent's user only: `take` sets the mask before anything is written.
 2. No process that the agent starts has a capability: the agent keeps those that it needs to change a user, and hands
    none on.
"""

import ctypes
import grp
import os
import platform
import pwd
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgekit.errors import UsageError

T = TypeVar("T")

# linux/prctl.h, linux/capability.h
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 2, 4
NEEDED = {"CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7}
# setresuid and setresgid by machine (the tables of syscall numbers in Linux); of 32-bit ARM those of 32-bit ids.
_SETRES: dict[str, tuple[int, int]] = {
    "x86_64": (117, 119), "aarch64": (147, 149), "riscv64": (147, 149), "armv7l": (208, 210), "armv6l": (208, 210),
}  # fmt: skip


@dataclass(frozen=True)
class Account:
    """A user of the system; `groups` are those beside its own."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]

    def options(self) -> dict[str, Any]:
        """For subprocess: run as this user. What it writes the agent can remove, as a member of the group."""
        return {"user": self.uid, "group": self.gid, "extra_groups": self.groups, "umask": 0o007}

    def let_in(
        self, hidden: tuple[Path, ...], readable: tuple[Path, ...], writable: tuple[Path, ...]
    ) -> None:
        """Give the group what a worker needs of the agent's folders, and a way to it; nothing to list on the way.

        Done before each start, and never synced: after a power cut it is done again. Raises: OSError.
        """
        readable = tuple(path for path in readable if path.exists())
        writable = tuple(path for path in writable if path.exists())
        for path in (*readable, *writable):
            for folder in path.parents:
                if any(folder.is_relative_to(root) for root in hidden):
                    _add(folder, stat.S_IXGRP)
        for path in readable:
            _add(path, stat.S_IRGRP | (stat.S_IXGRP if path.is_dir() else 0))
            for entry in path.rglob("*"):
                if not entry.is_symlink():
                    _add(entry, stat.S_IRGRP | (stat.S_IXGRP if entry.is_dir() else 0))
        for path in writable:
            _add(path, stat.S_IRWXG | stat.S_ISGID)

    def acting(self, work: Callable[[], T]) -> T:
        """The work's result, done in this thread as this user; the thread must end with it.

        The kernel keeps users by thread; the C library's functions change all of a process, its system calls do not.
        Raises: OSError where this machine's numbers of the calls are not known, or the change is refused.
        """
        calls = _SETRES.get(platform.machine())
        if calls is None:
            raise OSError(f"no system calls are known for {platform.machine()}")
        libc = ctypes.CDLL(None, use_errno=True)
        for call, number in zip(reversed(calls), (self.gid, self.uid), strict=True):
            words = (ctypes.c_long(word) for word in (call, number, number, number))
            if libc.syscall(*words) < 0:
                raise OSError(ctypes.get_errno(), "the thread cannot change its user")
        return work()


def find(name: str) -> Account:
    """The account called `name`, which this process may run workers as.

    Raises: UsageError if there is none, it is not apart from this process, or this process may not.
    """
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise UsageError(f"--worker-user {name}: no such user; 'edgekit agent install' makes one") from None
    if entry.pw_uid in (0, os.geteuid()):
        raise UsageError(f"--worker-user {name}: give a user that is neither root nor the agent's own")
    if entry.pw_gid != os.getegid():
        wanted = grp.getgrgid(os.getegid()).gr_name
        raise UsageError(f"--worker-user {name}: its group must be the agent's, {wanted}")
    if missing := [capability for capability, bit in NEEDED.items() if not held() >> bit & 1]:
        raise UsageError(
            f"--worker-user {name}: to run workers as another user the agent needs {', '.join(missing)};"
            " the unit of 'edgekit agent install' gives them"
        )
    groups = [gid for gid in os.getgrouplist(name, entry.pw_gid) if gid != entry.pw_gid]
    return Account(name, entry.pw_uid, entry.pw_gid, tuple(groups))


def take(name: str) -> Account:
    """`find`, and from now on what this process writes is its own, and what it starts has no capability."""
    account = find(name)
    os.umask(0o077)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    return account


def hand_on() -> None:
    """What this process executes next keeps the capabilities that `take` hands on to nobody: the agent itself, anew.

    They stay inheritable where the service manager made them ambient; elsewhere, as for root, nothing is lost.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for bit in NEEDED.values():
        prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, bit, 0, 0)


def held() -> int:
    """The effective capabilities of this process, as bits."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)


def _add(path: Path, bits: int) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode | bits != mode:
        path.chmod(mode | bits)
