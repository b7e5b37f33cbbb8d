"""Durations as people write them."""

import re

from edgekit.errors import UsageError

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def seconds(text: str, flag: str) -> float:
    """Of `90`, `90s`, `20m`, `1.5h`. Raises: UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip().lower())
    value = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if value <= 0:
        raise UsageError(f"{flag} {text!r}: give a time such as 90s, 20m or 1h")
    return value
