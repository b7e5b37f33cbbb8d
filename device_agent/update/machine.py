"""The state of one deployment's update machine, and what follows from it alone.

There are no commands: `serves` and `job` are derived from the state, and the reconciler brings the world to them once
the state is on disk. So any cut resumes, any job may be done again, and what is no longer wanted ends by not being
wanted. `transitions` says how the state changes, and what is always true of it.
"""

import msgspec
from msgspec.structs import replace

from device_agent.update.events import Fetch, Job, Recheck, SelfTest, SlotName, SlotRef, Stage, Stamp, Wait
from device_agent.update.trial import Trial
from edgekit.manifest import Sha256
from edgekit.wire.messages import OrderedBundle, OrderOptions
from edgekit.wire.states import AgentState as Step

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0
# How long the committed bundle serves again while it is seen whether that brings the link back.
SUSPEND_S = 120.0
FIRST_POSTPONEMENT_S, LONGEST_POSTPONEMENT_S = 60.0, 6 * 3600.0


class Lives(msgspec.Struct, frozen=True):
    """The workers of the present placement; kept in memory only. `trouble` is what is wrong with them now."""

    deaths: int = 0
    failed_starts: int = 0
    blamed_starts: int = 0
    trouble: str = ""
    is_looping: bool = False


class Check(msgspec.Struct, frozen=True):
    """The tries of the present `Recheck`; kept in memory only."""

    failures: int = 0
    doubts: int = 0
    reason: str = ""


