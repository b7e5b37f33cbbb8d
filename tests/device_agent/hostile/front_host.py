"""The agent's front and one real worker, without a fleet: what a client's bytes meet, in the processes they meet there.

Run with the arguments of `Front`'s listeners and a slot; prints one line of JSON when it serves, ends when its input does.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from device_agent import front
from device_agent.channel import CONNECTION, Channel
from device_agent.listen import credentials, listen


class OneWorker:
    """What the front needs of the workers of a deployment."""

    is_expected = True

    def __init__(self, deployment: str, slot: Path) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "device_agent.worker", "--parent", str(os.getpid()), "--channel", str(theirs.fileno()), "--deployment", deployment,
             "--deployments", deployment, "--slot", slot, "--cache", slot.parent / "cache"],
            pass_fds=[theirs.fileno()],
        )  # fmt: skip
        theirs.close()
        self.ready = asyncio.Event()
        self.channel = Channel(ours, self._told, {CONNECTION: self._given_back}, self._lost)
        self.front: front.Front
        self.serving: OneWorker | None = None

    @property
    def is_ready(self) -> bool:
        return self.serving is not None

    def _told(self, _message: object) -> None:
        self.serving = self
        self.ready.set()

    def _given_back(self, descriptor: int, prefix: bytes) -> None:
        self.front.given_back(descriptor, prefix)

    def _lost(self) -> None:
        os._exit(1)

    def give(self, descriptor: int, prefix: bytes) -> None:
        self.channel.pass_on(CONNECTION, descriptor, prefix)

    async def wait_change(self, patience_s: float) -> None:
        await asyncio.wait_for(self.ready.wait(), patience_s)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--deployment", default="digits")
    parser.add_argument("--slot", type=Path, required=True)
    parser.add_argument("--http", action="append", required=True)
    parser.add_argument("--secured", help="certificate, key and token file, with commas between")
    chosen = parser.parse_args()
    files = chosen.secured.split(",") if chosen.secured else []
    secured = credentials(*map(Path, files)) if files else None
    listeners = listen(chosen.http, secured)
    worker = OneWorker(chosen.deployment, chosen.slot)
    worker.channel.start()
    await worker.ready.wait()
    worker.front = front.Front(
        listeners, (chosen.deployment,), {chosen.deployment: worker}, lambda: "", secured
    )
    worker.front.start()
    print(
        json.dumps(
            {
                "http": [each.address for each in listeners],
                "front": os.getpid(),
                "worker": worker.process.pid,
            }
        ),
        flush=True,
    )
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await worker.front.close()
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
