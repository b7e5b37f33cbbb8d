"""The update machine of one deployment: what to do next, given what was ordered and what happened.

Pure: state and event in, new state and effects out; the clock comes with the events. The runner persists the new
state before it performs an effect, so any cut resumes from `Resumed`, and every effect may be performed again.

Always true
 1. A bundle is switched to only after it was fetched, staged and self-tested here, or was committed here before.
 2. `committed` changes only in COMMIT, after the fleet acknowledged a report that carried the new digest.
 3. Whatever fails from SWITCH on goes back to `committed` (or to no model); what fails before leaves it untouched.
 4. A digest that failed here is refused at once when ordered again, with the first reason, until engine or agent
    change.
 5. A missing acknowledgement alone never rolls back.

    IDLE → FETCH → STAGE → SELFTEST → SWITCH → PROBATION → COMMIT → IDLE
    before SWITCH any failure → FAILED;  from SWITCH on → ROLLBACK, which is left only by another order
    IDLE → DIVERGED when the committed bundle cannot be kept running
"""

from collections.abc import Callable, Mapping

import msgspec
from msgspec.structs import replace

from device_agent.update.events import (
    Acknowledged,
    Done,
    Effect,
    Event,
    Failed,
    Fetch,
    GaveUp,
    Halt,
    Observed,
    Ordered,
    Restore,
    Resumed,
    SelfTest,
    SlotName,
    SlotRef,
    Stage,
    Switch,
)
from edgekit import sketch
from edgekit.manifest import Sha256
from edgekit.sketch import Sketch
from edgekit.wire.messages import OrderedBundle, OrderOptions
from edgekit.wire.states import AgentState as Step

PROBATION_S = 60.0
# A self-test admits latency up to the contract times this; probation judges by the same bound.
LATENCY_MARGIN = 1.25
# Fewer requests say nothing about a 95th percentile.
LATENCY_MIN_REQUESTS = 20
MAX_ERROR_SHARE = 0.02
# A release under which the whole device keeps restarting is given up.
MAX_ATTEMPTS = 3


class Trial(msgspec.Struct, frozen=True):
    """What was seen since the switch; kept in memory only, so a restart begins it anew."""

    started: float | None = None
    requests: int = 0
    errors: int = 0
    infer_ms: Sketch = Sketch()
    limit_ms: float | None = None
    is_acknowledged: bool = False


class Machine(msgspec.Struct, frozen=True):
    """`wanted` is what the newest order says; `committed` what the device falls back to; `previous` what the other
    slot still holds of an earlier commit; `candidate` what is under way.
    """

    step: Step = Step.IDLE
    counter: int = 0
    wanted: OrderedBundle | None = None
    options: OrderOptions = OrderOptions()
    committed: SlotRef | None = None
    previous: SlotRef | None = None
    candidate: SlotRef | None = None
    reason: str = ""
    attempts: int = 0
    is_settled: bool = True
    refused: dict[Sha256, str] = {}
    stamp: str = ""
    trial: Trial = Trial()


Result = tuple[Machine, tuple[Effect, ...]]

_PREPARING = (Step.FETCH, Step.STAGE, Step.SELFTEST)
_TRYING = (Step.SWITCH, Step.PROBATION, Step.COMMIT)


def advance(machine: Machine, event: Event) -> Result:
    """The one transition function."""
    return _HANDLERS[type(event)](machine, event)


def durable(machine: Machine) -> Machine:
    """The part that is worth a write."""
    return replace(machine, trial=Trial())


def is_busy(machine: Machine) -> bool:
    """Whether an update is under way."""
    return machine.step in (*_PREPARING, *_TRYING) or not machine.is_settled


# -- orders ------------------------------------------------------------------------------------------------------


def _ordered(machine: Machine, event: Ordered) -> Result:
    if event.counter <= machine.counter:
        return machine, ()
    machine = replace(machine, counter=event.counter, options=event.options)
    same = _digest(event.bundle) == _digest(machine.wanted)
    machine = replace(machine, wanted=event.bundle)
    if same and is_busy(machine):
        return machine, ()
    if machine.step in _TRYING or not machine.is_settled:
        # What is being tried is no longer wanted: back to firm ground first, then on from there.
        return _roll_back(machine, "another order came", blames_bundle=False)
    return _begin(replace(machine, candidate=None))


