"""Whether one more sample may be kept by a policy: pure, times passed in.

Always true
 1. A policy is over at its end by trusted time, which is never before the system clock.
 2. A new day begins only by a clock that something confirms: one that jumps about allows no more than one that stands.
"""

from datetime import datetime

import msgspec

from edgekit.wire.samples import SamplePolicy


class Taken(msgspec.Struct, frozen=True):
    """What was kept by one policy: how many samples, and how many bytes on `day` (ISO 8601; empty before any is known)."""

    samples: int = 0
    day: str = ""
    bytes_that_day: int = 0


def is_over(policy: SamplePolicy, trusted: datetime) -> bool:
    return trusted >= policy.until


def one_more(
    policy: SamplePolicy, taken: Taken, size: int, trusted: datetime, known: datetime | None
) -> Taken | None:
    """What is taken with a sample of `size` bytes more, or None if that may not be kept."""
    today = _on(taken, known)
    is_full = today.samples >= policy.most or today.bytes_that_day + size > policy.bytes_a_day
    if is_full or is_over(policy, trusted):
        return None
    return Taken(today.samples + 1, today.day, today.bytes_that_day + size)


def has_room(policy: SamplePolicy, taken: Taken, trusted: datetime, known: datetime | None) -> bool:
    """Whether workers should still look for inputs."""
    return one_more(policy, taken, 1, trusted, known) is not None


def _on(taken: Taken, known: datetime | None) -> Taken:
    if known is None or (day := known.date().isoformat()) == taken.day:
        return taken
    return Taken(taken.samples, day, 0)
