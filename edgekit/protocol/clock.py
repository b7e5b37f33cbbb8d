"""What time a device may take it to be (trust.md): pure, every clock passed in.

A board without a clock of its own starts at 1970 and would accept what expired long ago; one that believed every signed
time would, after a single order signed in 2099 by a fleet whose clock was wrong, refuse all later ones for good.

Always true
 1. Trusted time is never before the system clock, nor before the agent was made.
 2. One signed time alone moves it at most `MAX_PUSH` beyond what is known otherwise. `MAX_PUSH` is less than the life
    that orders have left when they are renewed, so an order signed too late by mistake makes no good one expire.
 3. Known otherwise is the system clock. Only where that says a time before the agent was made, so is not set at all,
    is it the second newest signed time, which the newest confirms, and the time that passed since.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

# Orders live 30 days and are renewed at half of that (trust.md).
MAX_PUSH = timedelta(days=1)


def trusted(system: datetime, built: datetime, signed: Sequence[datetime], passed: timedelta) -> datetime:
    """`signed` are the signed times of accepted orders, newest first; `passed` since the newest was heard here."""
    known = max(system, built)
    if system < built and len(signed) > 1:
        known = max(known, signed[1] + passed)
    if not signed:
        return known
    return max(known, min(signed[0] + passed, known + MAX_PUSH))


def newest_two(signed: Sequence[datetime], issued: datetime) -> tuple[datetime, ...]:
    """The signed times worth keeping when an order issued at `issued` was accepted."""
    return tuple(sorted({*signed, issued}, reverse=True)[:2])


def is_far_ahead(issued: datetime, now: datetime) -> bool:
    """Whether a signed time says so much more than trusted time that one of the two clocks is wrong."""
    return issued > now + MAX_PUSH
