"""One device in a rollout: what its reports mean for where it stands.

Always true
 1. Only what a device says of the order it was given counts; words of before the order are of another life.
 2. Succeeded = the ordered digest is loaded *and* committed. A device that arrives late has still arrived.
 3. The deadline runs from the moment the device accepted the order; before that only time spent online counts.
 4. Where several deployments move together, the device has succeeded, or is back, when all of them have, and has failed
    when one of them has; the reason says which. One that failed so is to go back in all of them at once, whatever
    becomes of the rollout: half of them is nothing that anybody asked for.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec

from edgekit.wire.messages import DeploymentReport
from edgekit.wire.states import FLEET_STATE, AgentState, FleetState

# (enrolment, incarnation, seq): orders the messages of a device.
Seen = tuple[int, int, int]

INSTALL_FAILURES = frozenset({FleetState.FAILED, FleetState.REJECTED, FleetState.ROLLED_BACK})
BAD = INSTALL_FAILURES | {FleetState.TIMED_OUT, FleetState.DIVERGED}
SETTLED = BAD | {FleetState.SUCCEEDED}
MOVING = frozenset({FleetState.NOTIFIED, FleetState.FETCHING, FleetState.STAGED, FleetState.PROBATION})


class Part(msgspec.Struct, frozen=True, gc=False):
    """What one deployment of a member moves to, and what it ran before (digests)."""

    target: str
    previous: str | None
    previous_title: str


class Member(msgspec.Struct, frozen=True, gc=False):
    """A selected device. `target` and `previous` are digests; `order_counter` 0 means that it was not told anything.

    They are the first deployment's; `beside` has the same of those that move together with it, in the spec's order.

    `is_held` devices move in the closing stage only. `is_excused`: it failed, and the operator resumed all the same.
    `site` and `zone` are its labels of those names, empty where it has none.
    `is_leaving`: it is to go back, and its order to do so is still to be written; `is_returning`: it was written.
    """

    device: str
    profile: str
    key: str
    target: str
    previous: str | None
    previous_title: str
    site: str = ""
    zone: str = ""
    is_held: bool = False
    state: FleetState = FleetState.PENDING
    reason: str = ""
    stage: int | None = None
    order_counter: int = 0
    ordered_at: datetime | None = None
    notified_at: datetime | None = None
    online_since: datetime | None = None
    seen: Seen = (-1, -1, -1)
    refused_before: str = ""
    is_excused: bool = False
    is_leaving: bool = False
    is_returning: bool = False
    beside: tuple[Part, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """Every deployment that moves, in the spec's order."""
        return (Part(self.target, self.previous, self.previous_title), *self.beside)

    @property
    def was_sent_back(self) -> bool:
        """Whether it failed in one of several deployments, so that it has gone back in all (rule 4)."""
        return bool(self.beside) and self.state in BAD

    @property
    def is_online(self) -> bool:
        return self.online_since is not None

    @property
    def is_reachable(self) -> bool:
        """A device that accepted its order must settle; one that never heard of it must be online to count."""
        return self.is_online or self.notified_at is not None


class Word(msgspec.Struct, frozen=True):
    """The newest that is known of a device: its connection, and its self-description if there is one."""

    device: str
    is_online: bool
    seen: Seen = (-1, -1, -1)
    order_counter: int = 0
    deployments: dict[str, DeploymentReport] = {}
    refused: str = ""


def is_settled(member: Member) -> bool:
    return member.state in SETTLED


def hear(member: Member, word: Word, deployments: Sequence[str], now: datetime) -> Member:
    """The member after this word; the very same object if nothing changed. `deployments` as in the rollout's spec."""
    if word.is_online != member.is_online:
        member = msgspec.structs.replace(member, online_since=now if word.is_online else None)
    if word.seen <= member.seen:
        return member
    member = msgspec.structs.replace(member, seen=word.seen)
    if not member.order_counter:
        return msgspec.structs.replace(member, refused_before=word.refused)
    if word.order_counter < member.order_counter:
        return _not_followed(member, word)
    if member.notified_at is None:
        member = msgspec.structs.replace(member, notified_at=now)
    said = [
        _Said(deployment, part, word.deployments.get(deployment))
        for deployment, part in zip(deployments, member.parts, strict=True)
    ]
    if member.is_returning:
        return _returned(member, said)
    if member.is_leaving and member.was_sent_back:
        # It was given up; what it still reaches before it has its order does not change that.
        return member
    state, reason = _state_of(member, said)
    is_leaving = member.is_leaving or _is_split(member, state, said)
    if (member.state, member.reason, member.is_leaving) == (state, reason, is_leaving):
        return member
    return msgspec.structs.replace(member, state=state, reason=reason, is_leaving=is_leaving)


