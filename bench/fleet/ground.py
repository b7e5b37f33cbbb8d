"""What the measurements stand on: a PostgreSQL server of their own, as durable as Debian's, and a process's costs."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s until {what}")
        time.sleep(0.05)


class Postgres:
    """A server in a folder of its own; `stop` and `start` as an operator would. Settings are initdb's (fsync on)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"postgresql+psycopg://edgekit@127.0.0.1:{self.port}/postgres"
        self._tools = max(Path("/usr/lib/postgresql").glob("*/bin/initdb")).parent
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            # initdb refuses to run as root.
            account = pwd.getpwnam("nobody")
            os.chown(folder, account.pw_uid, account.pw_gid)
            self._user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        init = [self._tools / "initdb", "-D", folder / "data", "-U", "edgekit", "-A", "trust", "-E", "UTF8"]
        subprocess.run(init, check=True, capture_output=True, cwd="/", **self._user)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["-c", "listen_addresses=127.0.0.1", "-k", str(self.folder), "-p", str(self.port)]
        self.process = subprocess.Popen(
            [self._tools / "postgres", "-D", self.folder / "data", *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            **self._user,
        )
        ask = [self._tools / "pg_isready", "-h", "127.0.0.1", "-p", str(self.port)]
        wait_until(
            lambda: subprocess.run(ask, capture_output=True, check=False).returncode == 0, "PostgreSQL is up"
        )

    def stop(self) -> None:
        """Fast shutdown: every session is cut."""
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)
            self.process = None


@contextmanager
def postgres() -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="edgekit-bench-pg-"))
    folder.chmod(0o711)
    try:
        server = Postgres(folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Cost(NamedTuple):
    """Of a process with its children: CPU seconds so far, resident megabytes now (shared pages counted once each)."""

    cpu_s: float
    memory_mb: float


def cost(pid: int) -> Cost:
    cpu_s = memory_mb = 0.0
    for one in family(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            cpu_s += (int(fields[11]) + int(fields[12])) / _TICKS
            memory_mb += _pss_mb(one)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return Cost(cpu_s, memory_mb)


def _pss_mb(pid: int) -> float:
    """Proportional set size: a page that n processes share counts 1/n in each."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / 2**20


def family(pid: int) -> Iterable[int]:
    """The process and all below it."""
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        try:
            for task in Path(f"/proc/{one}/task").iterdir():
                todo += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found
