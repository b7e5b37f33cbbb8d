"""Ctrl-C that is not lost inside native code.

Some libraries (NNCF and OpenVINO's bindings among them) turn a KeyboardInterrupt that reaches their callbacks into an
ordinary exception. The handler here remembers that the person asked, so that whoever catches an exception can tell.
"""

import signal
from types import FrameType

_requested = False


def install() -> None:
    """Take over SIGINT where Python's own handler stands; a service that set its own keeps it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _handle)


def _handle(number: int, frame: FrameType | None) -> None:
    global _requested  # noqa: PLW0603  # a signal is the process's, and so is this
    _requested = True
    signal.default_int_handler(number, frame)


def was_requested() -> bool:
    return _requested


def check() -> None:
    """Raise KeyboardInterrupt if the person asked to stop; call it before treating an exception as a tool's."""
    if _requested:
        raise KeyboardInterrupt
