"""Engines and converters without their chatter.

Always true
 1. Whatever ends the call, standard output and error are what they were before.
 2. Of a converter, what it raises says enough. Of an engine that a person loads, what it said before it failed is shown
    after all (`hushed`).
"""

import atexit
import io
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TypeVar

from edgekit.errors import EdgeKitError

Result = TypeVar("Result")
# OpenVINO (2026.4) tells where in its own code it was before it tells what was wrong.
_PLACE = re.compile(r"Exception from \S+:\d+:$|Check '.*' failed at \S+:\d+:$|While validating ")


def quietly(call: Callable[[], Result]) -> Result:
    """Call with warnings, logs, standard output and error swallowed, those of native code too."""
    with (
        warnings.catch_warnings(),
        _descriptors(),
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            return call()
        finally:
            logging.disable(disabled)


def first_line(error: Exception) -> str:
    """A tool's error as one short line, the first that says what happened; our own in full."""
    if isinstance(error, EdgeKitError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not _PLACE.match(line)] or lines
    return f"{type(error).__name__}: {said[0] if said else ''}"[:300]


@contextmanager
def hushed() -> Iterator[None]:
    """Standard error swallowed, native code's too; where what is done inside raises, it is written after all."""
    if sys.stderr is None:  # it was closed when the program began
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as sink:
        kept = os.dup(2)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            os.dup2(kept, 2)
            sink.seek(0)
            os.write(2, sink.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


def hush_the_end() -> None:
    """Nothing is written to standard error once the interpreter has ended: LiteRT's own destructors announce themselves
    there. For a command, whose last words are written by then.
    """
    atexit.register(_hush_for_good)


def _hush_for_good() -> None:
    if sys.stderr is None:
        return
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


@contextmanager
def _descriptors() -> Iterator[None]:
    """Native libraries write to the descriptors themselves."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as sink:
        kept = [(number, os.dup(number)) for number in (1, 2)]
        try:
            for number, _ in kept:
                os.dup2(sink.fileno(), number)
            yield
        finally:
            for number, copy in kept:
                os.dup2(copy, number)
                os.close(copy)
