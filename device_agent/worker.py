"""The process that loads one slot and answers inference requests for one deployment.

Started by the supervisor with one end of a channel; it ends when the channel does. What it cannot load it says once
(`Failed`) and ends with exit code 3.
"""

import argparse
import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

from device_agent import log, parent
from device_agent.channel import (
    CONNECTION,
    FEED,
    PASSED,
    SAMPLE,
    Channel,
    Counted,
    Drain,
    Failed,
    Message,
    PassedOver,
    Ping,
    Pong,
    Ready,
    Sampling,
    Snapshot,
)
from device_agent.owed import Owed
from device_agent.passing import Asker
from device_agent.samples.sampler import Sampler
from device_agent.serve.app import WorkerApp
from device_agent.serve.connections import Connections
from device_agent.serve.counters import Counters
from device_agent.serve.door import Door
from device_agent.serve.guarded import guarded_by
from device_agent.serve.judged import judge
from device_agent.serve.model import ServedModel
from device_agent.shadow.feed import Feed
from device_agent.update import slots
from device_agent.update.events import Cause
from edgekit import drift
from edgekit.engines import LoadedBundle
from edgekit.errors import BundleError, EdgeKitError
from edgekit.guard_section import GuardAnswer

DRAIN_PATIENCE_S = 30.0
CANNOT_SERVE = 3
HUNG = 70


class Worker:
    """One loaded slot and the channel to the supervisor."""

    def __init__(
        self,
        deployment: str,
        deployments: tuple[str, ...],
        slot: Path,
        cache: Path,
        owed: Owed,
        *,
        guard_answer: GuardAnswer | None = None,
        guard_timeout_s: float | None = None,
    ) -> None:
        """`guard_answer` is the device's word on unfamiliar inputs, if it has one; `guard_timeout_s` is given where it has
        somebody who answers those that are passed on.
        """
        self._mark, manifest = slots.load_checked(slot)
        loaded = LoadedBundle(manifest, slot, cache=cache)
        judged = judge(manifest, loaded, slot)
        self._counters = Counters(deployment, self._mark.sha256, manifest)
        guarded = guarded_by(manifest, slot, guard_answer)
        self._model = ServedModel(manifest, loaded, self._counters, judged, guarded)
        self._asker: Asker | None = None
        if guarded is not None and guarded.answer == "pass" and guard_timeout_s is not None:
            self._asker = Asker(deployment, guard_timeout_s, self._ask)
        self._sampler = Sampler(deployment, self._mark.sha256, manifest, self._keep)
        self._app = WorkerApp(
            deployment,
            deployments,
            self._mark.sha256,
            self._model,
            self._sampler,
            give_back=self._hand_back,
            on_hung=self._hung,
            pass_on=self._asker.ask if self._asker is not None else None,
        )
        self._connections = Connections(
            self._app.route, Door(self._app.total_bytes), relayed_back=self._hand_back, owed=owed
        )
        self._channel: Channel
        self._ended: asyncio.Future[int]

    async def serve(self, sock: socket.socket) -> int:
        """Answer until drained or cut off; the exit code."""
        self._ended = asyncio.get_running_loop().create_future()
        self._channel = Channel(
            sock,
            self._told,
            {CONNECTION: self._given, FEED: self._fed, PASSED: self._answered},
            self._cut_off,
        )
        self._channel.start()
        manifest = self._model.manifest
        limit = manifest.contract.latency_p95_ms
        self._channel.send(
            Ready(
                self._mark.sha256, manifest.name, manifest.version, limit, drift.bounded(manifest.reference)
            )
        )
        code = await self._ended
        self._sampler.close()
        self._model.close()
        return code

    def _told(self, message: Message) -> None:
        if isinstance(message, Ping):
            self._channel.send(Pong())
        elif isinstance(message, Snapshot):
            self._count()
        elif isinstance(message, Sampling):
            self._sampler.told(message)
        elif isinstance(message, Drain):
            self._drain = asyncio.get_running_loop().create_task(self._finish())

    def _given(self, descriptor: int, prefix: bytes) -> None:
        self._connections.adopt(socket.socket(fileno=descriptor), prefix)

    def _ask(self, descriptor: int, about: bytes) -> None:
        self._channel.pass_on(PASSED, descriptor, about)

    def _answered(self, descriptor: int, about: bytes) -> None:
        if self._asker is not None:
            self._asker.take(descriptor, about)
        else:
            os.close(descriptor)

    def _fed(self, descriptor: int, share: bytes) -> None:
        self._model.feed = Feed(socket.socket(fileno=descriptor), float(share))

    async def _finish(self) -> None:
        await self._connections.drain(self._hand_back, DRAIN_PATIENCE_S)
        self._count()
        await self._channel.flushed()
        self._end(0)

    def _hand_back(self, descriptor: int, prefix: bytes) -> None:
        self._channel.pass_on(CONNECTION, descriptor, prefix)

    def _count(self) -> None:
        self._channel.send(Counted(self._counters.snapshot()))
        if passed_over := self._sampler.passed_over():
            self._channel.send(PassedOver(passed_over))

    def _keep(self, descriptor: int) -> None:
        self._channel.pass_on(SAMPLE, descriptor)

    def _hung(self) -> None:
        """The engine's thread cannot be ended, so the process must be; the answers get a moment to leave."""
        log.trouble("the engine hangs; the worker ends")
        self._count()
        asyncio.get_running_loop().call_later(0.2, os._exit, HUNG)

    def _cut_off(self) -> None:
        """The supervisor is gone: its successor starts its own workers."""
        os._exit(0)

    def _end(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)


