"""A process that runs a bundle or reads a source, held to what that needs: `python -m device_agent.confined …` does that
to itself and then becomes one of `MODULES`.

A bundle is signed, but an engine that reads one is a large native library, and what it does with a file that was made to
break it nobody can promise. So it gets
 - no file of the agent's but its own slot and cache: not the keys, the spool, the order, another model; nothing to
   write but the cache and the device nodes; no program to execute;
 - no TCP socket of its own to bind or connect, no abstract socket, no signal to a process that is not its own
   (Landlock, kernel.org/doc/html/latest/userspace-api/landlock.html; what the kernel's version knows of it);
 - no capability, and none to be had by executing something (capabilities(7), PR_SET_NO_NEW_PRIVS);
 - a source besides: the ports, files and folders that `agent.toml` names for it (`sources/access.py`);
 - where the agent was given one, a user of its own (`device_agent.account`), changed to before any of this;
 - a bound on its memory, no core dump, and the first place when the kernel must end something for want of memory.

Landlock binds the calling thread and those it makes later. So this happens before anything is imported that starts
threads, which numpy does.
"""

import argparse
import ctypes
import os
import resource
import runpy
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from device_agent.account import Account

MODULES = (
    "device_agent.worker",
    "device_agent.update.selftest",
    "device_agent.update.patching",
    "device_agent.commands.timing",
    "device_agent.sources.process",
    "device_agent.shadow.process",
)

# linux/landlock.h; the numbers of the calls are the same on every architecture (since Linux 5.13).
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ONLY_VERSION = 1
_RULE_PATH_BENEATH, _RULE_NET_PORT = 1, 2
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
# Remove and make entries of every kind: bits 4 to 12.
_CHANGE_FOLDER = sum(1 << bit for bit in range(4, 13))
# Rights, and the version of Landlock that brought them.
_LINKING, _TRUNCATING = (1 << 13, 2), (1 << 14, 3)
_TCP, _SCOPES = (0b11, 4), (0b11, 6)
_CONNECT_TCP = 1 << 1
_READ = _READ_FILE | _READ_DIR
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATING[0]

# linux/prctl.h, linux/capability.h
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522
_FIRST_TO_GO = "600"


@dataclass(frozen=True)
class Bounds:
    """What one process may. `hidden` is the agent's own; of that, `readable` and `writable` are given back.

    `memory_bytes` bounds the private memory that can be written (RLIMIT_DATA, getrlimit(2)). `account` is whom it runs as;
    None for the agent's own user. `ports` may be connected to by TCP.
    """

    hidden: tuple[Path, ...]
    readable: tuple[Path, ...]
    writable: tuple[Path, ...]
    memory_bytes: int
    account: "Account | None" = None
    ports: tuple[int, ...] = ()


def command(module: str, bounds: Bounds, *words: str) -> list[str]:
    """The words that start `module` within `bounds`."""
    limits = ["--memory", str(bounds.memory_bytes)]
    for flag, paths in (("--hide", bounds.hidden), ("--read", bounds.readable), ("--write", bounds.writable)):
        limits += [word for path in paths for word in (flag, str(path))]
    limits += [word for port in bounds.ports for word in ("--port", str(port))]
    return [sys.executable, "-m", "device_agent.confined", *limits, module, *words]


def options(bounds: Bounds) -> dict[str, Any]:
    """What `subprocess` is to start it with, and its user let in to what it may use. Blocks. Raises: OSError."""
    started: dict[str, Any] = {"stdin": subprocess.DEVNULL, "env": environment()}
    if bounds.account is not None:
        bounds.account.let_in(bounds.hidden, bounds.readable, bounds.writable)
        started |= bounds.account.options()
    return started


