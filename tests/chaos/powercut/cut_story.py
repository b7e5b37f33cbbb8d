"""The life that is recorded, operation by operation: everything a device ever does to its state folder.

Enrol, first release, an update whose download breaks off, a release that fails its self-test, one that fails in
probation and is rolled back, going back to what the other slot still holds, a clean restart, one in the middle of
a download and one a little later in the same update, no model at all, and a model again.
"""

import asyncio
from pathlib import Path
from typing import NamedTuple

from cut_device import FAILS_PROBATION, FAILS_SELFTEST, Device, Fleet, Mark, Site, World, this_process

from device_agent.durable import Operation
from edgekit.wire.states import AgentState

# The second cut falls wherever the agent is by the time that this is seen.
AFTER_FETCH = (
    AgentState.STAGE,
    AgentState.SELFTEST,
    AgentState.SWITCH,
    AgentState.PROBATION,
    AgentState.COMMIT,
)


class Story(NamedTuple):
    """`sites` says for each operation of the trace, by its number, where in the agent it comes from."""

    root: Path
    trace: list[Operation | Mark]
    sites: dict[int, Site]


def tell(fleet: Fleet, root: Path, scratch: Path) -> Story:
    """The trace of the whole life on `root`, which does not exist yet."""
    world = World(fleet)
    with this_process(world, scratch / "runtime"):
        world.is_recording = True
        asyncio.run(_live(world, root, scratch))
    return Story(root, world.trace, dict(world.sites))


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
    fleet.stall_after = 2500
    world.order(bundles["6"])
    await device.until(lambda: _has_unsynced_tail(root), "the download stands still")
    await _cut(world, device)

    device = await Device(world, root, enrolment).start()
    machine = device.agent._reconcilers["digits"]
    await device.until(lambda: machine.machine.step in AFTER_FETCH, "fetched")
    await _cut(world, device)

    device = await Device(world, root, enrolment).start()
    await device.until(device.is_settled, "settled after two cuts")
    await settle(None)
    await settle("1")
    await device.stop()


async def _cut(world: World, device: Device) -> None:
    """End the device as a power cut would: nothing that it does from here on reaches its disk."""
    world.is_dead = True
    await device.stop()
    world.is_dead = False
    world.mark("power", value="cut")


def _has_unsynced_tail(root: Path) -> bool:
    """Whether a download has received more than its name says is synced."""
    parts = (root / "deployments" / "digits" / "fetch").glob("*.part")
    return any(path.stat().st_size > int(path.name.split(".")[1]) for path in parts)
