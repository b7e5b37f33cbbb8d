"""Runs a program for as long as this process's standard input stays open: `python -m fleet.server.keeper PROGRAM ARG…`.

The parent holds the other end of the pipe. SIGHUP is passed on.

Always true
 1. However the parent ends, even by SIGKILL, the pipe closes and the program is stopped.
 2. However this process ends, even by SIGKILL, Linux ends the program (PR_SET_PDEATHSIG, prctl(2)). The kernel forgets
    that when the program changes its user, so mosquitto's configuration says that it must not (`broker_config`).
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_GRACE_S = 5.0


def main() -> None:
    child = subprocess.Popen(
        sys.argv[1:],
        stdin=subprocess.DEVNULL,
        preexec_fn=_dies_with(os.getpid()),  # noqa: PLW1509  # this process has one thread as yet
    )
    signal.signal(signal.SIGHUP, lambda *_: child.send_signal(signal.SIGHUP))

    def stop_with_parent() -> None:
        os.read(0, 1)
        child.terminate()
        threading.Event().wait(_GRACE_S)
        child.kill()

    threading.Thread(target=stop_with_parent, daemon=True).start()
    sys.exit(child.wait())


def _dies_with(parent: int) -> Callable[[], None] | None:
    """What the child does before it becomes the program; None where the system cannot do it."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask() -> None:
        # Nothing rests on what mosquitto would write on its way out, and SIGKILL never hangs.
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:  # it died before it was asked
            os.kill(os.getpid(), signal.SIGKILL)

    return ask


if __name__ == "__main__":
    main()
