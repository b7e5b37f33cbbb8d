"""How often somebody may try a password: so many at once, then one every so often, for each key.

Pure; the caller supplies the time.

Always true
 1. An attempt counts when it begins, whatever comes of it: trying many at the same time gains nothing.
 2. At most `capacity` keys are kept. When it is full, the one that is nearest to its full allowance goes; who has used
    all of theirs up is not forgotten because others come.
"""

import ipaddress
import threading
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Allowance:
    """`burst` attempts at once, and one more every `every_s`."""

    burst: int
    every_s: float


# A person mistypes; somebody who tries a list gets 1440 words a day at one name, against 15 characters or more.
PER_NAME = Allowance(burst=5, every_s=60.0)
# People of one office may share an address.
PER_ADDRESS = Allowance(burst=20, every_s=15.0)
CAPACITY = 10_000


class Attempts:
    """Keeps, for each key, the time at which its allowance will be full again (a token bucket in one number)."""

    def __init__(self, allowance: Allowance, capacity: int = CAPACITY) -> None:
        self._allowance = allowance
        self._capacity = capacity
        self._full_at: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._full_at)

    def wait_s(self, key: str, now: float) -> float:
        """Count one attempt and answer 0, or answer how long to wait before the next is allowed; that one is not
        counted.
        """
        rule = self._allowance
        full_at = max(self._full_at.get(key, now), now) + rule.every_s
        over_s = full_at - now - rule.burst * rule.every_s
        if over_s > 0:
            return over_s
        if key not in self._full_at and len(self._full_at) >= self._capacity:
            self._make_room(now)
        self._full_at[key] = full_at
        return 0.0

    def forget(self, key: str) -> None:
        """Its attempts led somewhere: it starts afresh."""
        self._full_at.pop(key, None)

    def _make_room(self, now: float) -> None:
        self._full_at = {key: at for key, at in self._full_at.items() if at > now}
        if len(self._full_at) >= self._capacity:
            # A tenth at once: not every newcomer costs a look at all of them.
            ordered = sorted(self._full_at, key=self._full_at.__getitem__)
            for key in ordered[: max(1, self._capacity // 10)]:
                del self._full_at[key]


@dataclass
class Limits:
    """Attempts to sign in; of this process only, which is the one that serves the form.

    Going to a provider, and coming back from it, count apart from the form: who uses the one up has the other.
    """

    names: Attempts = field(default_factory=lambda: Attempts(PER_NAME))
    addresses: Attempts = field(default_factory=lambda: Attempts(PER_ADDRESS))
    begun: Attempts = field(default_factory=lambda: Attempts(PER_ADDRESS))
    ended: Attempts = field(default_factory=lambda: Attempts(PER_ADDRESS))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wait_s(self, name: str, address: str, now: float) -> float:
        """Count an attempt; 0 if it may be made, otherwise how long to wait."""
        with self._lock:
            return self.addresses.wait_s(_network(address), now) or self.names.wait_s(name, now)

    def wait_to_begin_s(self, address: str, now: float) -> float:
        with self._lock:
            return self.begun.wait_s(_network(address), now)

    def wait_to_end_s(self, address: str, now: float) -> float:
        with self._lock:
            return self.ended.wait_s(_network(address), now)

    def succeeded(self, name: str) -> None:
        with self._lock:
            self.names.forget(name)


def _network(address: str) -> str:
    """What one customer of a provider has: an IPv4 address, or a /64 of IPv6."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if found.version == 4:
        return str(found)
    return str(ipaddress.ip_network((int(found) >> 64 << 64, 64)))
