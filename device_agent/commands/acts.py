"""What a device can be asked to do: one function for each kind of command."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import singledispatchmethod

from device_agent import durable, log
from device_agent.blocking import run_blocking
from device_agent.commands.desk import FailedError
from device_agent.commands.figures import figures_of
from device_agent.commands.measuring import Bench, Staged
from device_agent.folder import StateFolder
from device_agent.process import START_TIMEOUT_S
from device_agent.update import machine as machines
from device_agent.update import selftest
from device_agent.update.events import Pardoned
from device_agent.update.reconciler import Reconciler
from edgekit.manifest import Sha256
from edgekit.wire.commands import (
    Action,
    Cleared,
    ClearRefused,
    LogLevel,
    Measure,
    Payload,
    Restart,
    SelfTest,
    SelfTested,
    Tested,
)

USUAL_LEVEL = "info"


@dataclass
class Acts:
    """The device's hands. `reconcilers` is the supervisor's own table; `restart` asks it to start the agent anew."""

    state: StateFolder
    reconcilers: Mapping[str, Reconciler]
    restart: Callable[[], None]
    bench: Bench
    _quiet: asyncio.TimerHandle | None = field(default=None, repr=False)

    async def act(self, action: Action) -> Payload | None:
        """Raises: FailedError."""
        return await self._act(action)

    @singledispatchmethod
    async def _act(self, action: Action) -> Payload | None:
        raise FailedError(f"this agent cannot do {action}")

    @_act.register
    async def _(self, action: SelfTest) -> Payload:
        names = [action.deployment] if action.deployment else sorted(self.reconcilers)
        tests = [found for name in names if (found := await self._test(name)) is not None]
        if not tests:
            raise FailedError(f"{action.deployment or 'this device'} serves no bundle")
        failed = [f"{one.deployment}: {one.reason}" for one in tests if not one.passed]
        if failed:
            raise FailedError("; ".join(failed), SelfTested(tuple(tests)))
        return SelfTested(tuple(tests))

    async def _test(self, name: str) -> Tested | None:
        """The golden data of what a deployment is to serve now; None where that is nothing."""
        served = machines.serves(self.reconcilers[name].machine)
        if served is None:
            return None
        folder = self.state.deployment(name)
        await run_blocking(lambda: durable.make_folder(folder.cache, sync=False))
        verdict = await selftest.run(
            folder, served.slot, None, account=self.bench.account, outputs_only=True, is_patient=True
        )
        return figures_of(verdict, served.bundle.sha256, name)

    @_act.register
    async def _(self, action: Measure) -> Payload:
        serving = None
        if action.deployment:
            served = machines.serves(self.reconcilers[action.deployment].machine)
            if served is None:
                raise FailedError(f"{action.deployment} serves no bundle")
            folder = self.state.deployment(action.deployment)
            serving = Staged(folder, served.slot, served.bundle.sha256, serves=True)
        return await self.bench.measure(action, serving)

    @_act.register
    async def _(self, action: ClearRefused) -> Payload:
        cleared: dict[Sha256, str] = {}
        for reconciler in self.reconcilers.values():
            held = {**reconciler.machine.refused, **reconciler.machine.failing}
            cleared |= {one: why for one, why in held.items() if not action.digests or one in action.digests}
            reconciler.tell(Pardoned(action.digests))
        return Cleared(cleared)

    @_act.register
    async def _(self, action: Restart) -> None:
        if not action.deployment:
            self.restart()
            # The end of the agent ends this; the next start says that it is done.
            await asyncio.get_running_loop().create_future()
            return
        workers = self.reconcilers[action.deployment].workers
        if not workers.is_expected:
            raise FailedError(f"{action.deployment} serves no bundle")
        if not await workers.renew(START_TIMEOUT_S):
            raise FailedError(
                f"no new worker of {action.deployment} was ready within {START_TIMEOUT_S:.0f} s"
            )

    @_act.register
    async def _(self, action: LogLevel) -> None:
        if self._quiet is not None:
            self._quiet.cancel()
        log.set_level(action.level)
        later = asyncio.get_running_loop().call_later
        self._quiet = later(action.seconds, log.set_level, USUAL_LEVEL)