class Machine(msgspec.Struct, frozen=True):
    """`wanted` is what the newest order says; `committed` what the device falls back to; `previous` what the other
    slot still holds of an earlier commit; `candidate` what is under way; `lost` a committed bundle found damaged.

    `failures` count tries of this step, `setbacks` returns to FETCH, `restarts` the unclean ones of a trial,
    `link_losses` how often the link went with the candidate and came back without it. While
    `is_postponed` the committed bundle serves instead of the candidate; while `is_suspended` too, to see whether a link
    that was lost after the switch comes back.

    `stamp` is what runs bundles now; `proved` the stamp under which each bundle here last passed its golden data;
    `failing` why one does not pass under the present stamp.
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
    link_losses: int = 0
    is_postponed: bool = False
    is_suspended: bool = False
    is_linked: bool = False
    is_clean: bool = False
    refused: dict[Sha256, str] = {}
    stamp: Stamp = {}
    proved: dict[Sha256, Stamp] = {}
    failing: dict[Sha256, str] = {}
    serves_despite: bool = False
    job_id: int = 0
    generation: int = 0
    trial: Trial = Trial()
    lives: Lives = Lives()
    check: Check = Check()


MAX_REFUSED = 32
PREPARING = (Step.FETCH, Step.STAGE, Step.SELFTEST)
TRYING = (Step.SWITCH, Step.PROBATION, Step.COMMIT)


def is_busy(machine: Machine) -> bool:
    """Whether an update is under way."""
    return machine.step in PREPARING or machine.step in TRYING


def is_trying(machine: Machine) -> bool:
    """Whether the candidate is what should serve."""
    return machine.step in TRYING and not (machine.is_postponed or machine.is_suspended)


def is_on_trial(machine: Machine) -> bool:
    """Whether the candidate has been started and is judged by what it does."""
    return is_trying(machine) and machine.step is not Step.SWITCH


def serves(machine: Machine) -> SlotRef | None:
    """What should serve now. A committed bundle does not before its golden data was run under the present stamp."""
    if is_trying(machine):
        return machine.candidate
    ref = machine.committed
    if ref is None or is_proved(machine, ref):
        return ref
    return ref if machine.serves_despite and ref.bundle.sha256 in machine.failing else None


def is_proved(machine: Machine, ref: SlotRef) -> bool:
    """Whether the bundle passed its golden data under the present versions."""
    return machine.proved.get(ref.bundle.sha256) == machine.stamp


def unchecked(machine: Machine) -> SlotRef | None:
    """The bundle whose golden data has to be run again now: the committed one, and, if that fails, the one before."""
    ref = machine.committed
    if ref is not None and ref.bundle.sha256 in machine.failing:
        ref = None if machine.serves_despite else machine.previous
    if ref is None or is_proved(machine, ref) or ref.bundle.sha256 in machine.failing:
        return None
    return ref


def job(machine: Machine) -> Job | None:
    """What should be worked on now."""
    if (ref := unchecked(machine)) is not None:
        pause = _pause(machine.check.failures, FIRST_PAUSE_S, LONGEST_PAUSE_S)
        return Recheck(machine.job_id, pause, ref)
    ref = machine.candidate
    if ref is None:
        return None
    pause = _pause(machine.failures + machine.setbacks, FIRST_PAUSE_S, LONGEST_PAUSE_S)
    if machine.step is Step.FETCH:
        # The first try waits for its turn among the devices of its site; later ones have their own pauses.
        pause = pause or machine.options.fetch_after_s
        return Fetch(machine.job_id, pause, ref.bundle, machine.options.fetch_bytes_s)
    if machine.step is Step.STAGE:
        return Stage(machine.job_id, pause, ref)
    if machine.step is Step.SELFTEST:
        return SelfTest(machine.job_id, pause, ref)
    if machine.is_suspended:
        return Wait(machine.job_id, SUSPEND_S)
    if machine.is_postponed:
        pause = _pause(machine.postponements, FIRST_POSTPONEMENT_S, LONGEST_POSTPONEMENT_S)
        return Wait(machine.job_id, pause)
    return None


def task(machine: Machine) -> tuple[object, ...]:
    """What the job is, and which try of it: where this differs, another one is wanted."""
    wanted = job(replace(machine, job_id=0))
    return (type(wanted), wanted, machine.failures, machine.setbacks, machine.postponements, machine.check)


def _pause(tries: int, first: float, longest: float) -> float:
    """Seconds: nothing before the first try, then doubling."""
    return min(longest, first * 2.0 ** (min(tries, 32) - 1)) if tries else 0.0


def durable(machine: Machine) -> Machine:
    """The part that is worth a write. What a step waits for is not: it changes with every try."""
    reason = "" if is_busy(machine) else machine.reason
    return replace(
        machine, reason=reason, failures=0, doubts=0, job_id=0, generation=0, trial=Trial(), lives=Lives(),
        check=Check(), is_suspended=False, is_linked=False,
    )  # fmt: skip


def shown(machine: Machine) -> tuple[Step, str]:
    """The state and reason to report: DIVERGED also while a committed bundle without a fallback keeps dying."""
    trouble = machine.lives.trouble
    if machine.step is Step.IDLE and machine.lives.is_looping:
        return Step.DIVERGED, trouble
    if machine.step is Step.IDLE and serves(machine) is None and (told := engine_change(machine)):
        return Step.DIVERGED, told
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
    if told := engine_change(machine):
        found["engine-changed"] = told
    return found


def engine_change(machine: Machine) -> str:
    """What other versions did to the committed bundle; empty if it passes, or its golden data is being run."""
    if machine.committed is None or is_proved(machine, machine.committed):
        return ""
    digest = machine.committed.bundle.sha256
    if digest in machine.failing:
        serving = "it serves all the same, as told" if machine.serves_despite else "it does not serve"
        return f"{machine.failing[digest]}; {serving}"
    return (
        f"{changes(machine, digest)}: waiting to test again: {machine.check.reason}"
        if machine.check.reason
        else ""
    )


def changes(machine: Machine, digest: Sha256) -> str:
    """The versions that differ from those under which the bundle last passed."""
    before = machine.proved.get(digest)
    if before is None:
        return "the versions that it was committed under are not known"
    names = sorted(
        name for name in before.keys() | machine.stamp.keys() if before.get(name) != machine.stamp.get(name)
    )
    return ", ".join(
        f"{name} {before.get(name, 'none')} -> {machine.stamp.get(name, 'none')}" for name in names
    )


# -- parts of a state --------------------------------------------------------------------------------------------


def is_of(ref: SlotRef | None, digest: str) -> bool:
    return ref is not None and ref.bundle.sha256 == digest


def free_slot(machine: Machine) -> SlotName:
    return "B" if machine.committed is not None and machine.committed.slot == "A" else "A"


def refusing(machine: Machine, ref: SlotRef | None, reason: str) -> Machine:
    if ref is None:
        return machine
    digest = ref.bundle.sha256
    others = [(known, why) for known, why in machine.refused.items() if known != digest]
    refused = {**dict(others[-(MAX_REFUSED - 1) :]), digest: reason}
    previous = None if is_of(machine.previous, digest) else machine.previous
    return replace(machine, refused=refused, previous=previous)


def proving(machine: Machine, ref: SlotRef) -> Machine:
    """The bundle passed its golden data under the present stamp; what is said of bundles no longer here is dropped."""
    here = {known.bundle.sha256 for known in (machine.committed, machine.previous) if known is not None}
    proved = {digest: stamp for digest, stamp in machine.proved.items() if digest in here}
    failing = {digest: why for digest, why in machine.failing.items() if digest in here - {ref.bundle.sha256}}
    return replace(
        machine, proved={**proved, ref.bundle.sha256: machine.stamp}, failing=failing, check=Check()
    )
