"""How much a shadow may take: of the processor, and of the patience of those who wait for the served model. Pure.

Always true
 1. What the shadow's process has spent since it began to compare is at most its share of the time since then, and what
    one comparison takes beyond that.
 2. Where calls of the served model beside a working shadow are slower than others by more than the share, there are no
    copies for a while, each time longer.
"""

import math
from collections import deque
from statistics import quantiles

# Earned time that may be saved up, in seconds of the clock.
SAVED_S = 2.0
# Served calls that are remembered of each kind, how many of each it takes to compare, and how often that is done.
REMEMBERED, LEAST, EVERY = 256, 64, 64
FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 640.0
# One-sided, in standard deviations: what chance alone hardly does.
_SURE = 2.33
_BEYOND = 0.05


class Allowance:
    """Processor time by a clock: `share` of a second is earned each second."""

    def __init__(self, share: float, now: float) -> None:
        self._share = share
        self._now = now
        self._balance_s = 0.0

    def spend(self, cpu_s: float, now: float) -> None:
        self._earn(now)
        self._balance_s -= cpu_s

    def wait_s(self, now: float) -> float:
        """Seconds until the next comparison may begin; 0 if it may now."""
        self._earn(now)
        return max(0.0, -self._balance_s / self._share)

    def _earn(self, now: float) -> None:
        earned = self._balance_s + max(0.0, now - self._now) * self._share
        self._balance_s = min(earned, SAVED_S * self._share)
        self._now = now


class Patience:
    """Latencies of the served model beside a working shadow and without one."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._beside: deque[float] = deque(maxlen=REMEMBERED)
        self._alone: deque[float] = deque(maxlen=REMEMBERED)
        self._noted = 0
        self._pause_s = FIRST_PAUSE_S
        self._until = -math.inf

    def note(self, took_ms: float, now: float, *, beside: bool) -> None:
        """A call of the served model."""
        (self._beside if beside else self._alone).append(took_ms)
        self._noted += 1
        if self._noted % EVERY == 0 and now >= self._until and self._is_slowed():
            self._until = now + self._pause_s
            self._pause_s = min(LONGEST_PAUSE_S, self._pause_s * 2)
            self._beside.clear()

    def is_over(self, now: float) -> bool:
        """Whether there are no copies for now."""
        return now < self._until

    def _is_slowed(self) -> bool:
        """Whether more calls beside the shadow lie above the 95th percentile of the others, and the share, than chance
        would put there.
        """
        count = len(self._beside)
        if min(count, len(self._alone)) < LEAST:
            return False
        limit = quantiles(self._alone, n=20)[-1] * (1 + self._share)
        above = sum(took > limit for took in self._beside)
        return above > count * _BEYOND + _SURE * math.sqrt(count * _BEYOND * (1 - _BEYOND))
