"""A rollout as a track of its stages, and what it waits for in a sentence. Pure.

Always true
 1. Everything follows from the rollout without its members and from counts of alike ones.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from fleet.rules import stages
from fleet.rules.gates import Outcome, Verdict
from fleet.rules.members import BAD, MOVING
from fleet.rules.rollout import RETURNING, Rollout, Status
from fleet.server.store.glance import Tally
from fleet.server.web import words

# In the order in which a bar shows them.
KINDS = (words.GOOD, words.BUSY, words.BAD, words.BACK, words.WAITS)
KIND_WORDS = {
    words.GOOD: "done",
    words.BUSY: "moving",
    words.BAD: "failed",
    words.BACK: "gone back",
    words.WAITS: "waiting",
}


class Part(NamedTuple):
    """A piece of a bar: from `start` on, `width` of it, in percent."""

    kind: str
    word: str
    many: int
    start: float
    width: float


class Segment(NamedTuple):
    """A stage: `state` is done, open, to come, waits for approval, stopped or not begun; `devices` are those that it adds."""

    number: int
    words: str
    state: str
    devices: int
    parts: tuple[Part, ...]


class Sentence(NamedTuple):
    """What the rollout waits for: `text`, then when that is over, where a clock decides, and the rest."""

    text: str
    until: datetime | None = None
    rest: str = ""


def bar(counts: Sequence[tuple[str, str, int]]) -> tuple[Part, ...]:
    """(kind, word, count) side by side; pieces of nothing are left out."""
    whole, at, found = sum(count for _, _, count in counts), 0.0, []
    for kind, word, count in counts:
        if count:
            width = 100 * count / whole
            found.append(Part(kind, word, count, round(at, 3), round(width, 3)))
            at += width
    return tuple(found)


_TURNED = frozenset({Status.ROLLING_BACK, Status.ABORTING, Status.ROLLED_BACK, Status.ABORTED})


def track(head: Rollout, tallies: Sequence[Tally]) -> tuple[Segment, ...]:
    free: Counter[str] = Counter()
    held = 0
    asked: Counter[tuple[int, str]] = Counter()
    for tally in tallies:
        if tally.is_held:
            held += tally.many
        else:
            free[tally.profile] += tally.many
        if tally.stage is not None:
            asked[tally.stage, words.state(tally.state).kind] += tally.many
    found, before = [], 0
    for index, stage in enumerate(head.spec.stages):
        reached = sum(free.values()) + held if stage.is_closing else stages.moved_by(stage, free)
        told = sum(count for (at, _), count in asked.items() if at == index)
        added = max(reached - before, told)
        before = max(before, reached)
        counts = {kind: asked[index, kind] for kind in KINDS}
        counts[words.WAITS] += added - told
        parts = bar([(kind, KIND_WORDS[kind], counts[kind]) for kind in KINDS])
        found.append(Segment(index + 1, stage.words, _state(head, index), added, parts))
    return tuple(found)


def _state(head: Rollout, index: int) -> str:
    if head.status is Status.COMPLETED or index < head.stage:
        return "done"
    if head.status in _TURNED:
        return "stopped" if index == head.stage else "not begun"
    if head.awaits == index:
        return "waits for approval"
    return "open" if index == head.stage and head.status is not Status.QUEUED else "to come"


def counts(tallies: Sequence[Tally]) -> dict[str, int]:
    """State → devices, most of them first."""
    found: Counter[str] = Counter()
    for tally in tallies:
        found[tally.state] += tally.many
    return dict(found.most_common())


def ahead(head: Rollout, steps: Sequence[Segment]) -> int:
    """Devices that the stage which comes next would add."""
    following = head.awaits if head.awaits is not None else head.stage + 1
    return steps[following].devices if 0 <= following < len(steps) else 0


def deciding(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The gate that decides next: one that is violated, else one that lacks data, else none."""
    for outcome in (Outcome.VIOLATED, Outcome.INCONCLUSIVE):
        for verdict in verdicts:
            if verdict.outcome is outcome:
                return verdict
    return None


def waits_for(
    head: Rollout, tallies: Sequence[Tally], steps: Sequence[Segment], *, now: datetime, shift: timedelta
) -> Sentence:
    """`shift` takes the rollout's steady times to the wall clock's, of which `now` is."""
    match head.status:
        case Status.RUNNING:
            return _running(head, tallies, steps, now=now, shift=shift)
        case Status.PAUSED:
            return Sentence(words.sentence(head.reason) or "A person paused it.")
        case Status.QUEUED:
            return Sentence(words.sentence(head.reason))
        case Status.COMPLETED:
            return Sentence(
                "All its devices run the release, and what is assigned to them now is this release."
            )
        case status if status in RETURNING:
            left = sum(t.many for t in tallies if t.stage is not None and t.state != "rolled_back")
            return Sentence(
                f"{words.sentence(head.reason)} Its devices go back; {left:,} are still on their way."
            )
        case _:
            return Sentence(words.sentence(head.reason))


def _running(
    head: Rollout, tallies: Sequence[Tally], steps: Sequence[Segment], *, now: datetime, shift: timedelta
) -> Sentence:
    if head.awaits is not None:
        step = steps[head.awaits]
        return Sentence(
            f"Stage {head.awaits + 1} ({step.words}, {words.devices(step.devices)}) waits for somebody to approve it."
        )
    mine = [tally for tally in tallies if tally.stage == head.stage]
    number = head.stage + 1
    untold = (
        steps[head.stage].devices - sum(tally.many for tally in mine) if 0 <= head.stage < len(steps) else 0
    )
    moving = sum(tally.many for tally in mine if tally.state in MOVING)
    pending = sum(tally.many for tally in mine if tally.state == "pending")
    if head.soak_from is None:
        return Sentence(_settling(number, moving, untold + pending))
    until = head.soak_from + timedelta(seconds=head.spec.soak_s) + shift
    gate = deciding(head.verdicts)
    if until > now:
        so_far = f"{gate.gate} {_TELLS[gate.outcome]}" if gate is not None else "every gate holds"
        rest = f". So far, {so_far}." if head.verdicts else "."
        return Sentence(f"The gates of stage {number} decide", until, rest)
    if gate is None:
        return Sentence(f"Stage {number} has been watched long enough; the next step follows.")
    return Sentence(f"Stage {number} has been watched long enough, but {gate.gate} {_TELLS[gate.outcome]}.")


_TELLS = {
    Outcome.VIOLATED: "is violated",
    Outcome.INCONCLUSIVE: "has too little data to decide on",
    Outcome.SATISFIED: "holds",
}


def _settling(number: int, moving: int, untold: int) -> str:
    told = words.either(
        moving, f"One device of stage {number} moves", f"{{n}} devices of stage {number} move"
    )
    whose = f"of stage {number} " if not moving else ""
    rest = words.either(
        untold,
        f"one device {whose}has not taken its order yet",
        f"{{n}} devices {whose}have not taken their order yet",
    )
    who = ", and ".join(part for part, count in ((told, moving), (rest, untold)) if count)
    who = who[:1].upper() + who[1:] or f"Stage {number} settles"
    return f"{who}; watching begins once all that can be reached have settled."


def failed(tallies: Sequence[Tally]) -> int:
    return sum(tally.many for tally in tallies if tally.state in BAD)
