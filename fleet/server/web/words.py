"""Figures and states as people say them, for the page's templates. Pure."""

import itertools
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

# What a state means to who looks: it is well, something moves, it waits, a person is asked, it went wrong, it went back,
# it is away. Each has a shape of its own, so that nothing rests on colour.
GOOD, BUSY, WAITS, ASKS, BAD, BACK, AWAY = "good", "busy", "waits", "asks", "bad", "back", "away"


# What stands where there is no figure: an en dash.
NOTHING = "\N{EN DASH}"


class Shown(NamedTuple):
    """A state's kind and its word."""

    kind: str
    word: str


_KINDS: Mapping[str, str] = {
    # Devices in a rollout.
    "pending": WAITS,
    "notified": BUSY,
    "fetching": BUSY,
    "staged": BUSY,
    "probation": BUSY,
    "succeeded": GOOD,
    "failed": BAD,
    "timed_out": BAD,
    "rejected": BAD,
    "diverged": BAD,
    "rolled_back": BACK,
    # Rollouts.
    "queued": WAITS,
    "running": BUSY,
    "paused": ASKS,
    "rolling_back": BACK,
    "aborting": BACK,
    "aborted": BACK,
    "completed": GOOD,
    # Gates.
    "satisfied": GOOD,
    "violated": BAD,
    "inconclusive": WAITS,
    # What an agent says of a deployment.
    "idle": GOOD,
    "fetch": BUSY,
    "stage": BUSY,
    "selftest": BUSY,
    "switch": BUSY,
    "commit": BUSY,
    "rollback": BACK,
    # Devices.
    "online": GOOD,
    "offline": AWAY,
    "behind": BUSY,
    "new": WAITS,
    "cloned": BAD,
    # Stages.
    "done": GOOD,
    "open": BUSY,
    "to come": WAITS,
    "not begun": WAITS,
    "waits for approval": ASKS,
    # Tokens, users, batches.
    "good": GOOD,
    "expired": AWAY,
    "revoked": AWAY,
    "blocked": BAD,
    "full": GOOD,
    "run out": AWAY,
    "withdrawn": AWAY,
    # Experiments.
    "stopped": BACK,
    "adopted": GOOD,
    # Commands.
    "waiting": WAITS,
    "accepted": BUSY,
    "refused": BAD,
    # Shadows.
    "served": GOOD,
    # Collections of samples.
    "active": BUSY,
    "over": AWAY,
    # Alerts.
    "warning": ASKS,
    "critical": BAD,
    # Budgets.
    "met": GOOD,
    "missed": BAD,
    "unverified": ASKS,
    "no-limit": WAITS,
}
_WORDS: Mapping[str, str] = {
    "behind": "has not taken its order yet",
    "new": "has not enrolled yet",
    "cloned": "two machines, one name",
    "no-limit": "no limit",
}


def state(name: str) -> Shown:
    """One that nobody knows is shown by its name, as something that waits."""
    return Shown(_KINDS.get(name, WAITS), _WORDS.get(name, name.replace("_", " ")))


_STEPS = ((86_400.0, "day"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def span(seconds: float) -> str:
    """A length of time in its two largest units at most: `12 min`, `1 h 20 min`, `3 days`."""
    left = round(max(0.0, seconds))
    if left >= 2 * 86_400:
        return f"{round(left / 86_400)} days"
    for (size, name), (small, small_name) in itertools.pairwise(_STEPS):
        if left >= size:
            count, rest = divmod(left, int(size))
            more = rest // int(small)
            # Seconds beside minutes only where there are few of these.
            tail = f" {more} {small_name}" if more and (name != "min" or count < 2) else ""
            return f"{count} {name}{tail}"
    return f"{left} s"


def ago(at: datetime, now: datetime) -> str:
    """How long ago, or how long until then."""
    passed = (now - at).total_seconds()
    if abs(passed) < 1:
        return "now"
    return f"{span(passed)} ago" if passed > 0 else f"in {span(-passed)}"


def exact(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def count(number: float) -> str:
    """`12,345`."""
    return f"{number:,.0f}"


def devices(number: int) -> str:
    return f"{number:,} device" + ("" if number == 1 else "s")


def either(number: int, one: str, many: str) -> str:
    """One of two sentences by the number, which stands where they say {n}."""
    return (one if number == 1 else many).replace("{n}", f"{number:,}")


def size(length: float) -> str:
    """Bytes in decimal units."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if length >= step:
            return f"{length / step:.3g} {unit}"
    return f"{length:.0f} B"


def share(part: float | None) -> str:
    """`0.42 %`."""
    return NOTHING if part is None else f"{part * 100:.3g} %"


def milliseconds(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"


def number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4g}"


def sentence(text: str) -> str:
    """An error's or a reason's words, which begin with a small letter and end without a point."""
    text = text.strip()
    if not text:
        return ""
    first, _, _ = text.partition(" ")
    # What is no word of ours keeps its letters: a metric, a rollout.
    begun = text[:1].upper() + text[1:] if first.isalpha() else text
    return begun + ("" if text[-1] in ".!?…" else ".")
