"""A process that works only when nobody else has anything to do."""

import contextlib
import os

_LEAST = 19


def be_idle() -> None:
    """Of the process and what it starts, from now on (sched(7), SCHED_IDLE; its nice value where there is no such policy)."""
    os.setpriority(os.PRIO_PROCESS, 0, _LEAST)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
