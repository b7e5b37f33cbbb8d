"""What a person sees while a build runs: a line for each step as it begins, and below them how far all of it is.

Into a pipe go the lines alone.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import Progress, TextColumn

from converters.work.steps import Steps
from edgekit import interrupt
from edgekit.cli import render

BAR = 16
LEFT = TextColumn("{task.fields[left]}", style="dim")
# What spinner, bar, counts, clock and estimate take of a line.
_TAKEN = 54


class Silent:
    """Shows nothing."""

    def __init__(self) -> None:
        self.steps = Steps()

    def tell(self, message: str) -> None:  # noqa: ARG002  # a watcher's signature
        interrupt.check()


class Screen:
    """Shows a build's messages and steps on a progress display."""

    def __init__(self, progress: Progress) -> None:
        self.steps = Steps(self._moved)
        self._progress = progress
        self._began = time.monotonic()
        self._message = "reading the project"
        self._task = progress.add_task(self._message, total=None, left="")

    def tell(self, message: str) -> None:
        """The step that begins, or a word in between; whole and on one line where nobody watches."""
        # Where native code swallowed a Ctrl-C, the build ends at its next step.
        interrupt.check()
        self._message = message
        self._moved(self.steps)
        told = f"{self._elapsed_s:6.1f} s  {message}"
        self._progress.console.print(
            told, style="dim", highlight=False, markup=False, emoji=False, soft_wrap=True
        )

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._began

    def _moved(self, steps: Steps) -> None:
        told = describe(steps, self._message)
        room = max(self._progress.console.width - _TAKEN, 20)
        # A display that is wider than its terminal leaves torn lines behind.
        told = told if len(told) <= room else f"{told[: room - 1]}\N{HORIZONTAL ELLIPSIS}"
        self._progress.update(
            self._task,
            description=told.replace("[", r"\["),
            total=steps.total or None,
            completed=steps.done,
            left=estimate(steps, self._elapsed_s),
        )


@contextmanager
def watched() -> Iterator[Screen]:
    """On standard error for as long as it lasts."""
    with render.progress(LEFT, bar_width=BAR) as progress:
        yield Screen(progress)


def describe(steps: Steps, message: str) -> str:
    """`raspberry-pi-5: converting litert/fp32`."""
    target = f"{steps.target}: " if steps.target and not message.startswith(f"{steps.target}:") else ""
    return f"{target}{message}"


def estimate(steps: Steps, elapsed_s: float) -> str:
    """`about 40 s left`; empty while nothing can be said."""
    left = steps.left_s(elapsed_s)
    return "" if left is None else f"about {duration(left)} left"


def duration(seconds: float) -> str:
    """Rounded as an estimate deserves."""
    if seconds < 10:
        return "10 s"
    if seconds < 90:
        return f"{10 * round(seconds / 10)} s"
    return f"{max(round(seconds / 60), 2)} min"
