"""The update machine of one deployment: how its state changes with what happens.

Pure: state and event in, new state out; the clock comes with the events.

Always true
 1. What serves passed its golden data here, under the versions of agent and engines that run it now, and is not
    refused; or an operator said that what is committed serves even so.
 2. `committed` changes only by a commit, which the fleet acknowledged; by falling back from it when it does not keep
    running; when it is damaged on disk; or when no model is ordered.
 3. A digest is refused only for what its bundle did, by counts in this module and `trial`; never for a restart, a
    link, a disk or a server. It stays refused until engine or agent change, or an order says `retry` or an operator so.
 4. Health of what is committed and progress towards what is wanted are two things: neither ends the other.
 5. What is not the bundle's fault leaves the step where it is, with a pause that doubles; the state never ends in a
    place that a good order does not lead out of. A missing acknowledgement alone never rolls back.

    IDLE → FETCH → STAGE → SELFTEST → SWITCH → PROBATION → COMMIT → IDLE
    with evidence: before SWITCH → FAILED; from SWITCH on → ROLLBACK;  what an earlier step left is lost → FETCH
    the committed bundle does not keep running and another does → DIVERGED
"""

from collections.abc import Callable, Mapping

from msgspec.structs import replace

from device_agent.update import course
from device_agent.update import trial as trials
from device_agent.update.events import (
    Acknowledged,
    Cause,
    Died,
    Done,
    Event,
    Failed,
    LinkDown,
    LinkUp,
    Observed,
    Ordered,
    Pardoned,
    Recheck,
    Resumed,
    SlotRef,
    Started,
    StartFailed,
    Steady,
    Stopped,
)
from device_agent.update.machine import (
    PREPARING,
    TRYING,
    Check,
    Lives,
    Machine,
    changes,
    is_busy,
    is_of,
    is_on_trial,
    is_proved,
    is_trying,
    job,
    proving,
    refusing,
    serves,
    task,
    unchecked,
)
from device_agent.update.trial import Trial
from edgekit.wire.states import AgentState as Step

# A trial ends at this many deaths of its workers, or starts that the bundle failed.
MAX_TRIAL_DEATHS = 3
MAX_BLAMED_STARTS = 3
# A committed bundle: deaths in a row of which none lived for STEADY_S.
MAX_DEATHS = 5
STEADY_S = 60.0
MAX_DOUBTS = 3
# The link goes with the candidate and comes back without it.
MAX_LINK_LOSSES = 2
# Starts in a row that failed without being the bundle's fault, and restarts of the device, that a trial bears.
MAX_FAILED_STARTS = 3
MAX_RESTARTS = 3


def advance(machine: Machine, event: Event) -> Machine:
    """The one transition function."""
    after = _HANDLERS[type(event)](machine, event)
    if serves(after) != serves(machine):
        after = replace(after, generation=machine.generation + 1, lives=Lives())
    if is_trying(after) and not is_trying(machine):
        after = replace(after, trial=replace(after.trial, was_linked=after.is_linked))
    if task(after) != task(machine):
        after = replace(after, job_id=machine.job_id + 1)
    return after


# -- orders ------------------------------------------------------------------------------------------------------


def _ordered(machine: Machine, event: Ordered) -> Machine:
    if event.counter <= machine.counter:
        return machine
    machine = replace(machine, counter=event.counter, options=event.options, wanted=event.bundle)
    if event.bundle is not None and event.options.retry:
        machine = course.pardon(machine, (event.bundle.sha256,))
    if is_busy(machine) and machine.candidate is not None and machine.candidate.bundle.is_same(event.bundle):
        if machine.step is Step.FETCH:
            machine = replace(machine, candidate=replace(machine.candidate, bundle=event.bundle))
        return course.at_once(machine)
    return course.begin(machine)


# -- jobs --------------------------------------------------------------------------------------------------------


