"""What operators type: durations and shares, and refusals that point at the character."""

import re
from dataclasses import dataclass
from typing import Never

from edgekit.errors import NotPossibleError, UsageError

_DURATION = re.compile(r"^([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d|w)$")
# What any clock can still be set forward by.
MOST_S = 3660 * 86_400.0
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


@dataclass(frozen=True)
class Token:
    """A word of a small language and where it starts (0-based)."""

    text: str
    at: int


def refuse(what: str, text: str, at: int, message: str) -> Never:
    """Raise UsageError with the text and a caret below the place."""
    raise UsageError(f"{what}: {message}\n  {text}\n  {' ' * min(at, len(text))}^")


def tokenize(what: str, text: str, pattern: re.Pattern[str]) -> list[Token]:
    """Tokens by `pattern` (one group per token), whitespace between them. Raises: UsageError at anything else."""
    tokens: list[Token] = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        match = pattern.match(text, at)
        if match is None:
            refuse(what, text, at, f"{text[at]!r} means nothing here")
        tokens.append(Token(match.group(), at))
        at = match.end()
    return tokens


def duration(text: str, what: str) -> float:
    """Seconds of `30m`, `6s`, `2d`. Raises: UsageError; NotPossibleError for more than ten years."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise UsageError(f"{what}: {text!r} is no duration; write a number and ms, s, m, h, d or w, e.g. 30m")
    found = float(match.group(1)) * _SECONDS[match.group(2)]
    if found > MOST_S:
        raise NotPossibleError(f"{what}: {text} is longer than ten years")
    return found


def show_duration(seconds: float) -> str:
    """The largest unit that leaves a number of at least one: `30m`, `1.5h`."""
    for unit in ("w", "d", "h", "m", "s"):
        if seconds >= _SECONDS[unit]:
            return f"{seconds / _SECONDS[unit]:.3g}{unit}"
    return f"{seconds * 1000:.3g}ms"


def show_percent(share: float) -> str:
    return f"{share * 100:.3g} %"
