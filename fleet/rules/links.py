"""What devices' links have carried, as they say, and what of that in this month. Pure."""

from datetime import UTC, datetime

import msgspec

from edgekit.wire.messages import Passed, Purpose, Report

_NOTHING = Passed(0, 0)


class Link(msgspec.Struct, frozen=True):
    """Of one device: its newest counts, and those with which the month began (UTC, by the fleet's clock).

    `said` is the report that they are from: (enrolment, incarnation, seq).
    """

    said: tuple[int, int, int] = (0, 0, 0)
    month: str = ""
    totals: dict[Purpose, Passed] = {}
    before: dict[Purpose, Passed] = {}

    def of_month(self, purpose: Purpose) -> Passed:
        total, before = self.totals.get(purpose, _NOTHING), self.before.get(purpose, _NOTHING)
        return Passed(total.sent - before.sent, total.received - before.received)


def month_of(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m}"


def grown(link: Link, report: Report, now: float) -> Link:
    """With what one more report says; one that is older than what is known changes nothing."""
    said = (report.boot.enrolment, report.boot.incarnation, report.seq)
    if not report.traffic or said <= link.said:
        return link
    month = month_of(now)
    if any(_is_less(report.traffic.get(purpose, _NOTHING), was) for purpose, was in link.totals.items()):
        # Another state folder, or one whose counts were lost: they begin at nothing.
        return Link(said, month, report.traffic)
    before = link.before if link.month == month else link.totals
    return Link(said, month, report.traffic, before)


def _is_less(one: Passed, other: Passed) -> bool:
    return one.sent < other.sent or one.received < other.received
