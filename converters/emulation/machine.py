"""An emulator that is set up: runs a Python program on an emulated ARM CPU, with `edgekit` importable and nothing
else of this machine's Python.
"""

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

import msgspec

import edgekit
from edgekit.errors import ToolFailedError

FORMAT = 1
META = "emulator.json"
CHILD = Path(__file__).with_name("child.py")


class Meta(msgspec.Struct, frozen=True):
    """`emulator.json`. `qemu` is a path, relative to the emulator's folder if it lies inside."""

    format: int
    qemu: str
    qemu_version: str
    python: str
    packages: dict[str, str]


@dataclass(frozen=True)
class Machine:
    folder: Path
    meta: Meta

    @property
    def qemu(self) -> Path:
        return self.folder / self.meta.qemu

    def run(
        self,
        script: Path,
        arguments: Sequence[str],
        *,
        cpu: str,
        timeout_s: float,
        heard: Callable[[str], None] = lambda _: None,
    ) -> str:
        """Run a Python file; its standard output, of which `heard` gets each line as it comes.

        Raises: ToolFailedError if it fails, crashes or takes longer than `timeout_s`.
        """
        with tempfile.TemporaryDirectory(prefix="edgekit-emulated-") as name:
            # A folder with edgekit alone: beside it may lie x86 packages that must not be found.
            (Path(name) / "edgekit").symlink_to(Path(edgekit.__file__).resolve().parent)
            root = self.folder / "root"
            words = [
                str(self.qemu), "-L", str(root), "-cpu", cpu, str(root / "usr/bin" / f"python{self.meta.python}"),
                "-P", "-s", str(script), *arguments,
            ]  # fmt: skip
            environment = {
                key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "LD_"))
            }
            environment["PYTHONPATH"] = os.pathsep.join((name, str(self.folder / "site")))
            with (Path(name) / "stderr").open("w+", encoding="utf-8", errors="replace") as stderr:
                code, said = _streamed(words, environment, stderr.fileno(), timeout_s, heard)
                stderr.seek(0)
                complaint = stderr.read().strip()[-600:]
        if code:
            raise ToolFailedError(
                f"{script.name} on an emulated {cpu} {_ended(code, timeout_s)}: {complaint}"
            )
        return said

    def tried(self, engines: Sequence[str]) -> str:
        """Import these engines once, which also compiles the wheels' bytecode; qemu's version. Raises: ToolFailedError."""
        self.run(CHILD, ["try", *engines], cpu="max", timeout_s=300)
        told = subprocess.run([str(self.qemu), "--version"], capture_output=True, text=True, check=True)
        return told.stdout.split("version ", 1)[-1].split()[0]

    def size_bytes(self) -> int:
        return sum(path.lstat().st_size for path in self.folder.rglob("*") if not path.is_dir())

    def cpus(self) -> list[str]:
        """The CPUs that this qemu knows."""
        told = subprocess.run([str(self.qemu), "-cpu", "help"], capture_output=True, text=True, check=False)
        return sorted(told.stdout.partition(":")[2].split())


def _streamed(
    words: Sequence[str],
    environment: dict[str, str],
    stderr: int,
    timeout_s: float,
    heard: Callable[[str], None],
) -> tuple[int, str]:
    """Exit code (negative for a signal) and standard output."""
    lines: list[str] = []
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment, stdin=subprocess.DEVNULL
    ) as running:
        timer = Timer(timeout_s, running.kill)
        timer.start()
        try:
            assert running.stdout is not None
            for line in running.stdout:
                lines.append(line)
                heard(line)
        except BaseException:
            running.kill()
            raise
        finally:
            timer.cancel()
    return running.returncode, "".join(lines)


def _ended(code: int, timeout_s: float) -> str:
    if code == -signal.SIGKILL:
        return f"was stopped after {timeout_s:.0f} s (or the machine ran out of memory)"
    return f"crashed with {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
