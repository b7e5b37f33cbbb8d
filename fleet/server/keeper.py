"""Runs a program for as long as this process's standard input stays open: `python -m fleet.server.keeper PROGRAM ARG…`.

The parent holds the other end of the pipe. However the parent ends, even by SIGKILL, the pipe closes and the program
is stopped. SIGHUP is passed on. (PR_SET_PDEATHSIG would not do: the kernel clears it when mosquitto gives up root.)
"""

import os
import signal
import subprocess
import sys
import threading


def main() -> None:
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGHUP, lambda *_: child.send_signal(signal.SIGHUP))

    def stop_with_parent() -> None:
        os.read(0, 1)
        child.terminate()

    threading.Thread(target=stop_with_parent, daemon=True).start()
    sys.exit(child.wait())


if __name__ == "__main__":
    main()
