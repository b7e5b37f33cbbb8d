"""What telemetry costs the card: a simulated day of reports and acknowledgements on a real file system.

    python bench/agent/flash.py [FOLDER] [--reports 1440] [--deployments 1]

Runs the agent's own reporter, spool and status file, with each window closed, saved, sent and acknowledged in turn, as
on a device with a working link. Counts what the kernel was asked to write (`wchar` of /proc/self/io) and what was given
to the block layer (`write_bytes`: dirtied pages of 4 kB, so what a card gets before file system and card add their own).

SQLite's syncs are its own; `strace -f -c -e trace=fsync,fdatasync` around this program counts one fdatasync a report,
and a few for checkpoints.

FOLDER must lie on a disk, not in memory; the default is the current folder.
"""

import argparse
import asyncio
import os
import random
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from device_agent import durable
from device_agent.folder import StateFolder
from device_agent.reporter import Numbers, Reporter, Vitals
from device_agent.spool import Spool
from device_agent.status import AgentStatus, StatusFile
from device_agent.storage import Storage
from edgekit import sketch
from edgekit.manifest import Histogram
from edgekit.wire import messages
from edgekit.wire.messages import Ack, Boot, DeploymentReport, DeploymentWindow, Report, Reported
from edgekit.wire.states import AgentState

DIGEST = "a" * 64
BOOT = Boot(7, 2, "0" * 16)
BUDGET_MB = 15.0


def window(name: str, chance: random.Random) -> DeploymentWindow:
    """A busy minute: 600 requests, latencies spread as a real engine's, ten classes of output."""
    times = [chance.lognormvariate(1.0, 0.3) for _ in range(600)]
    counts = [chance.randrange(100) for _ in range(10)]
    return DeploymentWindow(
        name, DIGEST, requests=600, infer_ms=sketch.of(times), request_ms=sketch.of([t + 0.3 for t in times]),
        outputs={"logits": Histogram([float(n) for n in range(11)], counts)},
    )  # fmt: skip


class Day:
    """The agent's telemetry, driven without waiting for the clock."""

    def __init__(self, root: Path, deployments: int) -> None:
        self.payload_bytes = 0
        self._chance = random.Random(1)
        self._names = [f"d{number}" for number in range(deployments)]
        self._waiting: list[int] = []
        state = StateFolder(root)
        self._storage = Storage(root)
        self._spool = Spool(state.spool)
        self._status = StatusFile(state, self._storage)
        self._reporter = Reporter(
            "board", BOOT, Numbers(), self._storage, self._spool, window_s=1e9,
            close_window=lambda: tuple(window(name, self._chance) for name in self._names),
            vitals=lambda: Vitals(20.0, 150.0, 50.0, clock_ok=True), send=self._send, set_aside=lambda: None,
        )  # fmt: skip

    def _send(self, payload: bytes) -> bool:
        self.payload_bytes += len(payload)
        self._waiting.append(messages.decode(payload, Report).seq)
        return True

    async def minute(self) -> None:
        self._reporter.close_window()
        self._reporter.tick()
        while self._reporter.unsaved:
            await asyncio.sleep(0)
            self._reporter.tick()
        seqs, self._waiting = tuple(self._waiting), []
        self._reporter.acknowledged(messages.encode(Ack(BOOT, seqs)))

    async def status(self) -> None:
        said = {name: DeploymentReport(AgentState.IDLE, DIGEST, DIGEST, DIGEST) for name in self._names}
        reported = Reported(
            "board", BOOT, 1, 1, said, "x86-64-v3", ("avx2",), {"onnxruntime": "1"}, "1", 1, 10**9
        )
        await self._status.write(AgentStatus(reported, "127.0.0.1:8500", True, datetime.now(UTC)))

    async def close(self) -> None:
        await self._reporter.close()
        await self._storage.do(self._spool.close)
        await self._storage.close()


def written() -> dict[str, int]:
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


async def run(folder: Path, reports: int, deployments: int) -> None:
    syncs = 0

    def count(operation: durable.Operation) -> None:
        nonlocal syncs
        syncs += operation.kind in ("sync", "sync-folder")

    with tempfile.TemporaryDirectory(dir=folder) as name, durable.watched(count):
        day = Day(Path(name), deployments)
        await day.minute()
        os.sync()
        before, sent = written(), day.payload_bytes
        for _ in range(reports):
            await day.minute()
        await day.status()
        after, payload = written(), day.payload_bytes - sent
        await day.close()
    asked, given = after["wchar"] - before["wchar"], after["write_bytes"] - before["write_bytes"]
    scale = 1440 / reports / 1e6
    print(f"{reports} reports of {payload / reports:.0f} bytes, {deployments} deployment(s), on {folder}")
    print(f"payload        {payload * scale:6.2f} MB a day")
    print(f"asked to write {asked * scale:6.2f} MB a day, {asked / reports:.0f} bytes a report")
    print(f"given to disk  {given * scale:6.2f} MB a day, {given / reports:.0f} bytes a report")
    print(f"syncs          {syncs} by durable in all; one a report by SQLite")
    print(f"budget         {BUDGET_MB:6.2f} MB a day: {'kept' if given * scale <= BUDGET_MB else 'EXCEEDED'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path.cwd())
    parser.add_argument("--reports", type=int, default=1440)
    parser.add_argument("--deployments", type=int, default=1)
    wanted = parser.parse_args()
    asyncio.run(run(wanted.folder, wanted.reports, wanted.deployments))


if __name__ == "__main__":
    main()
