"""What is wrong with the device now, as it reports it: one entry per code and deployment, with the time it began.

A condition stands until it is cleared; a notice tells of something that happened and ends by itself.
"""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from device_agent import log
from edgekit.wire.messages import MAX_CONDITIONS, Condition

NOTICE_S = 24 * 3600.0
_MAX_DETAIL = 500
_Key = tuple[str, str]


class Conditions:
    """`changed` is called whenever the present set is another than before. Used from the event loop only."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self.changed = changed
        self._present: dict[_Key, Condition] = {}
        self._ends: dict[_Key, float] = {}
        self._held: dict[str, frozenset[str]] = {}

    def set(self, code: str, detail: str, deployment: str = "") -> None:
        """`code` holds, for the reason `detail`; a condition that already stood keeps the time it began."""
        key = (code, deployment)
        self._ends.pop(key, None)
        self._put(key, detail)

    def notice(self, code: str, detail: str, deployment: str = "", *, lasts_s: float = NOTICE_S) -> None:
        """Something happened that somebody should read: reported for `lasts_s`."""
        key = (code, deployment)
        self._ends[key] = time.monotonic() + lasts_s
        self._put(key, detail)

    def clear(self, code: str, deployment: str = "") -> None:
        key = (code, deployment)
        self._ends.pop(key, None)
        if self._present.pop(key, None) is not None:
            log.event("condition ended", code=code, deployment=deployment or "-")
            self.changed()

    def stands(self, code: str, deployment: str = "") -> bool:
        return (code, deployment) in self._present

    def choose(self, codes: tuple[str, ...], code: str, detail: str) -> None:
        """Of `codes` only `code` holds; none does if it is empty."""
        for other in codes:
            if other != code:
                self.clear(other)
        if code:
            self.set(code, detail)

    def hold(self, deployment: str, found: Mapping[str, str]) -> None:
        """Of what was held of this deployment before, and `found` (code → detail), only `found` holds."""
        for code in self._held.get(deployment, frozenset()) - found.keys():
            self.clear(code, deployment)
        for code, detail in found.items():
            self.set(code, detail, deployment)
        self._held[deployment] = frozenset(found)

    def present(self) -> tuple[Condition, ...]:
        """Those that stand now, oldest first; beyond the bound of a message the newest are left out."""
        now = time.monotonic()
        for key in [key for key, end in self._ends.items() if end <= now]:
            del self._ends[key]
            self._present.pop(key, None)
        ordered = sorted(self._present.values(), key=lambda condition: condition.since)
        return tuple(ordered[:MAX_CONDITIONS])

    def _put(self, key: _Key, detail: str) -> None:
        code, deployment = key
        known = self._present.get(key)
        shown = detail[:_MAX_DETAIL]
        if known is not None and known.detail == shown:
            return
        since = known.since if known is not None else datetime.now(UTC)
        self._present[key] = Condition(code=code, detail=shown, since=since, deployment=deployment)
        if known is None:
            log.trouble("condition", code=code, detail=shown, deployment=deployment or "-")
        self.changed()
