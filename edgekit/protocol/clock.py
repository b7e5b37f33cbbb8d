"""What time a device may take it to be (trust.md): pure, every clock passed in.

A board without a clock of its own starts at 1970 and would accept what expired long ago; one that believed every signed
time would, after a single order signed in 2099 by a fleet whose clock was wrong, refuse all later ones for good.

Always true
 1. Trusted time is never before the system clock, nor before the agent was made.
 2. One signed time alone moves it at most `MAX_PUSH` beyond what is known otherwise. `MAX_PUSH` is less than the life
    that orders have left when they are renewed, so an order signed too late by mistake makes no good one expire.
 3. Known otherwise is the system clock. Only where that says a time before the agent was made, so is not set at all,
    is it the earlier of the two signed times heard last, which the other confirms, and the time that passed since.
 4. The fleet's latest word counts: an order of a higher counter that was signed at an earlier time shows that the
    fleet's clock was wrong before, since counters follow time. What was signed after it is no reason to refuse it.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

# Orders live 30 days and are renewed at half of that (trust.md).
MAX_PUSH = timedelta(days=1)
# What the clocks of a fleet and of its devices may differ by.
SLACK = timedelta(hours=1)


def trusted(system: datetime, built: datetime, signed: Sequence[datetime], passed: timedelta) -> datetime:
    """`signed` are the times of accepted orders, that heard last first; `passed` since it was heard here."""
    known = max(system, built)
    if system < built and len(signed) > 1:
        known = max(known, min(signed) + passed)
    if not signed:
        return known
    return max(known, min(signed[0] + passed, known + MAX_PUSH))


def not_disproved(signed: Sequence[datetime], issued: datetime) -> tuple[datetime, ...]:
    """Of `signed`, what an order of a higher counter, issued at `issued`, leaves standing (rule 4)."""
    return tuple(time for time in signed if time <= issued + SLACK)


def last_two(signed: Sequence[datetime], issued: datetime) -> tuple[datetime, ...]:
    """The signed times worth keeping when an order issued at `issued` was accepted."""
    return (issued, *signed)[:2]


def is_far_ahead(issued: datetime, now: datetime) -> bool:
    """Whether a signed time says so much more than trusted time that one of the two clocks is wrong."""
    return issued > now + MAX_PUSH
