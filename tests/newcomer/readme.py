"""What README.md asks a reader to type: install lines, commands, project files.

A fenced block without a language holds commands if its lines begin with `$ ` (the rest is then what they print) or if
its first line begins with a program of `PROGRAMS` (then every line is one). A line ending in a backslash goes on.
Outside fences a code span is a command if it begins with such a program and a space.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = ("edgekit", "python", "make", "pip", "curl", "export")

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")
_COMMENT = re.compile(r"\s{2,}#.*$")


@dataclass(frozen=True)
class Command:
    """One command line; `is_block` tells those that stand in a block, ready to be copied, from those in a sentence."""

    text: str
    is_block: bool


def text() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def commands(page: str) -> list[Command]:
    """Every command line of the page but installs, once each: those of blocks in their order, then those of sentences."""
    blocks = [line for language, body in _FENCE.findall(page) if not language for line in _lines(body)]
    spans = [span for span in _spans(page) if _begins(span)]
    found = [
        *(Command(line, is_block=True) for line in blocks),
        *(Command(span, is_block=False) for span in spans),
    ]
    return [command for command in dict.fromkeys(found) if not command.text.startswith("pip ")]


def installs(page: str) -> list[str]:
    """Every `pip install` line of the page."""
    blocks = [line for language, body in _FENCE.findall(page) if not language for line in _lines(body)]
    return [line for line in dict.fromkeys([*blocks, *_spans(page)]) if line.startswith("pip install ")]


def projects(page: str) -> list[str]:
    """Every TOML block."""
    return [body for language, body in _FENCE.findall(page) if language == "toml"]


def _spans(page: str) -> list[str]:
    return [" ".join(span.split()) for span in _SPAN.findall(_FENCE.sub("", page))]


def _begins(line: str) -> bool:
    return line.partition(" ")[0] in PROGRAMS and " " in line


def _lines(body: str) -> Iterator[str]:
    lines = iter(re.sub(r"\\\n\s*", "", body).splitlines())
    is_session = any(line.startswith("$ ") for line in body.splitlines())
    if not is_session and not _begins(body.partition("\n")[0]):
        return
    for line in lines:
        if is_session and not line.startswith("$ "):
            continue
        command = _COMMENT.sub("", line.removeprefix("$ ")).strip()
        if command:
            yield command
