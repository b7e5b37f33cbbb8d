"""A folder source with a file sink, killed before a step: `kill_folder.py ROOT [FILES]`, with files as a JSON object.

For each step N, ROOT/N gets the files, a process that is killed before its step N, and one that goes on to the end; the
first N that is not reached ends it. ROOT/0 has one that nobody kills. Prints the exit status of every first process.

A step is a change of the disk through `durable`, or a transaction of the backlog, before and after it. The model's side is
a function that writes down what it was asked. Prints the number of steps if the end was reached.
"""

import json
import os
import signal
import sys
from pathlib import Path

import msgspec

from device_agent import durable
from device_agent.agentfile import FileSink, FolderSource
from device_agent.sinks.file import File
from device_agent.sources.ask import Refused
from device_agent.sources.feed import Feed, Tally
from device_agent.sources.folder import Folder
from device_agent.sources.outbox import Outbox


class Steps:
    """Counts them; the `last` is not taken any more."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.taken = 0

    def step(self, _what: object = None) -> None:
        self.taken += 1
        if self.taken == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


class Stepped(Outbox):
    steps: Steps

    def do(self, work):
        self.steps.step()
        found = super().do(work)
        self.steps.step()
        return found


class Model:
    """Refuses what has a 9."""

    def __init__(self, root: Path) -> None:
        self._asked = root / "asked"

    def ask(self, body: bytes, _content_type: str) -> msgspec.Raw | Refused:
        with self._asked.open("ab") as stream:
            stream.write(body + b"\n")
        return Refused("input", "a nine") if b"9" in body else msgspec.Raw(json.dumps({"is": body.decode()}))


def feed(root: Path, last: int) -> None:
    steps = Steps(last)
    outbox = Stepped(root / "backlog.db", ["lines"], 1 << 20)
    outbox.steps = steps
    feed = Feed("inbox", "", Model(root), outbox, Tally())
    folder = Folder(FolderSource(name="inbox", path=str(root / "in"), settle_s=0))
    sink = File(FileSink(name="lines", path=str(root / "out.jsonl"), max_mb=1))
    with durable.watched(steps.step):
        folder.prepare()
        folder.turn(feed)
        if owed := outbox.owed("lines", 64):
            outbox.taken("lines", sink.deliver(owed).has)


def in_a_process(root: Path, last: int) -> int:
    """Its exit code, or the negative signal that ended it."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            feed(root, last)
            code = 0
        finally:
            # Not the parent's work a second time; what went wrong is told by the exit code.
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    files, ended = json.loads(sys.argv[2]), []
    for step in range(200):
        root = Path(sys.argv[1]) / str(step)
        (root / "in").mkdir(parents=True)
        for name, body in files.items():
            (root / "in" / name).write_text(body)
        ended.append(in_a_process(root, step))
        if step and ended[-1] == 0:
            break
        if step:
            assert in_a_process(root, 0) == 0
    print(json.dumps(ended))


if __name__ == "__main__":
    main()