def _digest(bundle: OrderedBundle | None) -> str:
    return bundle.sha256 if bundle is not None else ""


def _begin(machine: Machine) -> Result:
    """From a settled state towards `wanted`."""
    wanted = machine.wanted
    if wanted is None:
        machine = replace(machine, committed=None, previous=None)
        return _settle(machine, Step.IDLE, ""), (Halt(), Restore(None))
    if machine.committed is not None and machine.committed.bundle.sha256 == wanted.sha256:
        return _settle(machine, Step.IDLE, ""), (Halt(),)
    if wanted.sha256 in machine.refused:
        return _settle(machine, Step.FAILED, machine.refused[wanted.sha256]), (Halt(),)
    if machine.previous is not None and machine.previous.bundle.sha256 == wanted.sha256:
        return _switch(replace(machine, candidate=machine.previous))
    slot: SlotName = "B" if machine.committed is not None and machine.committed.slot == "A" else "A"
    machine = replace(
        machine, step=Step.FETCH, candidate=SlotRef(slot, wanted), reason="", attempts=0, is_settled=True
    )
    return machine, (Halt(), Fetch(wanted))


def _switch(machine: Machine) -> Result:
    ref = machine.candidate
    assert ref is not None
    machine = replace(
        machine, step=Step.SWITCH, reason="", attempts=machine.attempts + 1, is_settled=True, trial=Trial()
    )
    return machine, (Halt(), Switch(ref))


def _settle(machine: Machine, step: Step, reason: str) -> Machine:
    return replace(
        machine, step=step, reason=reason, candidate=None, attempts=0, is_settled=True, trial=Trial()
    )


# -- steps -------------------------------------------------------------------------------------------------------


def _done(machine: Machine, event: Done) -> Result:
    if event.step is Step.ROLLBACK and not machine.is_settled:
        return _restored(machine)
    if event.step is not machine.step or machine.candidate is None:
        return machine, ()
    ref = machine.candidate
    if machine.step is Step.FETCH:
        is_reused = machine.previous is not None and machine.previous.slot == ref.slot
        machine = replace(machine, step=Step.STAGE, previous=None if is_reused else machine.previous)
        return machine, (Stage(ref),)
    if machine.step is Step.STAGE:
        return replace(machine, step=Step.SELFTEST), (SelfTest(ref),)
    if machine.step is Step.SELFTEST:
        return _switch(machine)
    if machine.step is Step.SWITCH:
        trial = Trial(started=event.now, limit_ms=event.limit_ms)
        return replace(machine, step=Step.PROBATION, trial=trial), ()
    return machine, ()


def _failed(machine: Machine, event: Failed) -> Result:
    if event.step is Step.ROLLBACK and not machine.is_settled:
        return _restored(replace(machine, reason=f"{machine.reason}; and going back failed: {event.reason}"))
    if event.step is not machine.step:
        return machine, ()
    if machine.step in _PREPARING:
        machine = _refusing(machine, event.reason) if event.blames_bundle else machine
        return _settle(machine, Step.FAILED, event.reason), ()
    if machine.step is Step.SWITCH:
        return _roll_back(machine, event.reason, blames_bundle=event.blames_bundle)
    return machine, ()


def _restored(machine: Machine) -> Result:
    """Back on firm ground: rest there if this is what the order led to, go on if it wants something else."""
    tried = machine.candidate
    if machine.wanted is not None and tried is not None and tried.bundle.sha256 == machine.wanted.sha256:
        return _settle(machine, Step.ROLLBACK, machine.reason), ()
    return _begin(replace(machine, candidate=None, attempts=0, is_settled=True))


def _roll_back(machine: Machine, reason: str, *, blames_bundle: bool) -> Result:
    if blames_bundle:
        machine = _refusing(machine, reason)
    machine = replace(machine, step=Step.ROLLBACK, reason=reason, is_settled=False, trial=Trial())
    return machine, (Halt(), Restore(machine.committed))


def _refusing(machine: Machine, reason: str) -> Machine:
    if machine.candidate is None:
        return machine
    return replace(machine, refused={**machine.refused, machine.candidate.bundle.sha256: reason})


# -- probation and commit ----------------------------------------------------------------------------------------


