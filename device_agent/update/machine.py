"""The state of one deployment's update machine, and what follows from it alone.

There are no commands: `serves` and `job` are derived from the state, and the reconciler brings the world to them once
the state is on disk. So any cut resumes, any job may be done again, and what is no longer wanted ends by not being
wanted. `transitions` says how the state changes, and what is always true of it.
"""

import msgspec
from msgspec.structs import replace

from device_agent.update.events import Fetch, Job, SelfTest, SlotRef, Stage, Wait
from device_agent.update.trial import Trial
from edgekit.manifest import Sha256
from edgekit.wire.messages import OrderedBundle, OrderOptions
from edgekit.wire.states import AgentState as Step

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0
FIRST_POSTPONEMENT_S, LONGEST_POSTPONEMENT_S = 60.0, 6 * 3600.0


class Lives(msgspec.Struct, frozen=True):
    """The workers of the present placement; kept in memory only. `trouble` is what is wrong with them now."""

    deaths: int = 0
    failed_starts: int = 0
    blamed_starts: int = 0
    trouble: str = ""
    is_looping: bool = False


class Machine(msgspec.Struct, frozen=True):
    """`wanted` is what the newest order says; `committed` what the device falls back to; `previous` what the other
    slot still holds of an earlier commit; `candidate` what is under way; `lost` a committed bundle found damaged.

    `failures` count tries of this step, `setbacks` returns to FETCH, `restarts` the unclean ones of a trial. While
    `is_postponed` the committed bundle serves instead of the candidate.
    """

    step: Step = Step.IDLE
    counter: int = 0
    wanted: OrderedBundle | None = None
    options: OrderOptions = OrderOptions()
    committed: SlotRef | None = None
    previous: SlotRef | None = None
    candidate: SlotRef | None = None
    lost: OrderedBundle | None = None
    reason: str = ""
    failures: int = 0
    doubts: int = 0
    setbacks: int = 0
    restarts: int = 0
    postponements: int = 0
    is_postponed: bool = False
    is_clean: bool = False
    refused: dict[Sha256, str] = {}
    stamp: str = ""
    job_id: int = 0
    generation: int = 0
    trial: Trial = Trial()
    lives: Lives = Lives()


PREPARING = (Step.FETCH, Step.STAGE, Step.SELFTEST)
TRYING = (Step.SWITCH, Step.PROBATION, Step.COMMIT)


def is_busy(machine: Machine) -> bool:
    """Whether an update is under way."""
    return machine.step in PREPARING or machine.step in TRYING


def is_trying(machine: Machine) -> bool:
    """Whether the candidate is what should serve."""
    return machine.step in TRYING and not machine.is_postponed


def serves(machine: Machine) -> SlotRef | None:
    """What should serve now."""
    return machine.candidate if is_trying(machine) else machine.committed


def job(machine: Machine) -> Job | None:
    """What should be worked on now."""
    ref = machine.candidate
    if ref is None:
        return None
    pause = _pause(machine.failures + machine.setbacks, FIRST_PAUSE_S, LONGEST_PAUSE_S)
    if machine.step is Step.FETCH:
        return Fetch(machine.job_id, pause, ref.bundle)
    if machine.step is Step.STAGE:
        return Stage(machine.job_id, pause, ref)
    if machine.step is Step.SELFTEST:
        return SelfTest(machine.job_id, pause, ref)
    if machine.is_postponed:
        pause = _pause(machine.postponements, FIRST_POSTPONEMENT_S, LONGEST_POSTPONEMENT_S)
        return Wait(machine.job_id, pause)
    return None


def task(machine: Machine) -> tuple[object, ...]:
    """What the job is, and which try of it: where this differs, another one is wanted."""
    wanted = job(replace(machine, job_id=0))
    return (type(wanted), wanted, machine.failures, machine.setbacks, machine.postponements)


def _pause(tries: int, first: float, longest: float) -> float:
    """Seconds: nothing before the first try, then doubling."""
    return min(longest, first * 2.0 ** (min(tries, 32) - 1)) if tries else 0.0


def durable(machine: Machine) -> Machine:
    """The part that is worth a write. What a step waits for is not: it changes with every try."""
    reason = "" if is_busy(machine) else machine.reason
    return replace(
        machine, reason=reason, failures=0, doubts=0, job_id=0, generation=0, trial=Trial(), lives=Lives()
    )


def shown(machine: Machine) -> tuple[Step, str]:
    """The state and reason to report: DIVERGED also while a committed bundle without a fallback keeps dying."""
    trouble = machine.lives.trouble
    if machine.step is Step.IDLE and machine.lives.is_looping:
        return Step.DIVERGED, trouble
    if machine.step is Step.ROLLBACK and trouble:
        return machine.step, f"{machine.reason}; and going back failed: {trouble}"
    return machine.step, machine.reason


def conditions(machine: Machine) -> dict[str, str]:
    """What is wrong and nobody's verdict: condition code → detail."""
    found = {}
    if is_busy(machine) and machine.reason:
        found["update-waiting"] = machine.reason
    if machine.lives.trouble:
        found["worker-failing"] = machine.lives.trouble
    return found
