"""Cutting a rollout into stages.

Always true
 1. The order of devices is that of sha256(rollout, device): random, stable, the same for everyone who asks.
 2. A stage takes, of each profile, the first max(1, ceil(share * eligible)) devices; stages only grow.
 3. What a stage has taken is a threshold per profile on that hash, frozen when the stage opens: a late joiner below
    it belongs to the stage, one above it waits for a later one.
 4. Held devices are the last of each profile in the same order; only the closing stage takes them.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence

import msgspec

from edgekit.errors import NotPossibleError, UsageError
from fleet.rules.text import show_percent

# Above every hash.
EVERYONE = "g"
DEFAULT_HOLDBACK = 10
DEFAULT_HOLDBACK_SHARE = 0.02
FIRST_STAGE = 24
_SHARE = re.compile(r"^([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*%$")
_COUNT = re.compile(r"^[0-9]{1,9}$")


class Stage(msgspec.Struct, frozen=True):
    """`share` of the eligible devices that are not held. The closing stage also takes the held ones.

    With `needs_approval` it opens only after an operator said so.
    """

    share: float
    words: str
    is_closing: bool = False
    needs_approval: bool = False


def key(rollout: str, device: str) -> str:
    """A device's place in the order of a rollout."""
    return hashlib.sha256(f"{rollout}\0{device}".encode()).hexdigest()


def parse(text: str, eligible: int) -> tuple[Stage, ...]:
    """Stages of `1%,10%,100%` or `1,10,100%` (counts are of all devices); empty means the default.

    Raises: UsageError unless the stages grow and end with 100 % (or as many devices as there are).
    """
    text = text.strip() or default_for(eligible)
    stages: list[Stage] = []
    for part in (piece.strip() for piece in text.split(",")):
        share = _share(part, eligible, text)
        if stages and share <= stages[-1].share:
            if share == 1.0 == stages[-1].share:
                continue  # `10,100%` in a fleet of ten
            raise UsageError(f"stages: {text!r} must grow from each stage to the next; {part!r} does not")
        stages.append(Stage(share=share, words=_words(part, share)))
    if stages[-1].share != 1.0:
        raise UsageError(f"stages: {text!r} must end with 100%")
    return tuple(stages)


def with_approvals(cut: tuple[Stage, ...], text: str) -> tuple[Stage, ...]:
    """The stages that `2,3` (counted from 1) or `all` names wait for an approval; empty is none. Raises: UsageError."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if words == ["all"]:
        return tuple(msgspec.structs.replace(stage, needs_approval=True) for stage in cut)
    for word in words:
        if not (word.isascii() and word.isdigit()) or not 1 <= int(word) <= len(cut):
            raise NotPossibleError(
                f"approve: {word!r} is no stage; write numbers from 1 to {len(cut)}, or all"
            )
    chosen = {int(word) - 1 for word in words}
    return tuple(
        msgspec.structs.replace(stage, needs_approval=True) if number in chosen else stage
        for number, stage in enumerate(cut)
    )


def _share(part: str, eligible: int, text: str) -> float:
    if match := _SHARE.match(part):
        share = float(match.group(1)) / 100
    elif _COUNT.match(part):
        share = min(1.0, int(part) / max(1, eligible))
    else:
        raise UsageError(f"stages: {part!r} in {text!r} is no stage; write shares like 10% or counts like 3")
    if not 0 < share <= 1:
        raise UsageError(f"stages: {part!r} in {text!r} must lie above 0 and at most at 100%")
    return share


def _words(part: str, share: float) -> str:
    if share == 1.0:
        return "all devices"
    return show_percent(share) if part.endswith("%") else f"{part} device{'s' if part != '1' else ''}"


def default_for(eligible: int) -> str:
    """The first stage is one percent, but at least 24 devices where the fleet is at least twice that large."""
    if eligible < 2 * FIRST_STAGE:
        return "1,100%" if eligible < 10 else "1,25%,100%"
    first = f"{FIRST_STAGE}" if eligible * 0.01 < FIRST_STAGE else "1%"
    rest = [share for share in (10, 50) if share / 100 * eligible > max(FIRST_STAGE, eligible * 0.01)]
    return ",".join([first, *(f"{share}%" for share in rest), "100%"])


def parse_holdback(text: str, eligible: int) -> int:
    """How many devices stay on the old release until the last soak; empty means the default.

    The default is max(10, 2 %) where that leaves at least five times as many to move, otherwise none.
    Raises: UsageError.
    """
    text = text.strip()
    if not text:
        count = max(DEFAULT_HOLDBACK, math.ceil(DEFAULT_HOLDBACK_SHARE * eligible))
        return count if eligible >= 6 * count else 0
    if match := _SHARE.match(text):
        count = math.ceil(float(match.group(1)) / 100 * eligible)
    elif _COUNT.match(text):
        count = int(text)
    else:
        raise UsageError(f"holdback: {text!r} is neither a count like 10 nor a share like 2%")
    if count and count >= eligible:
        raise NotPossibleError(f"holdback: {text} of {eligible} eligible devices leaves none to move")
    return count


def choose_held(profiles: Mapping[str, str], rollout: str, count: int) -> frozenset[str]:
    """The held ones among `profiles` (device → profile): the last in order, no profile left without a mover."""
    movers = dict.fromkeys(set(profiles.values()), 0)
    for profile in profiles.values():
        movers[profile] += 1
    held: list[str] = []
    for device in sorted(profiles, key=lambda device: key(rollout, device), reverse=True):
        if len(held) == count:
            break
        if movers[profiles[device]] > 1:
            movers[profiles[device]] -= 1
            held.append(device)
    return frozenset(held)


def moved_by(stage: Stage, eligible: Mapping[str, int]) -> int:
    """How many devices a stage has moved, of `eligible` ones by profile (those held back are not among them)."""
    return sum(max(1, math.ceil(stage.share * count)) for count in eligible.values())


def thresholds(stage: Stage, keys: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Per profile the largest key that the stage takes; `keys` are those of the eligible, not held devices."""
    if stage.share >= 1.0:
        return dict.fromkeys(keys, EVERYONE)
    return {
        profile: sorted(values)[max(1, math.ceil(stage.share * len(values))) - 1]
        for profile, values in keys.items()
        if values
    }
