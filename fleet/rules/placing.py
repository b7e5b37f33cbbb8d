"""What a device is to run where no rollout has the say, and when a change of the device takes it out of one.

Pure: labels, digests and members in, a decision out; the caller knows the bundles.

Always true
 1. The newest assignment whose selector matches a device holds for it. Those that one rollout left hold together: for a
    device that has all their deployments, and it gets all that still hold or none.
 2. A device that runs something keeps it, unless it is to be placed again (its labels, its deployments or its hardware
    changed, or somebody assigned something else to where it is), or something was assigned to where it is after it got
    what it has: it was away all the while.
 3. What it has by an assignment it loses with that: when the release is assigned nowhere any more, because a rollout was
    rolled back, it goes back at once to what holds now, or to no model.
 4. What a rollout assigned is given to a device that runs something only while it is online, and inside that rollout's
    maintenance windows. A person's own word waits for nothing, and neither does who runs nothing.
 5. A device that runs nothing gets what is assigned, and comes to rest with it before any rollout takes it in: it has
    something to go back to.
 6. A device is in a rollout only while the rollout's selector matches it, it has the deployment, and the bundle that it
    would get there is one for its hardware. A rollout that turns back finishes with whom it moved.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from enum import StrEnum

import msgspec

from edgekit.wire.messages import DeploymentReport
from edgekit.wire.states import AgentState
from fleet.rules import selectors, windows
from fleet.rules.members import Member, Part
from fleet.rules.pace import Pace
from fleet.rules.rollout import RETURNING, Status
from fleet.rules.selectors import Labels, Selector

BY_ASSIGNMENT = "assignment "


class Assignment(msgspec.Struct, frozen=True):
    """What the devices of a selector run in one deployment; `rollout` 0 is a person's own."""

    id: int
    deployment: str
    selector: str
    name: str
    version: str
    rollout: int = 0
    probation_s: float | None = None
    # Wall.
    set_at: float = 0.0

    @property
    def title(self) -> str:
        return f"{self.name}@{self.version}"


class Assignments:
    """All of them, newest first."""

    def __init__(self, newest_first: Sequence[Assignment]) -> None:
        self.ids = tuple(one.id for one in newest_first)
        self._of: dict[str, list[tuple[Selector, Assignment]]] = {}
        self._titles = {(one.deployment, one.title) for one in newest_first}
        self._left_by: dict[int, list[Assignment]] = {}
        for one in newest_first:
            self._of.setdefault(one.deployment, []).append((selectors.parse(one.selector), one))
            if one.rollout:
                self._left_by.setdefault(one.rollout, []).append(one)

    def holding(self, labels: Labels, deployment: str, has: Collection[str]) -> Assignment | None:
        """The one that holds for a device of these labels, which has these deployments."""
        for selector, one in self._of.get(deployment, []):
            if selector.matches(labels) and all(other.deployment in has for other in self._left_with(one)):
                return one
        return None

    def together(self, one: Assignment, labels: Labels, has: Collection[str]) -> list[Assignment]:
        """Those that hold for the device together with this one; a newer one may have taken the place of some."""
        others = [other for other in self._left_with(one) if other is not one]
        return [other for other in others if self.holding(labels, other.deployment, has) is other]

    def _left_with(self, one: Assignment) -> list[Assignment]:
        return self._left_by.get(one.rollout, [])

    def withdrew(self, deployment: str, because: str) -> bool:
        """Whether a device has something on account of an assignment that is there no more."""
        title = because.removeprefix(BY_ASSIGNMENT)
        return title != because and (deployment, title) not in self._titles


class Has(msgspec.Struct, frozen=True):
    """What a deployment is ordered, since when (wall), and whether the assignment that gave it was taken away."""

    sha256: str
    set_at: float = 0.0
    is_withdrawn: bool = False


class Given(msgspec.Struct, frozen=True):
    """What is assigned to it, since when (wall); `sha256` is None where no bundle of that release is for it."""

    sha256: str | None
    set_at: float = 0.0


def may_change(has: Has | None, holding: Assignment) -> bool:
    """Whether a deployment that is not marked could change to what holds for it, whatever bundle that is."""
    return has is None or has.is_withdrawn or has.set_at < holding.set_at


def changes(has: Has | None, given: Given | None, *, is_marked: bool) -> bool:
    """Whether a deployment that no rollout has goes over to what is given, or to no model where nothing is (2, 3, 5)."""
    if given is None:
        return has is not None and has.is_withdrawn
    if given.sha256 is None:
        return False
    if has is None:
        return True
    return given.sha256 != has.sha256 and (is_marked or has.is_withdrawn or has.set_at < given.set_at)


def is_open(pace: Pace, zone: str, wall: datetime) -> bool:
    """Whether devices of a time zone ("" is the rollout's own) may change now, by the rollout that assigned it (rule 4)."""
    return not pace.windows or windows.left_s(pace.windows, zone or pace.zone, wall) > 0


_AT_REST = frozenset({AgentState.FAILED, AgentState.DIVERGED})


def is_at_rest(has: str | None, report: DeploymentReport | None) -> bool:
    """Whether a device that is ordered `has` has done with that what it could, for better or worse."""
    if has is None:
        return True
    if report is None:
        return False
    if report.digest == report.committed == has or report.state in _AT_REST:
        return True
    return report.state is AgentState.IDLE and bool(report.reason)


class Standing(StrEnum):
    """What becomes of a member whose device has changed."""

    STAYS = "stays"
    LEAVES = "leaves"
    # It goes on where it is, with the bundles for its new hardware.
    EXCHANGED = "exchanged"


def standing(
    member: Member, status: Status, *, is_selected: bool, has_deployment: bool, chain: Sequence[str]
) -> Standing:
    """`chain` are the profiles whose bundles the device can run (rule 6)."""
    if not has_deployment:
        return Standing.LEAVES
    fits = member.profile in chain
    if status in RETURNING:
        return Standing.STAYS if fits else Standing.EXCHANGED
    if not is_selected or not (fits or member.order_counter):
        # Who was told nothing joins again, as what it is now.
        return Standing.LEAVES
    return Standing.STAYS if fits else Standing.EXCHANGED


def exchanged(member: Member, profile: str, parts: Sequence[Part]) -> Member:
    """The member on other hardware; where it stands is for it to say anew."""
    first, *beside = parts
    return msgspec.structs.replace(
        member, profile=profile, target=first.target, previous=first.previous, beside=tuple(beside)
    )


def relabelled(labels: Mapping[str, str], changes: Mapping[str, str], gone: Sequence[str]) -> dict[str, str]:
    """Labels after some were set and some taken away."""
    return {key: value for key, value in {**labels, **changes}.items() if key not in gone}
