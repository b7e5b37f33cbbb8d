"""Why an input is kept, if it is: pure, the draw passed in.

Always true
 1. Without a policy that names the deployment and a reason that holds, nothing is kept.
 2. What is not known is no reason: without classes there is no low confidence and no label.
"""

from collections.abc import Iterable
from typing import NamedTuple

from edgekit.wire.samples import Reason, SamplePolicy


class Seen(NamedTuple):
    """What is known of an input after the model's answer. `draw` is uniform in [0, 1)."""

    draw: float
    confidence: float | None = None
    label: str = ""
    is_drifting: bool = False
    is_flagged: bool = False


def needs_class(policies: Iterable[SamplePolicy]) -> bool:
    """Whether a policy asks for the model's best class."""
    return any(policy.low_confidence is not None or policy.labels for policy in policies)


def reason(policy: SamplePolicy, seen: Seen) -> Reason | None:
    """The first reason of the policy that holds; what happens seldom comes first."""
    if policy.guard and seen.is_flagged:
        return "guard"
    if policy.labels and seen.label in policy.labels:
        return "rule"
    if (
        policy.low_confidence is not None
        and seen.confidence is not None
        and seen.confidence < policy.low_confidence
    ):
        return "confidence"
    if policy.drifted and seen.is_drifting:
        return "drift"
    if policy.random is not None and seen.draw < policy.random:
        return "random"
    return None


def choose(policies: Iterable[SamplePolicy], seen: Seen) -> tuple[SamplePolicy, Reason] | None:
    """The first policy that wants the input, and why."""
    for policy in policies:
        if (why := reason(policy, seen)) is not None:
            return policy, why
    return None
