"""Processes that end with the one that started them, however that one ends."""

import ctypes
import os
import signal

# linux/prctl.h
_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """From now on the kernel kills this process when `parent`, which started it, ends; at once if it ended already.

    Call it first, and again after a change of user, which clears it (prctl(2), PR_SET_PDEATHSIG). It follows the
    *thread* that started this process: the supervisor starts all its processes from its main thread.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"PR_SET_PDEATHSIG: {os.strerror(number)}")
    if os.getppid() != parent:
        os._exit(0)