def _done(machine: Machine, event: Done) -> Machine:
    ref = machine.candidate
    if event.id != machine.job_id:
        return machine
    if (checked := unchecked(machine)) is not None:
        return _leave_failing(proving(machine, checked))
    if ref is None:
        return machine
    machine = replace(machine, failures=0, doubts=0, reason="")
    if machine.step is Step.FETCH:
        # From here on the slot is being overwritten.
        is_reused = machine.previous is not None and machine.previous.slot == ref.slot
        return replace(machine, step=Step.STAGE, previous=None if is_reused else machine.previous)
    if machine.step is Step.STAGE:
        return replace(machine, step=Step.SELFTEST)
    if machine.step is Step.SELFTEST:
        return replace(proving(machine, ref), step=Step.SWITCH, trial=Trial())
    if machine.is_suspended:
        # The old bundle did not bring the link back either: an outage, and the trial begins anew.
        return replace(machine, is_suspended=False, trial=Trial())
    return replace(machine, is_postponed=False, restarts=0)


def _failed(machine: Machine, event: Failed) -> Machine:
    wanted = job(machine)
    if event.id != machine.job_id or wanted is None:
        return machine
    if isinstance(wanted, Recheck):
        return _recheck_failed(machine, event, wanted.ref)
    cause = event.cause
    if cause is Cause.DOUBT:
        machine = replace(machine, doubts=machine.doubts + 1)
        cause = Cause.BUNDLE if machine.doubts >= MAX_DOUBTS else Cause.PASSING
    if machine.step not in PREPARING or cause is Cause.PASSING:
        waiting = f"waiting to try again: {event.reason}"
        return replace(machine, failures=machine.failures + 1, reason=waiting)
    if cause is Cause.LOST:
        return course.refetch(machine, event.reason)
    if cause is Cause.BUNDLE:
        machine = refusing(machine, machine.candidate, event.reason)
    return course.give_up(machine, event.reason)


def _recheck_failed(machine: Machine, event: Failed, ref: SlotRef) -> Machine:
    """The golden data of a bundle did not pass, or could not be run, under other versions than before."""
    check, cause = machine.check, event.cause
    if cause is Cause.DOUBT:
        check = replace(check, doubts=check.doubts + 1)
        cause = Cause.BUNDLE if check.doubts >= MAX_DOUBTS else Cause.PASSING
    if cause is Cause.BUNDLE:
        told = f"{changes(machine, ref.bundle.sha256)}: {event.reason}"
        failing = {**machine.failing, ref.bundle.sha256: told}
        return _leave_failing(replace(machine, failing=failing, check=Check()))
    if cause is Cause.LOST:
        machine = replace(machine, check=Check())
        return (
            _damaged(machine, event.reason) if ref == machine.committed else replace(machine, previous=None)
        )
    return replace(machine, check=replace(check, failures=check.failures + 1, reason=event.reason))


def _leave_failing(machine: Machine) -> Machine:
    """From a committed bundle that fails under the present versions to the one before, if that passes."""
    ref, fallback = machine.committed, machine.previous
    if ref is None or ref.bundle.sha256 not in machine.failing or machine.serves_despite:
        return machine
    if fallback is None or not is_proved(machine, fallback):
        return machine
    return _left(machine, f"engine changed: {machine.failing[ref.bundle.sha256]}")


# -- workers -----------------------------------------------------------------------------------------------------


def _started(machine: Machine, event: Started) -> Machine:
    if event.generation != machine.generation:
        return machine
    trouble = machine.lives.trouble if machine.lives.is_looping else ""
    machine = replace(
        machine, lives=replace(machine.lives, failed_starts=0, blamed_starts=0, trouble=trouble)
    )
    if not is_trying(machine):
        return machine
    began = event.now if machine.trial.started is None else machine.trial.started
    step = Step.PROBATION if machine.step is Step.SWITCH else machine.step
    return replace(
        machine, step=step, reason="", trial=replace(machine.trial, started=began, limit_ms=event.limit_ms)
    )


