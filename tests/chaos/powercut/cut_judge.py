"""What must hold on a disk after a power cut: first by reading it, then by starting the real agent on it.

By reading
 1. No record is damaged, and none is older than one that `save` returned from before the cut.
 2. A slot with a mark holds every file that the mark's manifest lists.
 3. What the machine's row takes for granted is there: the download at STAGE, the slot from SELFTEST on, the committed
    and the previous bundle.
 4. `current` names the slot whose worker took over last, or the one that it was about to.
 5. A part named `N` has N good bytes, and there is one of as many as were promised.

By starting
 6. The agent starts, its boot orders after every one that was sent, and it knows the order that it had accepted.
 7. If a release was committed, the first worker serves a release that is not refused, out of a slot that was there.
 8. It comes to what the retained order says, without finding anything damaged on the way.
"""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cut_device import Device, Fleet, Retained, World, this_process

from device_agent.folder import DeploymentFolder
from device_agent.record import Record
from device_agent.update import machine as machines
from device_agent.update import slots
from device_agent.update.events import SlotRef
from device_agent.update.machine import Machine
from edgekit.bundle import sha256_file
from edgekit.errors import BundleError
from edgekit.wire.states import AgentState as Step

Promises = Mapping[tuple[str, ...], Any]
# Copies of each record of the state folder, and of each deployment's.
RECORDS = {
    "identity.json": 2,
    "key.json": 2,
    "boot.json": 2,
    "order.json": 2,
    "commands.json": 2,
    "traffic.json": 2,
    "drift.json": 1,
}
OF_A_DEPLOYMENT = {"machine.json": 1}


def read(root: Path, promises: Promises, fleet: Fleet) -> list[str]:
    """What is wrong with a state, by reading it alone."""
    folder = DeploymentFolder(root / "deployments" / "digits")
    wrong = [*_records(root, promises), *_slots(folder), *_current(folder, promises)]
    row = Record(folder.machine, Machine, copies=1).load()
    if row is not None:
        wrong += _row(folder, row)
        wrong += _parts(folder, row, promises, fleet)
    return wrong


def _records(root: Path, promises: Promises) -> list[str]:
    wrong: list[str] = []
    for folder, records in ((root, RECORDS), (root / "deployments" / "digits", OF_A_DEPLOYMENT)):
        for name, copies in records.items():
            wrong += _record(folder / name, copies, promises)
    return wrong


def _record(path: Path, copies: int, promises: Promises) -> list[str]:
    record = Record(path, dict, copies=copies)
    found = record.load()
    wrong = [f"{name} is damaged" for name in record.trouble]
    promised = promises.get(("record", path.name), 0)
    generation = record._generation if found is not None else 0
    if generation < promised:
        wrong.append(f"{path.name} is of generation {generation}, {promised} was saved")
    return wrong


def _slots(folder: DeploymentFolder) -> list[str]:
    wrong: list[str] = []
    for name in ("A", "B"):
        if slots.mark_of(folder.slot(name)) is not None:
            try:
                slots.load_checked(folder.slot(name))
            except BundleError as error:
                wrong.append(f"a marked slot is not whole: {error}")
        elif (folder.slot(name) / "slot.json").exists():
            wrong.append(f"the mark of slot {name} is damaged")
    return wrong


def _current(folder: DeploymentFolder, promises: Promises) -> list[str]:
    allowed = promises.get(("serves",))
    if allowed is None:
        return []
    name = slots.current(folder)
    return [] if name in allowed else [f"current names {name}, the worker that took over is on {allowed}"]


def _row(folder: DeploymentFolder, row: Machine) -> list[str]:
    wrong: list[str] = []
    held = slots.held(folder)

    def is_held(ref: SlotRef) -> bool:
        bundle = held.get(ref.slot)
        return bundle is not None and bundle.sha256 == ref.bundle.sha256

    for title, ref in (("committed", row.committed), ("previous", row.previous)):
        if ref is not None and not is_held(ref):
            wrong.append(f"the row's {title} slot {ref.slot} does not hold its bundle")
    ref = row.candidate
    if ref is not None and (row.step is Step.SELFTEST or row.step in machines.TRYING) and not is_held(ref):
        wrong.append(f"at {row.step.value}, but slot {ref.slot} does not hold the candidate")
    if ref is not None and row.step is Step.STAGE:
        path = folder.fetch / f"{ref.bundle.sha256}.edgekit"
        if not path.is_file() or sha256_file(path) != ref.bundle.sha256:
            wrong.append("at STAGE, but the download is not there")
    return wrong


def _parts(folder: DeploymentFolder, row: Machine, promises: Promises, fleet: Fleet) -> list[str]:
    wrong: list[str] = []
    best = 0
    for path in folder.fetch.glob("*.part"):
        match = re.fullmatch(r"([0-9a-f]{64})\.(\d+)\.part", path.name)
        assert match is not None
        synced = int(match[2])
        if path.read_bytes()[:synced] != fleet.artifacts[match[1]][:synced]:
            wrong.append(f"{path.name[60:]} does not hold what its name says")
        elif row.candidate is not None and match[1] == row.candidate.bundle.sha256:
            best = max(best, synced)
    if row.step is Step.FETCH and row.candidate is not None:
        sha256 = row.candidate.bundle.sha256
        promised = promises.get(("fetched", sha256), 0)
        if best < promised and not (folder.fetch / f"{sha256}.edgekit").is_file():
            wrong.append(f"{best} bytes of the download are left, {promised} were synced")
    return wrong


def run(root: Path, promises: Promises, fleet: Fleet, scratch: Path) -> list[str]:
    """What goes wrong when the real agent starts on a state and has until its order is done."""
    world = World(fleet)
    world.retained = promises.get(("order",))
    with this_process(world, scratch / "runtime"):
        return asyncio.run(_run(world, root, promises, scratch))


async def _run(world: World, root: Path, promises: Promises, scratch: Path) -> list[str]:
    held = {
        bundle.sha256 for bundle in slots.held(DeploymentFolder(root / "deployments" / "digits")).values()
    }
    device = await Device(world, root, scratch / "enrolment.json").start()
    wrong: list[str] = []
    try:
        sent = promises.get(("boot",))
        if sent is not None and not sent < device.agent._boot:
            wrong.append(f"boot {device.agent._boot} does not order after {sent}")
        if device.agent._orders.counter < promises.get(("accepted",), 0):
            wrong.append(f"order {promises[('accepted',)]} was accepted and is forgotten")
        if world.retained is None:
            await device.until(lambda: world.reported, "it reports")
        else:
            await device.until(device.is_settled, "it is settled")
            wrong += _first_served(world, promises, world.retained, held)
        wrong += [f"{condition.code}: {condition.detail}" for condition in device.agent.conditions.present()]
    except AssertionError as error:
        wrong.append(str(error))
    finally:
        await device.stop()
    return wrong


def _first_served(world: World, promises: Promises, retained: Retained, held: set[str]) -> list[str]:
    if promises.get(("committed",)) is None or retained.bundle is None:
        return []
    if not world.served:
        return ["nothing was served"]
    digest = world.served[0]
    wrong: list[str] = []
    version = world.fleet.versions[digest]
    if version.endswith("-untrue"):
        wrong.append(f"{version}, which failed its self-test, was served")
    if digest not in held:
        wrong.append(f"{version} had to be fetched before anything was served")
    return wrong
