"""Samples for retraining: what an operator asks for, and the policy of each device that follows from it. Pure."""

import re
from datetime import UTC, datetime

import msgspec

from edgekit.errors import NotPossibleError
from edgekit.wire.samples import SamplePolicy
from fleet.rules.text import duration, show_percent

# A policy outlives no order by much: who forgets one has not asked for it for ever.
MOST_S = 90 * 86_400.0
_PERCENT = re.compile(r"^([0-9]{1,3}(?:\.[0-9]{1,9})?)\s*%$")
_SIZE = re.compile(r"^([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(kB|MB|GB)$")
_BYTES = {"kB": 1e3, "MB": 1e6, "GB": 1e9}


class Reasons(msgspec.Struct, frozen=True):
    """Why an input is kept; any one of them is enough."""

    low_confidence: float | None = None
    random: float | None = None
    labels: tuple[str, ...] = ()
    drifted: bool = False
    guard: bool = False

    @property
    def words(self) -> str:
        told = []
        if self.low_confidence is not None:
            told.append(f"confidence below {self.low_confidence:g}")
        if self.labels:
            told.append(f"answered {' or '.join(self.labels)}")
        if self.drifted:
            told.append("while inputs drift")
        if self.guard:
            told.append("unfamiliar to the guard")
        if self.random is not None:
            told.append(f"{show_percent(self.random)} at random")
        return ", ".join(told)

    def check(self) -> None:
        """Raises: NotPossibleError where nothing is asked for."""
        if not self.words:
            raise NotPossibleError(
                "which inputs? name a reason: --low-confidence 0.6, --random 1%, --label NAME, --drifted or --guard"
            )


def parse_percent(text: str) -> float | None:
    """The share of `1%`; None of an empty text. Raises: NotPossibleError."""
    if not text:
        return None
    match = _PERCENT.match(text.strip())
    share = float(match.group(1)) / 100 if match else 0.0
    if not 0 < share <= 1:
        raise NotPossibleError(f"--random {text!r}: write a share above 0 % and up to 100 %, e.g. 1%")
    return share


def parse_size(text: str) -> int:
    """Bytes of `20MB`. Raises: NotPossibleError."""
    match = _SIZE.match(text.strip())
    size = int(float(match.group(1)) * _BYTES[match.group(2)]) if match else 0
    if not size:
        raise NotPossibleError(f"--per-day {text!r}: write a size, e.g. 20MB")
    return size


def parse_lasts(text: str) -> float:
    """Seconds. Raises: UsageError, NotPossibleError."""
    found = duration(text, "--for")
    if not 0 < found <= MOST_S:
        raise NotPossibleError(f"--for {text}: at most 90d; ask again when that is over")
    return found


def policy(  # noqa: PLR0917  # the parts of a policy, in their order
    name: str, deployment: str, until: float, most: int, bytes_a_day: int, reasons: Reasons
) -> SamplePolicy:
    """What a device's order says; `until` is unix seconds."""
    return SamplePolicy(
        id=name,
        deployment=deployment,
        until=datetime.fromtimestamp(until, UTC),
        most=most,
        bytes_a_day=bytes_a_day,
        low_confidence=reasons.low_confidence,
        random=reasons.random,
        labels=reasons.labels,
        drifted=reasons.drifted,
        guard=reasons.guard,
    )
