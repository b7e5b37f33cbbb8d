"""Measuring bundles on this board: brought as for an update, into a place of their own, and gone when it is over.

Always true
 1. What is run was signed by the publisher and has the digest and length that the command names, as for an update.
 2. No slot, no record and no cache of a deployment is changed; what serves goes on, and before what is measured: that runs
    in confined children at low priority.
 3. Whatever is left of an earlier measurement that was cut off goes before the next, and at the start of the agent.
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from device_agent import confined, durable, health, memory
from device_agent.account import Account
from device_agent.blocking import Stopper, run_blocking, stoppable
from device_agent.commands.desk import FailedError
from device_agent.commands.figures import figures_of
from device_agent.commands.timing import Times, Told
from device_agent.folder import DeploymentFolder, StateFolder
from device_agent.update import fetch, selftest, slots
from device_agent.update.events import SlotName
from device_agent.update.fetch import FetchError, Received, Source
from device_agent.update.selftest import Verdict
from edgekit.errors import BundleError
from edgekit.protocol import room
from edgekit.wire.commands import Measure, Measured, Timed
from edgekit.wire.messages import OrderedBundle

# What loading may take beside the budget of the timing.
LOADING_S = 300.0
_SHARE = 0.8


@dataclass(frozen=True)
class Staged:
    """A bundle in a slot, ready to run."""

    folder: DeploymentFolder
    slot: SlotName
    sha256: str
    serves: bool = False

    @property
    def path(self) -> Path:
        return self.folder.slot(self.slot)


@dataclass(frozen=True)
class Bench:
    """Where and how bundles are measured here; they run as `account`, or as the agent's own user."""

    state: StateFolder
    source: Source
    isa: tuple[str, ...]
    account: Account | None = None

    async def measure(self, asked: Measure, serving: Staged | None) -> Measured:
        """Raises: FailedError; OSError if the disk or the machine gives nothing."""
        await self.clear()
        try:
            staged = [await self._bring(number, one) for number, one in enumerate(asked.bundles)]
            every = [*staged, *([serving] if serving is not None else [])]
            return await self._measured(every, asked.budget_s)
        finally:
            await self.clear()

    async def clear(self) -> None:
        """Nothing is here to be measured any more."""
        await run_blocking(lambda: durable.remove(self.state.measuring))

    async def _bring(self, number: int, wanted: OrderedBundle) -> Staged:
        folder = DeploymentFolder(self.state.measuring / str(number))
        free = health.free_memory_mb()
        if told := room.memory_refusal(free, wanted.peak_memory_mb, 0.0, overlap=True):
            raise FailedError(told)
        try:
            await self.source.check_signed(wanted, ())

            def work(stopping: Stopper) -> None:
                bundle = fetch.fetch(self.source, wanted, folder.fetch, stopping, Received(wanted.sha256))
                slots.stage(folder, "A", bundle, wanted.target)
                durable.remove(folder.fetch)
                durable.make_folder(folder.cache, sync=False)

            await stoppable(work)
        except (FetchError, BundleError) as error:
            raise FailedError(str(error)) from error
        return Staged(folder, "A", wanted.sha256)

    async def _measured(self, staged: Sequence[Staged], budget_s: float) -> Measured:
        verdicts = [await self._test(one) for one in staged]
        sound = [one for one, verdict in zip(staged, verdicts, strict=True) if verdict.passed]
        told = await self._time(sound, budget_s) if sound else Told()
        times = dict(zip((one.path for one in sound), told.times, strict=True))
        cores = len(os.sched_getaffinity(0))
        found = Measured(
            tuple(
                _timed(one, verdict, times.get(one.path))
                for one, verdict in zip(staged, verdicts, strict=True)
            ),
            cpu=told.cpu,
            isa=self.isa,
            load=os.getloadavg()[0] / cores,
        )
        if not any(not one.serves and one.rounds_ms for one in found.bundles):
            reasons = "; ".join(f"{one.test.sha256[:12]}…: {one.test.reason}" for one in found.bundles)
            raise FailedError(f"no bundle passed its self-test here ({reasons})", found)
        return found

    async def _test(self, one: Staged) -> Verdict:
        return await selftest.run(
            one.folder, one.slot, None, account=self.account, outputs_only=True, is_patient=True
        )

    async def _time(self, staged: Sequence[Staged], budget_s: float) -> Told:
        """Raises: FailedError, OSError."""
        words = ["--parent", str(os.getpid()), "--budget", str(budget_s)]
        for one in staged:
            words += ["--slot", str(one.path), "--cache", str(one.folder.cache)]
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        limits = await run_blocking(lambda: sum(memory.limit(one.path) for one in staged))
        bounds = confined.Bounds(
            hidden=(self.state.root,),
            readable=tuple(one.path for one in staged),
            writable=tuple(one.folder.cache for one in staged),
            memory_bytes=memory.wall(min(limits, int(machine * _SHARE))),
            account=self.account,
        )
        options = await run_blocking(lambda: confined.options(bounds))
        process = await asyncio.create_subprocess_exec(
            *confined.command("device_agent.commands.timing", bounds, *words),
            stdout=asyncio.subprocess.PIPE, start_new_session=True, **options,
        )  # fmt: skip
        try:
            async with asyncio.timeout(LOADING_S + 3 * budget_s):
                output, _ = await process.communicate()
        except TimeoutError:
            raise FailedError("the timing took too long") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise FailedError(f"the timing's process ended with {process.returncode}")
        try:
            # Engines print to standard output as they please; what was found is the last line.
            told = msgspec.json.decode(output.splitlines()[-1] if output else b"", type=Told)
        except msgspec.DecodeError as error:
            raise FailedError(f"the timing said nothing that can be read ({error})") from error
        if told.trouble:
            raise FailedError(told.trouble)
        return told


def _timed(one: Staged, verdict: Verdict, times: Times | None) -> Timed:
    test = figures_of(verdict, one.sha256)
    if times is None:
        return Timed(test, "", "", 0, serves=one.serves, memory_mb=verdict.peak_memory_mb)
    return Timed(
        test,
        times.engine,
        times.engine_version,
        times.threads,
        serves=one.serves,
        p50_ms=times.p50_ms,
        p50_low_ms=times.p50_low_ms,
        p50_high_ms=times.p50_high_ms,
        p95_ms=times.p95_ms,
        rounds_ms=times.rounds_ms,
        memory_mb=verdict.peak_memory_mb,
    )