# Whose fault it is that a slot cannot be loaded; the first that fits.
_CAUSES: tuple[tuple[type[Exception], Cause], ...] = (
    (BundleError, Cause.LOST),
    (EdgeKitError, Cause.BUNDLE),
    (OSError, Cause.PASSING),
    (MemoryError, Cause.PASSING),
)


async def _refuse(sock: socket.socket, reason: str, cause: Cause) -> None:
    channel = Channel(sock, lambda _message: None, {}, lambda: None)
    channel.start()
    channel.send(Failed(reason, cause))
    channel.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="EdgeKit worker; started by 'edgekit agent run'.")
    parser.add_argument("--parent", type=int, required=True, help="the process that this one ends with")
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--owed", type=int, help="memory that says which clients are owed an answer")
    parser.add_argument("--deployment", required=True)
    parser.add_argument("--deployments", required=True, help="all of this device's, comma-separated")
    parser.add_argument("--slot", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--log-json", action="store_true")
    parser.add_argument("--guard-answer", choices=("flag", "refuse", "pass"), help="to unfamiliar inputs")
    parser.add_argument(
        "--guard-timeout", type=float, help="seconds that who answers those passed on may take"
    )
    chosen = parser.parse_args()
    parent.die_with(chosen.parent)
    log.set_up(as_json=chosen.log_json)
    # Ctrl-C reaches the whole process group; the supervisor decides how its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # How long a thread that reads a large body may keep the loop and the engine from going on.
    sys.setswitchinterval(0.001)
    sock = socket.socket(fileno=chosen.channel)
    names = tuple(chosen.deployments.split(","))
    try:
        worker = Worker(
            chosen.deployment,
            names,
            chosen.slot,
            chosen.cache,
            Owed(chosen.owed),
            guard_answer=chosen.guard_answer,
            guard_timeout_s=chosen.guard_timeout,
        )
    except (EdgeKitError, OSError, MemoryError) as error:
        cause = next(cause for kind, cause in _CAUSES if isinstance(error, kind))
        asyncio.run(_refuse(sock, str(error) or type(error).__name__, cause))
        raise SystemExit(CANNOT_SERVE) from None
    code = asyncio.run(worker.serve(sock))
    # Skips interpreter teardown, where some engines crash after a clean run.
    os._exit(code)


if __name__ == "__main__":
    main()