def time_out(member: Member, now: datetime, deadline_s: float) -> Member:
    """The member after its deadline, if that has passed (rule 3)."""
    if not member.order_counter or is_settled(member):
        return member
    deadline = timedelta(seconds=deadline_s)
    if member.notified_at is not None:
        if now < member.notified_at + deadline:
            return member
        why = f"did not finish in time (last seen {member.state})"
    else:
        if member.online_since is None or member.ordered_at is None:
            return member
        if now < max(member.online_since, member.ordered_at) + deadline:
            return member
        why = "online, but never accepted the order (deaf)"
    return msgspec.structs.replace(member, state=FleetState.TIMED_OUT, reason=why)


def _not_followed(member: Member, word: Word) -> Member:
    """It has not accepted the order. A refusal that it did not report before the order is about this order."""
    if member.is_returning or is_settled(member) or word.refused in ("", member.refused_before):
        return member
    return msgspec.structs.replace(member, state=FleetState.REJECTED, reason=word.refused)


class _Said(NamedTuple):
    """What a device says of one of the deployments that move."""

    deployment: str
    part: Part
    report: DeploymentReport | None

    @property
    def has_arrived(self) -> bool:
        return self.report is not None and self.report.digest == self.report.committed == self.part.target

    @property
    def has_moved(self) -> bool:
        """Whether it runs what it did not before."""
        return self.has_arrived and self.part.target != self.part.previous

    @property
    def is_behind(self) -> bool:
        """Whether what it says is about an order of before."""
        return self.report is not None and self.report.ordered not in (None, self.part.target)

    @property
    def has_left(self) -> bool:
        """Whether one that had arrived has not stayed."""
        if self.report is None:
            return False
        return self.report.state is AgentState.DIVERGED or self.report.digest not in (None, self.part.target)

    @property
    def is_back(self) -> bool:
        return (self.report.digest if self.report else None) == self.part.previous


def _is_split(member: Member, state: FleetState, said: Sequence[_Said]) -> bool:
    """Whether one of several deployments has failed and others may go on without it (rule 4)."""
    if len(said) == 1 or state not in BAD:
        return False
    return state is not member.state or any(one.has_moved for one in said)


def _returned(member: Member, said: Sequence[_Said]) -> Member:
    """Going back: done when it runs its previous bundles again, or nothing where there was nothing."""
    if not all(one.is_back for one in said):
        return member
    return msgspec.structs.replace(member, state=FleetState.ROLLED_BACK, is_returning=False)


def _state_of(member: Member, said: Sequence[_Said]) -> tuple[FleetState, str]:
    """Rule 4: the worst that is said, else the least far of those that have not arrived."""
    before = (member.state, member.reason)
    if all(one.report is None for one in said):
        return before if member.state is not FleetState.PENDING else (FleetState.NOTIFIED, "")
    if all(one.has_arrived for one in said):
        return FleetState.SUCCEEDED, ""
    if member.state is FleetState.SUCCEEDED:
        left = next((one for one in said if one.has_left), None)
        return (FleetState.DIVERGED, _reason(left, said, "left the release again")) if left else before
    if member.state in BAD and member.state is not FleetState.TIMED_OUT:
        return before
    found = [(_progress(member, one), one) for one in said if not (one.has_arrived or one.is_behind)]
    if not found:
        return before
    state, least = min(found, key=lambda entry: _RANK[entry[0]])
    if member.state is FleetState.TIMED_OUT and state not in BAD:
        return before
    return state, _reason(least, said) if state in BAD else ""


def _progress(member: Member, one: _Said) -> FleetState:
    """How far a deployment is that has not arrived."""
    report = one.report
    if report is None:
        return FleetState.NOTIFIED
    if report.state is AgentState.IDLE and report.reason and report.ordered == one.part.target:
        # It tried and is at rest again without the bundle: what it tried last says which kind of failure.
        went_far = member.state is FleetState.PROBATION
        return FleetState.ROLLED_BACK if went_far else FleetState.FAILED
    return FLEET_STATE[report.state]


def _reason(one: _Said, said: Sequence[_Said], otherwise: str = "") -> str:
    """In its own words, with the deployment's name where there are several."""
    reason = (one.report.reason if one.report else "") or otherwise
    return f"{one.deployment}: {reason}" if len(said) > 1 else reason


# The worst first, then the least far.
_RANK = {
    state: rank
    for rank, state in enumerate(
        (*sorted(BAD), FleetState.PENDING, FleetState.NOTIFIED, FleetState.FETCHING, FleetState.STAGED,
         FleetState.PROBATION, FleetState.SUCCEEDED)
    )
}  # fmt: skip
