"""Who is owed an answer: a byte for each descriptor of a worker, in memory that it shares with the supervisor.

So when a worker does not answer any more, its clients still get what can be given them without a lie: the supervisor
takes their connections over from the stopped process. One that is `IDLE` goes to the next worker, with whatever has
arrived on it meanwhile; one that is `OWED` gets an error; where an answer may have begun (0), nothing can be said.
"""

import contextlib
import ctypes
import mmap
import os
import signal
import socket
import threading

from device_agent.account import Account

# Beyond as many descriptors nothing is noted, and the client sees its connection end.
SIZE = 64 * 1024
# The same number on every architecture (asm-generic/unistd.h, since Linux 5.6).
_PIDFD_GETFD = 438
# Between two requests, with nothing read of the next, and every byte of the last answer with the kernel.
IDLE = 1
# A request is under way, and nothing of its answer has left.
OWED = 2


class Owed:
    """One process's board; without a descriptor of shared memory it is nobody else's."""

    def __init__(self, descriptor: int | None = None) -> None:
        self._bytes = bytearray(SIZE) if descriptor is None else mmap.mmap(descriptor, SIZE)

    def set(self, descriptor: int, state: int) -> None:
        """`IDLE`, `OWED` or 0."""
        if 0 <= descriptor < SIZE:
            self._bytes[descriptor] = state

    def noted(self) -> list[tuple[int, int]]:
        """Descriptors and their states."""
        return [(number, state) for number, state in enumerate(bytes(self._bytes)) if state]

    def close(self) -> None:
        if isinstance(self._bytes, mmap.mmap):
            self._bytes.close()


def make_shared() -> int:
    """A descriptor for a board that two processes share. Raises: OSError."""
    descriptor = os.memfd_create("owed", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, SIZE)
    return descriptor


def taken_over(pid: int, board: Owed, account: Account | None = None) -> list[tuple[socket.socket, int]]:
    """The connections of process `pid` and their states; the process is stopped and must be ended.

    The process runs as `account`, or as this process's own user. Empty where the kernel or a sandbox does not allow it: then the clients see their connections end.
    """
    found: list[tuple[socket.socket, int]] = []
    with contextlib.suppress(OSError):
        process = os.pidfd_open(pid)
        try:
            # It must not wake up and begin an answer of its own.
            os.kill(pid, signal.SIGSTOP)
            if account is None:
                _copy(process, board, found)
            else:
                # Only a process of the same user may be looked into (ptrace(2), PTRACE_MODE_ATTACH).
                thread = threading.Thread(target=_copy_as, args=(account, process, board, found))
                thread.start()
                thread.join()
        finally:
            os.close(process)
    return found


def _copy_as(account: Account, process: int, board: Owed, found: list[tuple[socket.socket, int]]) -> None:
    with contextlib.suppress(OSError):
        account.acting(lambda: _copy(process, board, found))


def _copy(process: int, board: Owed, found: list[tuple[socket.socket, int]]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for number, state in board.noted():
        copy = libc.syscall(_PIDFD_GETFD, process, number, 0)
        if copy >= 0:
            found.append((socket.socket(fileno=copy), state))
