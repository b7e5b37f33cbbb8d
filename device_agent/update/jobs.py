"""The work that an update consists of: fetch, stage, self-test. Each ends well, or raises whose fault it was."""

import contextlib
import threading
from collections.abc import Callable
from typing import NamedTuple

from device_agent import durable
from device_agent.account import Account
from device_agent.blocking import Stopper, run_blocking, stoppable
from device_agent.folder import DeploymentFolder
from device_agent.update import selftest, slots
from device_agent.update.events import Cause, Fetch, Job, Recheck, SelfTest, SlotRef, Stage, Wait
from device_agent.update.fetch import FetchError, Received, Source, opened
from device_agent.update.shortcut import Offer, Shortcuts
from edgekit.errors import BundleError, EdgeKitError
from edgekit.protocol import room
from edgekit.wire.messages import Fetched


class JobError(EdgeKitError):
    """A job failed, and `cause` says whose fault that is. Anything else that a job raises is nobody's."""

    code = "update"

    def __init__(self, message: str, cause: Cause) -> None:
        super().__init__(message)
        self.cause = cause


class Memory(NamedTuple):
    """What `room.memory_refusal` decides by."""

    free_mb: float | None
    running_mb: float
    overlap: bool


class Jobs:
    """The jobs of one deployment; one at a time."""

    def __init__(
        self,
        folder: DeploymentFolder,
        source: Source,
        memory: Callable[[], Memory],
        account: Account | None = None,
    ) -> None:
        """Self-tests run as `account`, or as the agent's own user."""
        self._folder = folder
        self._source = source
        self._memory = memory
        self._account = account
        self._staging = threading.Lock()
        self._shortcuts = Shortcuts(folder, source)
        self._received: Received | None = None

    @property
    def fetched(self) -> Fetched | None:
        """What the newest bundle that came since the agent started took of the network."""
        got = self._received
        return Fetched(got.sha256, got.size, got.by_delta) if got is not None and got.is_whole else None

    async def do(self, job: Job) -> None:
        """Raises: JobError, OSError."""
        match job:
            case Fetch():
                await self._fetch(job)
            case Stage():
                await self._stage(job.ref)
            case SelfTest():
                await self._selftest(job.ref)
            case Recheck():
                await self._recheck(job.ref)
            case Wait():
                pass

    async def _fetch(self, job: Fetch) -> None:
        memory = await run_blocking(self._memory)
        peak_mb = job.bundle.peak_memory_mb
        if told := room.memory_refusal(memory.free_mb, peak_mb, memory.running_mb, overlap=memory.overlap):
            raise JobError(told, Cause.PASSING)
        try:
            held = await run_blocking(lambda: slots.held(self._folder))
            bases = {one.sha256: self._folder.slot(name) for name, one in held.items()}
            deltas = await self._source.check_signed(job.bundle, bases)
            if self._received is None or self._received.sha256 != job.bundle.sha256:
                self._received = Received(job.bundle.sha256)
            received = self._received
            received.bytes_s = job.bytes_s
            offers = [Offer(bases[base], base, listed) for base, listed in deltas.items()]
            await stoppable(lambda stop: self._shortcuts.bring(job.bundle, offers, stop, received))
        except FetchError as error:
            raise JobError(str(error), error.cause) from error

    async def _stage(self, ref: SlotRef) -> None:
        if slots.current(self._folder) == ref.slot:
            # The slot serves until another one does, or until `current` could be moved.
            raise JobError(f"slot {ref.slot} is still in use", Cause.PASSING)

        def work(_stop: Stopper) -> None:
            # Extracting cannot be stopped; one that was given up must end before the next writes the same slot.
            with self._staging:
                bundle = opened(ref.bundle, self._folder.fetch)
                slots.stage(self._folder, ref.slot, bundle, ref.bundle.target)

        try:
            await stoppable(work)
        except FetchError as error:
            cause = Cause.LOST if error.cause is Cause.PASSING else error.cause
            raise JobError(str(error), cause) from error
        except BundleError as error:
            # It was whole when it was opened: the file changed under the reader.
            raise JobError(str(error), Cause.LOST) from error

    async def _selftest(self, ref: SlotRef) -> None:
        running = slots.current(self._folder)
        beside = running if running != ref.slot else None
        await run_blocking(lambda: durable.make_folder(self._folder.cache, sync=False))
        verdict = await selftest.run(self._folder, ref.slot, beside, account=self._account)
        if not verdict.passed:
            raise JobError(f"self-test: {verdict.reason}", verdict.cause)
        with contextlib.suppress(OSError):
            # What stays there is in nobody's way but the disk's, and the next fetch removes it.
            await run_blocking(lambda: durable.remove(self._folder.fetch))

    async def _recheck(self, ref: SlotRef) -> None:
        """Outputs only: how fast it is now says nothing while a whole device starts."""
        with contextlib.suppress(OSError):
            # A disk that takes nothing must not keep a good bundle from serving.
            await run_blocking(lambda: durable.make_folder(self._folder.cache, sync=False))
        verdict = await selftest.run(self._folder, ref.slot, None, account=self._account, outputs_only=True)
        if not verdict.passed:
            raise JobError(verdict.reason, verdict.cause)
