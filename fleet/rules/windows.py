"""Maintenance windows: `22:00-05:00`, `mon-fri 22:00-05:00`, `sat,sun 00:00-24:00`, each in the device's own time zone.

Always true
 1. Days name when a window begins: `fri 22:00-05:00` ends on Saturday morning.
 2. Where clocks are turned back, a window is not open twice; where they are turned forward, what is skipped is skipped.
 3. Windows that adjoin are one: `sat,sun 00:00-24:00` does not close at midnight.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from edgekit.errors import UsageError

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
ALWAYS_S = 7 * 86_400.0
_SPAN = re.compile(r"^([0-9]{2}):([0-9]{2})-([0-9]{2}):([0-9]{2})$")
_DAY_MINUTES = 24 * 60


class Window(msgspec.Struct, frozen=True):
    """It begins `start_min` after midnight on each of `days` (0 is Monday) and lasts `length_min`, at most a day."""

    days: tuple[int, ...]
    start_min: int
    length_min: int
    text: str


def parse(text: str) -> Window:
    """Raises: UsageError."""
    days, _, span = text.strip().lower().rpartition(" ")
    match = _SPAN.match(span)
    if match is None:
        raise UsageError(
            f"window: {text!r} is none; write 22:00-05:00, 'mon-fri 22:00-05:00' or 'sat,sun 00:00-24:00'"
        )
    start, end = _minutes(text, match[1], match[2], last=23), _minutes(text, match[3], match[4], last=24)
    length = (end - start) % _DAY_MINUTES or _DAY_MINUTES
    return Window(_days(text, days.strip()), start, length, text.strip())


def parse_zone(text: str) -> str:
    """The name of a time zone, as the tz database has it. Raises: UsageError."""
    if zone(text) is None:
        raise UsageError(
            f"time zone: {text!r} is none that this machine knows; write e.g. Europe/Zurich or UTC"
        )
    return text


@lru_cache(maxsize=1024)
def zone(name: str) -> ZoneInfo | None:
    """None for what is no time zone; devices' labels are not trusted to be one."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def left_s(windows: Sequence[Window], name: str, wall: datetime) -> float:
    """For how long the window that is open now stays open; 0 while none is, `ALWAYS_S` where none was asked for."""
    if not windows:
        return ALWAYS_S
    where = zone(name)
    if where is None:
        return 0.0
    at = wall
    while (at - wall).total_seconds() < ALWAYS_S:
        until = max((_end(window, at, where) for window in windows), default=at)
        if until <= at:
            break
        at = until
    return min(ALWAYS_S, (at - wall).total_seconds())


def _end(window: Window, at: datetime, where: ZoneInfo) -> datetime:
    """When the window that is open at `at` ends; `at` itself if it is closed."""
    local = at.astimezone(where)
    here = local.replace(tzinfo=None)
    for days_ago in (0, 1):
        day = local.date() - timedelta(days=days_ago)
        begins = datetime.combine(day, time()) + timedelta(minutes=window.start_min)
        ends = begins + timedelta(minutes=window.length_min)
        if day.weekday() in window.days and begins <= here < ends:
            return max(at, ends.replace(tzinfo=where).astimezone(UTC))
    return at


def longest_s(windows: Sequence[Window]) -> float:
    """The longest time that any of them is open by itself."""
    return max((window.length_min * 60.0 for window in windows), default=ALWAYS_S)


def _minutes(text: str, hours: str, minutes: str, *, last: int) -> int:
    found = int(hours) * 60 + int(minutes)
    if int(hours) > last or int(minutes) > 59 or found > _DAY_MINUTES:
        raise UsageError(f"window: {hours}:{minutes} in {text!r} is no time of day")
    return found


def _days(text: str, words: str) -> tuple[int, ...]:
    if not words:
        return tuple(range(7))
    found: set[int] = set()
    for part in (piece.strip() for piece in words.split(",")):
        first, _, last = part.partition("-")
        if first not in DAYS or (last and last not in DAYS):
            raise UsageError(f"window: {part!r} in {text!r} is no day; they are {', '.join(DAYS)}")
        start, end = DAYS.index(first), DAYS.index(last or first)
        found.update((start + n) % 7 for n in range((end - start) % 7 + 1))
    return tuple(sorted(found))
