"""Ctrl-C and SIGTERM that are not lost inside native code.

Some libraries (NNCF and OpenVINO's bindings among them) turn a KeyboardInterrupt that reaches their callbacks into an
ordinary exception. The handler here remembers that the process was asked to stop, so that whoever catches an exception can
tell. SIGTERM unwinds like Ctrl-C: what was made for the time of a command is removed, and its processes are ended.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# The signal that asked to stop; 0 while none did.
_requested = 0
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def install() -> None:
    """Take over SIGINT and SIGTERM where Python's own handlers stand; a service that set its own keeps them."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _handle)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _handle)


@contextmanager
def heeded() -> Iterator[None]:
    """Ctrl-C remembered while a library's call lasts, and forgotten after it: the next call begins anew. Threads other
    than the main one get no signals, and nothing is done there.
    """
    global _requested  # noqa: PLW0603  # a signal is the process's, and so is this
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    signal.signal(signal.SIGINT, _handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _requested = 0


def _handle(number: int, frame: FrameType | None) -> None:
    global _requested  # noqa: PLW0603  # a signal is the process's, and so is this
    _requested = number
    signal.default_int_handler(number, frame)


def was_requested() -> bool:
    return _requested != 0


def exit_code() -> int:
    """By the shell's convention: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + (_requested or signal.SIGINT)


def word() -> str:
    return _WORDS.get(signal.Signals(_requested or signal.SIGINT), "interrupted")


def check() -> None:
    """Raise KeyboardInterrupt if the process was asked to stop; call it before treating an exception as a tool's."""
    if _requested:
        raise KeyboardInterrupt
