"""Agent states, fleet states, and the one table between them (DESIGN §6, §8)."""

from collections.abc import Mapping
from enum import StrEnum


class AgentState(StrEnum):
    """A step of the update machine as the device reports it."""

    IDLE = "idle"
    FETCH = "fetch"
    STAGE = "stage"
    SELFTEST = "selftest"
    SWITCH = "switch"
    PROBATION = "probation"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    FAILED = "failed"
    DIVERGED = "diverged"


class FleetState(StrEnum):
    """Where a device stands in a rollout."""

    PENDING = "pending"
    NOTIFIED = "notified"
    FETCHING = "fetching"
    STAGED = "staged"
    PROBATION = "probation"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    ROLLED_BACK = "rolled_back"
    REJECTED = "rejected"
    DIVERGED = "diverged"


# What a report about the *ordered* digest means to the rollout. IDLE is decided by the digests: it is SUCCEEDED only
# when the ordered digest is loaded and committed, otherwise the order was merely heard.
FLEET_STATE: Mapping[AgentState, FleetState] = {
    AgentState.IDLE: FleetState.NOTIFIED,
    AgentState.FETCH: FleetState.FETCHING,
    AgentState.STAGE: FleetState.STAGED,
    AgentState.SELFTEST: FleetState.STAGED,
    AgentState.SWITCH: FleetState.STAGED,
    AgentState.PROBATION: FleetState.PROBATION,
    AgentState.COMMIT: FleetState.PROBATION,
    AgentState.ROLLBACK: FleetState.ROLLED_BACK,
    AgentState.FAILED: FleetState.FAILED,
    AgentState.DIVERGED: FleetState.DIVERGED,
}
