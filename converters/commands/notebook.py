"""A build in a notebook: a bar while it runs, and its result as tables.

Uses nothing but what a kernel has (IPython); loaded with the library, it loads none of that itself.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

from converters.commands import tables
from converters.commands.screen import describe, estimate
from converters.report import sliced
from converters.sheet import Sheet
from converters.work.steps import Steps
from edgekit import interrupt

# Seconds between two drawings of the bar, at least: each is a message to the browser.
_PAUSE_S = 0.2
# Lines that stand below the bar when it is opened.
_LINES = 200
_COLOURS = {"picked": "#1a7f37", "alternate": "#0969da", "refused": "#9a6700", "failed": "#6e7781"}


def is_one() -> bool:
    """Whether this process is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


class Bar:
    """A build's messages and steps in the cell's output."""

    def __init__(self, display: Any) -> None:
        self.steps = Steps(lambda _: self._draw())
        self._display = display
        self._began = self._drawn = time.monotonic()
        self._lines: list[str] = []
        self._message = "reading the project"
        self._draw(is_forced=True)

    def tell(self, message: str) -> None:
        # Where native code swallowed an interrupt, the build ends at its next step.
        interrupt.check()
        self._message = message
        self._lines.append(f"{time.monotonic() - self._began:6.1f} s  {message}")
        self._draw()

    def end(self, word: str) -> None:
        self._message = f"{word} after {time.monotonic() - self._began:.0f} s"
        self._draw(is_forced=True, is_over=True)

    def _draw(self, *, is_forced: bool = False, is_over: bool = False) -> None:
        now = time.monotonic()
        if not is_forced and now - self._drawn < _PAUSE_S:
            return
        self._drawn = now
        left = "" if is_over else estimate(self.steps, now - self._began)
        share = 1.0 if is_over else self.steps.share
        lines = escape("\n".join(self._lines[-_LINES:]))
        told = self._message if is_over else describe(self.steps, self._message)
        self._display.update(
            _Html(
                f"<progress value='{share:.3f}' max='1' style='width:16em;vertical-align:middle'></progress>"
                f" {self.steps.done}/{self.steps.total} <code>{escape(told)}</code> <small>{left}</small>"
                f"<details><summary><small>each step</small></summary><pre>{lines}</pre></details>"
            )
        )


@contextmanager
def watched() -> Iterator[Bar]:
    """In the output of the cell that is running, for as long as it lasts and after."""
    display = sys.modules["IPython"].display
    bar = Bar(display.display(_Html(""), display_id=True))
    try:
        yield bar
    except KeyboardInterrupt:
        bar.end("interrupted")
        raise
    except BaseException:
        bar.end("failed")
        raise
    bar.end("done")


class _Html:
    """What a notebook shows as it is."""

    def __init__(self, text: str) -> None:
        self._text = text

    def _repr_html_(self) -> str:
        return self._text


def html(sheets: Sequence[Sheet]) -> str:
    """The command's tables of a build."""
    return "".join(map(_table, sheets))


def _table(sheet: Sheet) -> str:
    columns = tables.saying(sheet)
    head = "".join(f"<th>{escape(column.title(sheet))}</th>" for column in columns)
    rows = "".join(
        f"<tr style='color:{_COLOURS.get(item.status, 'inherit')}'>"
        + "".join(
            f"<td style='text-align:{'right' if column.is_numeric else 'left'}'>{escape(column.cell(item))}</td>"
            for column in columns
        )
        + "</tr>"
        for item in sheet.ranked
    )
    reasons = "".join(
        f"<tr><td>{escape(word)}</td><td style='text-align:left'>{escape(text)}</td></tr>"
        for _, word, text in tables.reasons(sheet)
    )
    groups = sliced.shown(sheet)
    names = "".join(f"<th>{escape(each.name)} ({each.samples})</th>" for each in groups)
    by_group = "".join(
        f"<tr><td style='text-align:left'>{escape(item.recipe)}</td>"
        + "".join(f"<td>{escape(sliced.interval(sliced.of(item, each.name)))}</td>" for each in groups)
        + "</tr>"
        for item in sliced.judged(sheet.ranked)
    )
    lost = f"<p>{escape(sheet.metric)} lost by group</p><table><tr><th></th>{names}</tr>{by_group}</table>"
    notes = "".join(f"<li>{escape(note)}</li>" for note in sheet.notes)
    return (
        f"<p><b>{escape(tables.title(sheet))}</b></p><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"{lost if groups else ''}"
        f"<details><summary>why each ended as it did</summary><table>{reasons}</table><ul>{notes}</ul></details>"
    )
