"""What a run counts."""

from dataclasses import dataclass, field

import msgspec

from edgekit.sketch import SketchBuilder


class Told(msgspec.Struct, frozen=True):
    """A run's figures. Reports count once, however often they were sent (`reports_resent`); delays are from when
    a report was due to its acknowledgement, which follows the fleet's commit.
    """

    devices: int
    connected: int
    connections: int
    drops: int
    enrolled: int
    enrol_s: float
    window_s: float
    seconds: float
    reports_sent: int
    reports_acknowledged: int
    reports_resent: int
    reports_lost: int
    reports_waiting: int
    delay_ms_p50: float | None
    delay_ms_p99: float | None
    orders_followed: int
    orders_refused: int
    updates: int
    installs_failed: int


@dataclass
class Tally:
    """Counts of a run under way."""

    connected: int = 0
    connections: int = 0
    refused_connections: int = 0
    drops: int = 0
    enrolled: int = 0
    enrol_s: float = 0.0
    reports_made: int = 0
    reports_acknowledged: int = 0
    reports_resent: int = 0
    reports_lost: int = 0
    orders_followed: int = 0
    orders_refused: int = 0
    updates: int = 0
    installs_failed: int = 0
    delays_ms: SketchBuilder = field(default_factory=SketchBuilder)

    def acknowledged(self, delay_s: float) -> None:
        self.reports_acknowledged += 1
        self.delays_ms.add(1000.0 * max(0.0, delay_s))

    def told(self, *, devices: int, seconds: float, window_s: float, waiting: int) -> Told:
        delays = self.delays_ms.snapshot()
        return Told(
            devices=devices,
            connected=self.connected,
            connections=self.connections,
            drops=self.drops,
            enrolled=self.enrolled,
            enrol_s=round(self.enrol_s, 3),
            window_s=window_s,
            seconds=round(seconds, 3),
            reports_sent=self.reports_made,
            reports_acknowledged=self.reports_acknowledged,
            reports_resent=self.reports_resent,
            reports_lost=self.reports_lost,
            reports_waiting=waiting,
            delay_ms_p50=delays.quantile(0.5),
            delay_ms_p99=delays.quantile(0.99),
            orders_followed=self.orders_followed,
            orders_refused=self.orders_refused,
            updates=self.updates,
            installs_failed=self.installs_failed,
        )
