"""The limit on what one step may take (`--time-budget`), where no worker process can be ended for it."""

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from edgekit.errors import ToolFailedError

# Seconds that making one candidate, or telling its layers apart, may take.
DEFAULT_S = 600.0


class TooLongError(ToolFailedError):
    """A step was ended at its limit; another build, on a machine less busy, may finish it."""


def too_long(what: str, limit_s: float) -> TooLongError:
    return TooLongError(f"{what} took longer than {limit_s:.0f} s (--time-budget)")


@contextmanager
def ends_after(limit_s: float, what: str) -> Iterator[None]:
    """End what is done inside at the limit, as well as a process can end itself: native code is not interrupted, and an
    alarm that somebody else set is left alone. Raises: TooLongError.
    """
    is_free = signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, signal.SIG_IGN)
    if math.isinf(limit_s) or not is_free or threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # a handler's signature
        raise too_long(what, limit_s)

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
