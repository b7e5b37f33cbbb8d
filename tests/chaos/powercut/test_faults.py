"""Every durable write of an update fails in turn, with every errno that a worn card knows: once, or until it is told.

After each: the last good model served all the time, the device said what is wrong, and by itself it came to its order
when the fault was over, without a condition left.
"""

import asyncio
import errno
import os
import random
import shutil

import pytest
from cut_device import Device, World, this_process

ERRNOS = (errno.ENOSPC, errno.EIO, errno.EROFS)
CODES = {errno.ENOSPC: "storage-full", errno.EIO: "storage-damaged", errno.EROFS: "storage-read-only"}
SEED = 20260802
SHARE = 15


class Fault:
    """Fails operation number `number`, or everything from it on until `ends`."""

    def __init__(self, root, number, error, *, lasts):
        self._root = root
        self._number = number
        self.error = error
        self.lasts = lasts
        self._is_over = False
        self.seen = 0
        self.struck = False

    def ends(self):
        self._is_over = True

    def __call__(self, operation):
        if self._is_over or self._root not in operation.path.parents:
            return
        self.seen += 1
        if self.seen == self._number or (self.lasts and self.seen > self._number):
            self.struck = True
            raise OSError(self.error, os.strerror(self.error))


@pytest.fixture(scope="session")
def settled(fleet, memory, scratch):
    """A state folder on which release 1 is committed, its releases, and how many writes an update to 2 takes."""
    folder = memory / "settled" / "state"
    folder.parent.mkdir()
    enrolment = fleet.enrolment(scratch)
    first, second = fleet.publish(scratch, "1"), fleet.publish(scratch, "2")

    async def settle():
        device = await Device(world, folder, enrolment).start()
        world.order(first)
        await device.until(device.is_settled, "settled")
        await device.stop()

    world = World(fleet)
    with this_process(world, scratch / "runtime"):
        asyncio.run(settle())
    return folder, world.retained, second


def try_update(settled, fleet, scratch, root, fault):
    """Start on a copy of the settled folder, update, and end; what went wrong."""
    folder, retained, second = settled
    shutil.copytree(folder, root, symlinks=True)
    world = World(fleet)
    world.retained, world.fault = retained, fault
    with this_process(world, scratch / "runtime"):
        return asyncio.run(_try_update(world, second, root, fault, scratch))


async def _try_update(world, second, root, fault, scratch):
    device = await Device(world, root, scratch / "enrolment.json").start()
    workers = device.agent._workers["digits"]
    told, wrong = set(), []
    is_over = False
    code = CODES.get(fault.error, "")

    def look(condition):
        def looked():
            told.update(found.code for found in world.reported.conditions if world.reported)
            if workers.serving is None:
                wrong.append("nothing serves")
            return condition() or bool(wrong)

        return looked

    try:
        await device.until(
            lambda: workers.serving is not None and world.reported, "the last good model serves"
        )
        world.order(second)
        if fault.lasts:
            await device.until(look(lambda: device.is_settled() or code in told), "it is told")
            # What fails only when all is done holds nothing up, and need not be told.
            is_over = device.is_settled()
            fault.ends()
        await device.until(look(device.is_settled), "settled on the second release")
        await device.until(look(lambda: not world.reported.conditions), "no condition is left")
    except AssertionError as error:
        wrong.append(str(error))
    finally:
        fault.ends()
        await device.stop()
    if fault.lasts and fault.struck and not is_over and code not in told:
        wrong.append(f"{code} was not told, but {told or 'nothing'}")
    return wrong


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "lasts", [pytest.param(False, id="once", marks=pytest.mark.proof), pytest.param(True, id="until told")]
)
def test_any_failing_write_is_borne(settled, fleet, scratch, memory, everything, lasts, capsys):
    root = memory / "faulty" / "state"
    root.parent.mkdir(exist_ok=True)
    count = Fault(root, 0, 0, lasts=False)
    assert try_update(settled, fleet, scratch, root, count) == []
    shutil.rmtree(root)
    cases = [(number, error) for number in range(1, count.seen + 1) for error in ERRNOS]
    if not everything:
        cases = random.Random(SEED).sample(cases, SHARE)
    trouble, struck = {}, 0
    for number, error in cases:
        fault = Fault(root, number, error, lasts=lasts)
        if wrong := try_update(settled, fleet, scratch, root, fault):
            trouble[number, errno.errorcode[error]] = wrong
        struck += fault.struck
        shutil.rmtree(root)
    with capsys.disabled():
        print(f"\nfaults: {count.seen} writes of an update, {len(cases)} faults tried, {struck} struck")
    assert trouble == {}
    assert struck > 0.8 * len(cases)
