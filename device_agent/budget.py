"""What a metered link may cost, and what is held back when that is nearly spent: pure, counts and times passed in.

Always true
 1. Orders, descriptions, statuses and certificates are never held back.
 2. What can wait longest is held back first: samples, then reports (longer windows), then models.
 3. A day and a month begin only by a clock that something confirms: one that jumps about by itself frees nothing.
"""

import re
from datetime import datetime
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from edgekit.errors import UsageError

# Of a budget: from here on samples wait, and reports are made seldom.
SAMPLES_WAIT_AT = 0.8
REPORTS_WAIT_AT = 0.9
# How many times longer a window is then, and how long at most.
LONGER = 10
LONGEST_WINDOW_S = 3600.0
_SIZE = re.compile(r"^([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(kB|MB|GB)$")
_BYTES = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
SizeText = Annotated[str, Meta(max_length=40)]


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[budget]` of `agent.toml`: sizes as people write them, `20MB`; empty is no limit. Both directions together."""

    per_day: SizeText = ""
    per_month: SizeText = ""


class Limits(NamedTuple):
    """The same in bytes; None is no limit."""

    day: int | None = None
    month: int | None = None


NO_LIMITS = Limits()


def limits(budget: Budget) -> Limits:
    """Raises: UsageError naming the key."""
    return Limits(*(_size(name, getattr(budget, name)) for name in ("per_day", "per_month")))


def _size(name: str, text: str) -> int | None:
    if not text:
        return None
    match = _SIZE.match(text.strip())
    size = int(float(match.group(1)) * _BYTES[match.group(2)]) if match else 0
    if not size:
        raise UsageError(f'[budget] {name} = {text!r}: write a size above nothing, e.g. "20MB" or "1.5GB"')
    return size


class Spent(msgspec.Struct, frozen=True):
    """Which day and month it is by what is known of the time (ISO 8601, UTC; empty before any is), and how much had passed
    in all of the device's life when they began.
    """

    day: str = ""
    month: str = ""
    before_day: int = 0
    before_month: int = 0


def turned(spent: Spent, total: int, known: datetime | None) -> Spent:
    """After a look at the clock; `known` is None where nothing confirms it, and then no day ends."""
    if known is None:
        return spent
    day, month = known.date().isoformat(), known.date().isoformat()[:7]
    # A clock that was set back begins no day anew. What passed before any time was known counts as today's.
    if spent.day and day > spent.day:
        spent = msgspec.structs.replace(spent, before_day=total)
    if spent.month and month > spent.month:
        spent = msgspec.structs.replace(spent, before_month=total)
    return msgspec.structs.replace(spent, day=day, month=month)


class Used(NamedTuple):
    """One limit: how much of it has passed."""

    name: str
    used: int
    limit: int

    @property
    def share(self) -> float:
        return self.used / self.limit

    @property
    def words(self) -> str:
        return f"{self.used / 1e6:.1f} of {self.limit / 1e6:g} MB {self.name}"


def worst(given: Limits, spent: Spent, total: int) -> Used | None:
    """The limit that is nearest to its end; None without a limit."""
    found = []
    if given.day is not None:
        found.append(Used("of this day", total - spent.before_day, given.day))
    if given.month is not None:
        found.append(Used("of this month", total - spent.before_month, given.month))
    return max(found, key=lambda used: used.share, default=None)


def holds_sample(used: Used | None, size: int) -> bool:
    """Whether a sample of so many bytes waits."""
    return used is not None and used.used + size > SAMPLES_WAIT_AT * used.limit


def window_s(used: Used | None, usual_s: float) -> float:
    """How long a window of telemetry is."""
    if used is None or used.share < REPORTS_WAIT_AT:
        return usual_s
    return max(usual_s, min(LONGEST_WINDOW_S, LONGER * usual_s))


def refuses_model(used: Used | None, size: int) -> str:
    """Why a download of so many bytes waits; empty if it need not."""
    if used is None or used.used + size <= used.limit:
        return ""
    return (
        f"it takes {size / 1e6:.1f} MB, and {used.words} have passed: it waits for the next, or for an order that"
        " says to fetch all the same"
    )


def held(used: Used | None) -> str:
    """What is held back now, for people; empty if nothing is."""
    if used is None or used.share < SAMPLES_WAIT_AT:
        return ""
    what = ["samples"]
    if used.share >= REPORTS_WAIT_AT:
        what.append("reports (longer windows)")
    if used.share >= 1:
        what.append("models")
    return f"{used.words} have passed; held back: {', '.join(what)}"