def _start_failed(machine: Machine, event: StartFailed) -> Machine:
    if event.generation != machine.generation:
        return machine
    lives = replace(
        machine.lives,
        failed_starts=machine.lives.failed_starts + 1,
        blamed_starts=machine.lives.blamed_starts + (event.cause is Cause.BUNDLE),
        trouble=f"the worker does not start: {event.reason}",
    )
    machine = replace(machine, lives=lives)
    if event.cause is Cause.LOST:
        return (
            course.refetch(machine, event.reason) if is_trying(machine) else _damaged(machine, event.reason)
        )
    if lives.blamed_starts >= MAX_BLAMED_STARTS:
        told = f"the worker did not start {lives.blamed_starts} times: {event.reason}"
        return _roll_back(machine, told) if is_trying(machine) else _fall_back(machine, told)
    # A start that took too long must not keep a device waiting that has no room for the old worker beside the new.
    is_enough = lives.failed_starts > lives.blamed_starts + (MAX_FAILED_STARTS - 1)
    if is_trying(machine) and (is_enough or event.cause is Cause.DOUBT):
        return course.postpone(machine, f"the worker does not start: {event.reason}")
    return machine


def _died(machine: Machine, event: Died) -> Machine:
    if event.generation != machine.generation:
        return machine
    lives = replace(machine.lives, deaths=machine.lives.deaths + 1)
    machine = replace(machine, lives=lives)
    if is_trying(machine):
        if lives.deaths < MAX_TRIAL_DEATHS:
            return machine
        return _roll_back(machine, f"probation: the worker died {lives.deaths} times: {event.reason}")
    if lives.deaths < MAX_DEATHS:
        return machine
    return _fall_back(machine, f"the worker died {lives.deaths} times in a row: {event.reason}")


def _steady(machine: Machine, event: Steady) -> Machine:
    if event.generation != machine.generation or is_trying(machine):
        return machine
    return replace(machine, lives=Lives())


def _fall_back(machine: Machine, reason: str) -> Machine:
    """The committed bundle does not keep running: on to what was committed before, or, without that, on trying."""
    told = f"the committed bundle does not keep running: {reason}"
    fallback = machine.previous
    if fallback is None or fallback.bundle.sha256 in machine.failing:
        machine = replace(machine, lives=replace(machine.lives, is_looping=True, trouble=told))
        is_away = machine.is_postponed or machine.is_suspended
        return course.at_once(machine) if is_away else machine
    return _left(machine, told)


def _left(machine: Machine, told: str) -> Machine:
    """What was committed before is committed again, and what was committed since is refused."""
    machine = refusing(machine, machine.committed, told)
    machine = replace(machine, committed=machine.previous, previous=None)
    return course.reseat(machine) if is_busy(machine) else course.rest(machine, Step.DIVERGED, told)


def _damaged(machine: Machine, reason: str) -> Machine:
    """The committed bundle's slot no longer holds it. That is the disk's doing: still wanted, it is fetched again."""
    if machine.committed is None:
        return machine
    lost = machine.committed.bundle
    machine = replace(machine, committed=machine.previous, previous=None, lost=lost)
    if is_busy(machine):
        return course.reseat(machine)
    if machine.committed is not None and (machine.wanted is None or machine.wanted.sha256 != lost.sha256):
        return machine
    return replace(course.begin(machine), reason=f"the committed bundle was damaged on disk: {reason}")


# -- probation and commit ----------------------------------------------------------------------------------------


def _observed(machine: Machine, event: Observed) -> Machine:
    if event.generation != machine.generation or not is_on_trial(machine):
        return machine
    machine = replace(machine, trial=trials.observed(machine.trial, event, is_linked=machine.is_linked))
    if complaint := trials.complaint(machine.trial):
        return _roll_back(machine, f"probation: {complaint}")
    if machine.step is Step.PROBATION and trials.is_over(machine.trial, machine.options, event.now):
        machine = replace(machine, step=Step.COMMIT)
    if told := trials.overdue(machine.trial, event.now):
        return course.postpone(machine, told)
    return _commit_if_acknowledged(machine)