def _observed(machine: Machine, event: Observed) -> Result:
    if machine.step not in (Step.PROBATION, Step.COMMIT):
        return machine, ()
    trial = machine.trial
    trial = replace(
        trial,
        started=event.now if trial.started is None else trial.started,
        requests=trial.requests + event.requests,
        errors=trial.errors + event.errors,
        infer_ms=sketch.merge((trial.infer_ms, event.infer_ms)),
    )
    machine = replace(machine, trial=trial)
    if complaint := _complaint(trial, event.deaths):
        return _roll_back(machine, f"probation: {complaint}", blames_bundle=True)
    if machine.step is Step.PROBATION and _is_over(machine, event.now):
        machine = replace(machine, step=Step.COMMIT)
    return _commit_if_acknowledged(machine)


def _complaint(trial: Trial, deaths: int) -> str:
    if deaths:
        return "the worker died"
    if trial.errors > MAX_ERROR_SHARE * trial.requests:
        return f"{trial.errors} of {trial.requests} requests failed"
    p95 = trial.infer_ms.quantile(0.95)
    if p95 is None or trial.limit_ms is None or trial.infer_ms.count < LATENCY_MIN_REQUESTS:
        return ""
    if p95 > trial.limit_ms * LATENCY_MARGIN:
        return f"latency p95 is {p95:.2f} ms, the contract says {trial.limit_ms:g} ms"
    return ""


def _is_over(machine: Machine, now: float) -> bool:
    """After the set time, or the set number of requests where one is set, whichever comes first."""
    trial, options = machine.trial, machine.options
    assert trial.started is not None
    seconds = PROBATION_S if options.probation_s is None else options.probation_s
    enough = options.probation_requests
    return now - trial.started >= seconds or bool(enough and trial.requests >= enough)


def _acknowledged(machine: Machine, event: Acknowledged) -> Result:
    if machine.candidate is None or machine.candidate.bundle.sha256 != event.digest:
        return machine, ()
    if machine.step not in (Step.PROBATION, Step.COMMIT):
        return machine, ()
    return _commit_if_acknowledged(replace(machine, trial=replace(machine.trial, is_acknowledged=True)))


def _commit_if_acknowledged(machine: Machine) -> Result:
    if machine.step is not Step.COMMIT or not machine.trial.is_acknowledged:
        return machine, ()
    committed = replace(machine, committed=machine.candidate, previous=machine.committed)
    return _settle(committed, Step.IDLE, ""), ()


def _gave_up(machine: Machine, event: GaveUp) -> Result:
    if machine.step in _TRYING:
        return _roll_back(machine, event.reason, blames_bundle=True)
    if not machine.is_settled or machine.committed is None:
        return machine, ()
    reason = f"the committed bundle does not keep running: {event.reason}"
    refused = {**machine.refused, machine.committed.bundle.sha256: reason}
    machine = _settle(replace(machine, refused=refused), Step.DIVERGED, reason)
    if machine.previous is None or machine.previous.bundle.sha256 in refused:
        return machine, (Halt(),)
    fallback = machine.previous
    return replace(machine, committed=fallback, previous=None), (Halt(), Restore(fallback))


# -- start -------------------------------------------------------------------------------------------------------


def _resumed(machine: Machine, event: Resumed) -> Result:
    """`current` is the truth about what runs; the row is intent, reconciled to it."""
    if event.stamp != machine.stamp:
        machine = replace(machine, stamp=event.stamp, refused={})
    if machine.step in _PREPARING:
        assert machine.candidate is not None
        if machine.step is Step.SELFTEST:
            return machine, (Restore(machine.committed), SelfTest(machine.candidate))
        bundle = machine.candidate.bundle
        return replace(machine, step=Step.FETCH), (Restore(machine.committed), Fetch(bundle))
    if machine.step in _TRYING:
        if machine.attempts >= MAX_ATTEMPTS:
            return _roll_back(
                machine, f"the device restarted {machine.attempts} times on it", blames_bundle=True
            )
        return _switch(machine)
    return machine, (Restore(machine.committed),)


_HANDLERS: Mapping[type, Callable[..., Result]] = {
    Resumed: _resumed,
    Ordered: _ordered,
    Done: _done,
    Failed: _failed,
    Observed: _observed,
    Acknowledged: _acknowledged,
    GaveUp: _gave_up,
}
