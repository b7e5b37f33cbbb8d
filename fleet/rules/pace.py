"""How fast a rollout may go: orders a minute, devices at once, devices of a site at once, and when.

It holds devices back from an order forward; nothing slows down the way back to what worked.

Always true
 1. In any `Rate.per_s` seconds no more than `Rate.count` orders are given out; a twelfth of that time sees at most a
    twelfth of them, so that they are spread.
 2. With a limit on devices at once, of a site or in all, an order goes only to a device that is online, and only while
    fewer are moving. A device that went away in the middle is counted until its deadline has passed.
 3. With maintenance windows an order goes only to a device that is online and whose window stays open for as long as
    the device may take (the deadline).
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from itertools import islice

import msgspec

from edgekit.errors import NotPossibleError, UsageError
from fleet.rules import windows
from fleet.rules.members import SETTLED, Member
from fleet.rules.text import show_duration
from fleet.rules.windows import Window

SITE, ZONE = "site", "tz"
UTC = "UTC"
_PIECES = 12
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_RATE = re.compile(r"^([1-9][0-9]{0,8})\s*(?:/\s*(s|min|h|d))?$")
_BYTES = re.compile(r"^([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(kB|MB|GB|kbit|Mbit|Gbit)(?:/s)?$")
_BYTES_S = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "kbit": 125.0, "Mbit": 125e3, "Gbit": 125e6}


class Rate(msgspec.Struct, frozen=True):
    """At most `count` orders in any `per_s` seconds."""

    count: int
    per_s: float
    text: str = ""


class Given(msgspec.Struct, frozen=True):
    """So many orders were given out at that (steady) moment."""

    at: datetime
    count: int


class Pace(msgspec.Struct, frozen=True):
    """What is None or empty is not limited. `zone` is for devices that have none of their own.

    `site_bytes_s` is what all devices of a site may take together while they fetch; each begins within `jitter_s`.
    """

    rate: Rate | None = None
    at_once: int | None = None
    per_site: int | None = None
    windows: tuple[Window, ...] = ()
    zone: str = UTC
    site_bytes_s: float | None = None
    jitter_s: float = 0.0

    @property
    def needs_presence(self) -> bool:
        """Whether only devices that are online are told to move."""
        return bool(self.at_once or self.per_site or self.windows)


def parse_rate(text: str) -> Rate:
    """`60/min`, `600/h`, `5/s`; a bare number is per minute. Raises: UsageError."""
    match = _RATE.match(text.strip())
    if match is None:
        raise UsageError(f"rate: {text!r} is none; write orders per time, e.g. 60/min, 600/h or 5/s")
    unit = match.group(2) or "min"
    times = 60 if unit == "s" else 1
    return Rate(times * int(match.group(1)), times * _UNITS[unit], f"{match.group(1)}/{unit}")


def parse_bandwidth(text: str) -> float:
    """Bytes a second of `2MB/s` or `10Mbit/s`. Raises: UsageError, NotPossibleError."""
    match = _BYTES.match(text.strip())
    if match is None:
        raise UsageError(f"bandwidth: {text!r} is none; write e.g. 2MB/s or 10Mbit/s")
    if not float(match.group(1)):
        raise NotPossibleError(f"bandwidth: with {text} nothing would ever be fetched")
    return float(match.group(1)) * _BYTES_S[match.group(2)]


def words(pace: Pace, deadline_s: float) -> list[str]:
    """Each limit in a sentence."""
    told = []
    if pace.rate is not None:
        told.append(f"at most {pace.rate.text} orders are given out")
    if pace.at_once is not None:
        told.append(f"at most {pace.at_once} devices move at once")
    if pace.per_site is not None:
        told.append(f"at most {pace.per_site} devices per site move at once")
    if pace.windows:
        spans = " and ".join(window.text for window in pace.windows)
        told.append(
            f"devices are told to move at {spans} of their own time ({pace.zone} where they have none), as long as "
            f"{show_duration(deadline_s)} of it are left"
        )
    if pace.needs_presence:
        told.append("only devices that are online are told; who is away follows when it is back")
    if pace.site_bytes_s is not None:
        told.append(f"the devices of a site fetch with at most {pace.site_bytes_s / 1e6:g} MB/s together")
    if pace.jitter_s:
        told.append(f"each begins to fetch within {show_duration(pace.jitter_s)} of its order")
    return told


def note(given: tuple[Given, ...], rate: Rate | None, count: int, now: datetime) -> tuple[Given, ...]:
    """The orders given out that still matter to the rate, with `count` more of now."""
    if rate is None or not count:
        return given
    since = now - timedelta(seconds=rate.per_s)
    return (*(old for old in given if old.at > since), Given(now, count))


def room(given: Iterable[Given], rate: Rate | None, now: datetime) -> int:
    """How many more orders the rate allows now (rule 1)."""
    if rate is None:
        return 10**9
    piece = timedelta(seconds=rate.per_s / _PIECES)
    whole = sum(old.count for old in given if old.at > now - timedelta(seconds=rate.per_s))
    lately = sum(old.count for old in given if old.at > now - piece)
    return max(0, min(rate.count - whole, math.ceil(rate.count / _PIECES) - lately))


def is_moving(member: Member, now: datetime, deadline_s: float) -> bool:
    """Whether it is on its way to the release (rule 2)."""
    if not member.order_counter or member.is_returning or member.state in SETTLED:
        return False
    if member.is_online or member.ordered_at is None:
        return True
    return now < max(member.ordered_at, member.notified_at or member.ordered_at) + timedelta(
        seconds=deadline_s
    )


def admit(  # the two clocks, and what both limits look at
    pace: Pace,
    waiting: Iterable[Member],
    moving: Collection[Member],
    given: Iterable[Given],
    most: int,
    *,
    deadline_s: float,
    now: datetime,
    wall: datetime,
) -> list[Member]:
    """Of `waiting`, which is in the order in which they move, those that may be told now: at most `most`. `moving` are
    all that may be on their way.
    """
    count = min(most, room(given, pace.rate, now))
    sites: Counter[str] = Counter()
    if pace.at_once is not None or pace.per_site is not None:
        sites.update(m.site for m in moving if is_moving(m, now, deadline_s))
    if pace.at_once is not None:
        count = min(count, pace.at_once - sites.total())
    if count <= 0:
        return []

    @functools.cache
    def is_open(zone: str) -> bool:
        return windows.left_s(pace.windows, zone, wall) >= deadline_s

    ready = (
        member
        for member in waiting
        if (member.is_online or not pace.needs_presence)
        and (not pace.windows or is_open(member.zone or pace.zone))
    )
    if pace.per_site is None:
        return list(islice(ready, count))
    found: list[Member] = []
    for member in ready:
        if sites[member.site] < pace.per_site:
            sites[member.site] += 1
            found.append(member)
            if len(found) == count:
                break
    return found


def fetch_bytes_s(pace: Pace, site_members: int) -> float | None:
    """What one device of a site may take while it fetches, so that all that may move there at once stay below."""
    if pace.site_bytes_s is None:
        return None
    together = min(n for n in (pace.per_site, pace.at_once, max(1, site_members)) if n is not None)
    return pace.site_bytes_s / together


def fetch_after_s(pace: Pace, key: str) -> float:
    """When one device begins, of the jitter: by the end of its key (a stage's devices share the beginning)."""
    return pace.jitter_s * (int(key[-8:], 16) / 0xFFFFFFFF)