def _link_down(machine: Machine, event: LinkDown) -> Machine:
    """Lost soon after the switch: the committed bundle serves for a while, to see whether that brings it back."""
    machine = replace(machine, is_linked=False)
    if not is_trying(machine) or not trials.is_suspect(machine.trial, event.now):
        return machine
    told = "the link was lost after the switch; the committed bundle serves, to see whether it comes back"
    suspended = replace(machine, is_suspended=True, reason=told)
    return machine if serves(suspended) is None else suspended


def _link_up(machine: Machine, _event: LinkUp) -> Machine:
    machine = replace(machine, is_linked=True)
    if not machine.is_suspended:
        return machine
    losses = machine.link_losses + 1
    told = "the link was lost after the switch, and came back with the bundle before"
    if losses < MAX_LINK_LOSSES:
        # Once may be the broker's restart, which happens to a whole fleet at the same moment.
        return course.postpone(replace(machine, link_losses=losses), told)
    return _roll_back(machine, f"{losses} times {told}")


def _acknowledged(machine: Machine, event: Acknowledged) -> Machine:
    if not is_on_trial(machine) or not is_of(machine.candidate, event.digest):
        return machine
    return _commit_if_acknowledged(replace(machine, trial=replace(machine.trial, is_acknowledged=True)))


def _commit_if_acknowledged(machine: Machine) -> Machine:
    if machine.step is not Step.COMMIT or not machine.trial.is_acknowledged:
        return machine
    machine = replace(
        machine, committed=machine.candidate, previous=machine.committed, lost=None, lives=Lives()
    )
    return course.begin(machine)


def _roll_back(machine: Machine, reason: str) -> Machine:
    """The candidate proved bad while it served."""
    ref = machine.candidate
    machine = refusing(machine, ref, reason)
    is_wanted = machine.wanted is not None and is_of(ref, machine.wanted.sha256)
    return course.give_up(machine, reason, Step.ROLLBACK if is_wanted else Step.FAILED)


# -- start and end -----------------------------------------------------------------------------------------------


def _resumed(machine: Machine, event: Resumed) -> Machine:
    """Intent, reconciled with what the disk really holds."""
    was_clean = machine.is_clean
    machine = replace(
        machine,
        is_clean=False,
        is_suspended=False,
        is_linked=False,
        trial=Trial(),
        lives=Lives(),
        serves_despite=event.serves_despite,
    )

    def is_held(ref: SlotRef) -> bool:
        held = event.held.get(ref.slot)
        return held is not None and held.sha256 == ref.bundle.sha256

    if machine.previous is not None and not is_held(machine.previous):
        machine = replace(machine, previous=None)
    if machine.committed is not None and not is_held(machine.committed):
        machine = _damaged(machine, "its slot does not hold it")
    ref = machine.candidate
    needs_slot = machine.step is Step.SELFTEST or machine.step in TRYING
    if ref is not None and needs_slot and not is_held(ref):
        machine = course.refetch(machine, "its slot does not hold it")
    elif is_trying(machine):
        machine = replace(machine, step=Step.SWITCH, restarts=machine.restarts + (not was_clean))
        if machine.restarts >= MAX_RESTARTS:
            machine = course.postpone(machine, f"the device restarted {machine.restarts} times on it")
    if event.stamp != machine.stamp:
        machine = replace(machine, stamp=event.stamp, refused={}, failing={})
        if machine.step in TRYING:
            machine = replace(machine, step=Step.SELFTEST, is_postponed=False)
        # What was refused under other engines gets another chance.
        machine = machine if is_busy(machine) else course.begin(machine)
    return machine


def _stopped(machine: Machine, _event: Stopped) -> Machine:
    return replace(machine, is_clean=machine.step in TRYING)


_HANDLERS: Mapping[type, Callable[..., Machine]] = {
    Resumed: _resumed,
    Stopped: _stopped,
    Ordered: _ordered,
    Pardoned: lambda machine, event: course.pardoned(machine, event.digests),
    Done: _done,
    Failed: _failed,
    Started: _started,
    StartFailed: _start_failed,
    Died: _died,
    Steady: _steady,
    Observed: _observed,
    LinkUp: _link_up,
    LinkDown: _link_down,
    Acknowledged: _acknowledged,
}