def environment() -> dict[str, str]:
    """For processes that load an engine: this one's, without the ways to other machines. Nothing in them asks for one."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy")  # http, https, all, ftp, no
    }


def version() -> int:
    """Of Landlock in this kernel; 0 where it has none, or has it switched off."""
    return max(0, _syscall(_CREATE_RULESET, None, 0, _ONLY_VERSION))


def confine(bounds: Bounds) -> None:
    """Hold this process, which has one thread, to `bounds` for good. Raises: OSError."""
    # The kernel's choice among processes of one size; raising one's own is always allowed.
    Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO, encoding="ascii")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (bounds.memory_bytes, bounds.memory_bytes))
    _check(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    if (known := version()) > 0:
        _landlock(bounds, known)
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc().capset(header, bytes(24)), "capset")


def _landlock(bounds: Bounds, known: int) -> None:
    files = _EXECUTE | _WRITE_FILE | _READ | _CHANGE_FOLDER
    files |= sum(right for right, since in (_LINKING, _TRUNCATING) if since <= known)
    network, scopes = (right if since <= known else 0 for right, since in (_TCP, _SCOPES))
    attributes = struct.pack("QQQ", files, network, scopes)
    size = 24 if scopes else 16 if network else 8
    rules = _check(_syscall(_CREATE_RULESET, attributes, size, 0), "Landlock")
    try:
        hidden = frozenset(path.resolve() for path in bounds.hidden)
        for path in _around(Path("/"), hidden):
            _allow(rules, path, _READ)
        for path in bounds.readable:
            _allow(rules, path, _READ)
        for path in (Path("/dev"), *bounds.writable):
            _allow(rules, path, files & ~_EXECUTE)
        for port in bounds.ports if network else ():
            rule = struct.pack("=QQ", _CONNECT_TCP, port)
            _check(_syscall(_ADD_RULE, rules, _RULE_NET_PORT, rule, 0), f"port {port}")
        _check(_syscall(_RESTRICT_SELF, rules, 0), "Landlock")
    finally:
        os.close(rules)


def _around(folder: Path, hidden: frozenset[Path]) -> Iterator[Path]:
    """The fewest folders below `folder` that hold no hidden path, and together all other folders but those above one.

    Folders alone: a rule keeps what it names from being freed, so that the space of a log beside the state folder would
    not come back when it is deleted. No links: what they name is elsewhere.
    """
    if folder in hidden:
        return
    if not any(path.is_relative_to(folder) for path in hidden):
        yield folder
        return
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            yield from _around(entry, hidden)


def _allow(rules: int, path: Path, rights: int) -> None:
    """What is not there, or may not be opened, needs no right."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not path.is_dir():
            rights &= _OF_FILES
        _check(
            _syscall(_ADD_RULE, rules, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, place), 0), str(path)
        )
    finally:
        os.close(place)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: object) -> int:
    words = (ctypes.c_long(word) if isinstance(word, int) else word for word in arguments)
    return int(_libc().syscall(ctypes.c_long(number), *words))


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _paths(given: Iterable[Path] | None) -> tuple[Path, ...]:
    return tuple(given or ())


def main() -> None:
    parser = argparse.ArgumentParser(description="A confined process; started by 'edgekit agent run'.")
    parser.add_argument("--memory", type=int, required=True, help="bytes of memory that it may write")
    parser.add_argument("--hide", type=Path, action="append", help="what is the agent's own")
    parser.add_argument("--read", type=Path, action="append", help="what of that may be read all the same")
    parser.add_argument("--write", type=Path, action="append", help="what may be written")
    parser.add_argument("--port", type=int, action="append", help="a port that it may connect to")
    parser.add_argument("module", choices=MODULES)
    parser.add_argument("words", nargs=argparse.REMAINDER)
    chosen = parser.parse_args()
    ports = tuple(chosen.port or ())
    hidden, readable, writable = _paths(chosen.hide), _paths(chosen.read), _paths(chosen.write)
    confine(Bounds(hidden, readable, writable, memory_bytes=chosen.memory, ports=ports))
    sys.argv[1:] = chosen.words
    runpy.run_module(chosen.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
