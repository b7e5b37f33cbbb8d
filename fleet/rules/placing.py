"""What a device is to run where no rollout has the say, and when a change of the device takes it out of one.

Pure: labels, digests and members in, a decision out; the caller knows the bundles.

Always true
 1. The newest assignment whose selector matches a device holds for it.
 2. A device that runs something keeps it, unless it is to be placed again: its labels, its deployments or its hardware
    changed, or somebody assigned something else to where it is.
 3. A device that runs nothing gets what is assigned, and comes to rest with it before any rollout takes it in: it has
    something to go back to.
 4. A device is in a rollout only while the rollout's selector matches it, it has the deployment, and the bundle that it
    would get there is one for its hardware. A rollout that turns back finishes with whom it moved.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec

from edgekit.wire.messages import DeploymentReport
from edgekit.wire.states import AgentState
from fleet.rules import selectors
from fleet.rules.members import Member
from fleet.rules.rollout import RETURNING, Status
from fleet.rules.selectors import Labels, Selector


class Assignment(msgspec.Struct, frozen=True):
    """What the devices of a selector run in one deployment; `rollout` 0 is a person's own."""

    id: int
    deployment: str
    selector: str
    name: str
    version: str
    rollout: int = 0
    probation_s: float | None = None

    @property
    def title(self) -> str:
        return f"{self.name}@{self.version}"


class Assignments:
    """All of them, newest first."""

    def __init__(self, newest_first: Sequence[Assignment]) -> None:
        self.ids = tuple(one.id for one in newest_first)
        self._of: dict[str, list[tuple[Selector, Assignment]]] = {}
        for one in newest_first:
            self._of.setdefault(one.deployment, []).append((selectors.parse(one.selector), one))

    def holding(self, labels: Labels, deployment: str) -> Assignment | None:
        """The one that holds for a device of these labels."""
        of_deployment = self._of.get(deployment, [])
        return next((one for selector, one in of_deployment if selector.matches(labels)), None)


def next_bundle(has: str | None, assigned: str | None, *, is_busy: bool, again: bool) -> str | None:
    """The digest to order now of a deployment that is ordered `has`; None if nothing is to change (rules 2 and 3)."""
    if assigned is None or assigned == has or is_busy:
        return None
    return assigned if has is None or again else None


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
    """`chain` are the profiles whose bundles the device can run (rule 4)."""
    if not has_deployment:
        return Standing.LEAVES
    fits = member.profile in chain
    if status in RETURNING:
        return Standing.STAYS if fits else Standing.EXCHANGED
    if not is_selected or not (fits or member.order_counter):
        # Who was told nothing joins again, as what it is now.
        return Standing.LEAVES
    return Standing.STAYS if fits else Standing.EXCHANGED


def exchanged(member: Member, profile: str, target: str, previous: str | None) -> Member:
    """The member on other hardware; where it stands is for it to say anew."""
    return msgspec.structs.replace(member, profile=profile, target=target, previous=previous)


def relabelled(labels: Mapping[str, str], changes: Mapping[str, str], gone: Sequence[str]) -> dict[str, str]:
    """Labels after some were set and some taken away."""
    return {key: value for key, value in {**labels, **changes}.items() if key not in gone}
