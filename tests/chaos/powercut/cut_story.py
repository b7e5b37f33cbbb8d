"""The life that is recorded, operation by operation: everything a device ever does to its state folder.

Enrol, first release, an update whose download breaks off, a release that fails its self-test, one that fails in
probation and is rolled back, going back to what the other slot still holds, a clean restart, an unclean one in the
middle of an update, no model at all, and a model again.
"""

import asyncio
from pathlib import Path

from cut_device import FAILS_PROBATION, FAILS_SELFTEST, Device, Fleet, Mark, World, this_process

from device_agent.durable import Operation
from edgekit.wire.states import AgentState

Trace = list[Operation | Mark]


def tell(fleet: Fleet, root: Path, scratch: Path) -> Trace:
    """The trace of the whole life on `root`, which does not exist yet."""
    world = World(fleet)
    with this_process(world, scratch / "runtime"):
        world.is_recording = True
        asyncio.run(_live(world, root, scratch))
    return world.trace


async def _live(world: World, root: Path, scratch: Path) -> None:
    fleet = world.fleet
    enrolment = fleet.enrolment(scratch)
    bundles = {
        version: fleet.publish(scratch, version)
        for version in ("1", "2", f"3{FAILS_SELFTEST}", f"4{FAILS_PROBATION}", "5", "6")
    }
    device = await Device(world, root, enrolment).start()

    async def settle(version: str | None) -> None:
        world.order(bundles[version] if version else None)
        await device.until(device.is_settled, f"settled on {version}")

    await settle("1")
    fleet.cut_after = 2000
    await settle("2")
    await settle(f"3{FAILS_SELFTEST}")
    await settle(f"4{FAILS_PROBATION}")
    await settle("5")
    await settle("2")
    await device.stop()

    device = await Device(world, root, enrolment).start()
    await device.until(device.is_settled, "settled after a restart")
    world.order(bundles["6"])
    machine = device.agent._reconcilers["digits"]
    await device.until(lambda: machine.machine.step is not AgentState.IDLE, "the update begins")
    await device.until(lambda: machine.machine.step not in (AgentState.IDLE, AgentState.FETCH), "fetched")
    await _cut(world, device)

    device = await Device(world, root, enrolment).start()
    await device.until(device.is_settled, "settled after a cut")
    await settle(None)
    await settle("1")
    await device.stop()


async def _cut(world: World, device: Device) -> None:
    """End the device as a power cut would: nothing that it does from here on reaches its disk."""
    world.is_dead = True
    await device.stop()
    world.is_dead = False
