"""Where an update machine goes from here: towards what is wanted, or to rest. Parts of `transitions`; pure."""

from collections.abc import Collection

from msgspec.structs import replace

from device_agent.update.events import SlotRef
from device_agent.update.machine import Machine, free_slot, is_busy, is_of, is_proved
from device_agent.update.trial import Trial
from edgekit.manifest import Sha256
from edgekit.wire.messages import OrderedBundle
from edgekit.wire.states import AgentState as Step


def at_once(machine: Machine) -> Machine:
    """Whatever the candidate waits for, it is tried now."""
    if not (machine.failures or machine.setbacks or machine.is_postponed or machine.is_suspended):
        return machine
    return replace(
        machine, failures=0, setbacks=0, restarts=0, is_postponed=False, is_suspended=False, reason=""
    )


def begin(machine: Machine) -> Machine:
    """From wherever it stands towards `wanted`."""
    wanted = machine.wanted
    if wanted is None:
        return rest(replace(machine, committed=None, previous=None, lost=None), Step.IDLE, "")
    if is_of(machine.committed, wanted.sha256):
        return rest(machine, Step.IDLE, "")
    if wanted.sha256 in machine.refused:
        return give_up(machine, machine.refused[wanted.sha256])
    if machine.previous is not None and is_of(machine.previous, wanted.sha256):
        step = Step.SWITCH if is_proved(machine, machine.previous) else Step.SELFTEST
        return replace(rest(machine, step, ""), candidate=machine.previous)
    return fetch(machine, wanted)


def fetch(machine: Machine, bundle: OrderedBundle) -> Machine:
    return replace(rest(machine, Step.FETCH, ""), candidate=SlotRef(free_slot(machine), bundle))


def pardon(machine: Machine, digests: Collection[Sha256]) -> Machine:
    """What was held against these bundles is forgotten."""
    refused = {digest: why for digest, why in machine.refused.items() if digest not in digests}
    failing = {digest: why for digest, why in machine.failing.items() if digest not in digests}
    return replace(machine, refused=refused, failing=failing)


def pardoned(machine: Machine, digests: Collection[Sha256]) -> Machine:
    """The same for those named, or for all; what is wanted, and was given up for that, begins anew."""
    after = pardon(machine, digests or (*machine.refused, *machine.failing))
    is_given_up = after != machine and not is_busy(machine) and machine.wanted is not None
    return begin(after) if is_given_up else after


def rest(machine: Machine, step: Step, reason: str) -> Machine:
    """At `step` with nothing under way and nothing counted."""
    return replace(
        machine, step=step, reason=reason, candidate=None, failures=0, doubts=0, setbacks=0, restarts=0,
        postponements=0, link_losses=0, is_postponed=False, is_suspended=False, trial=Trial(),
    )  # fmt: skip


def give_up(machine: Machine, reason: str, step: Step = Step.FAILED) -> Machine:
    """What is wanted cannot be had. With nothing left to serve, the bundle that was lost here is fetched again."""
    lost = machine.lost
    is_down = machine.committed is None and lost is not None and lost.sha256 not in machine.refused
    if is_down and lost is not None and not is_of(machine.candidate, lost.sha256):
        return replace(fetch(machine, lost), reason=reason)
    return rest(machine, step, reason)


def refetch(machine: Machine, reason: str) -> Machine:
    """What the candidate's slot, or its download, held is gone."""
    ref = machine.candidate
    assert ref is not None
    return replace(
        machine, step=Step.FETCH, candidate=SlotRef(free_slot(machine), ref.bundle), failures=0, is_postponed=False, is_suspended=False,
        previous=None if machine.previous == ref else machine.previous, setbacks=machine.setbacks + 1,
        trial=Trial(), reason=f"fetched again: {reason}",
    )  # fmt: skip


def reseat(machine: Machine) -> Machine:
    """Another bundle is committed now: the candidate goes on, in the slot that is free now."""
    ref = machine.candidate
    if ref is None or machine.committed is None or ref.slot != machine.committed.slot:
        return machine
    if ref.bundle.sha256 == machine.committed.bundle.sha256:
        return begin(machine)
    return replace(
        machine, candidate=SlotRef(free_slot(machine), ref.bundle), step=Step.FETCH, is_suspended=False
    )


def postpone(machine: Machine, reason: str) -> Machine:
    """Back to the committed bundle for a while; nothing is held against the candidate."""
    return replace(
        machine, step=Step.SWITCH, is_postponed=True, is_suspended=False, postponements=machine.postponements + 1, restarts=0,
        trial=Trial(), reason=f"waiting to try again: {reason}",
    )  # fmt: skip
