"""What a process that runs a bundle may take, and what it takes."""

import os
from pathlib import Path

from device_agent.update.trial import LATENCY_MARGIN
from edgekit import manifest as manifests
from edgekit.errors import EdgeKitError
from edgekit.manifest import MANIFEST_NAME

# Beside the engine's peak: the interpreter's, and in a worker the requests and answers under way (serve/door.py).
_INTERPRETER = 128 << 20
SERVING = 256 << 20
_DEFAULT_SHARE = 0.6
# The kernel's bound lies above the watched one and ends an allocation, not the process; it also counts what was
# reserved and never touched, as threads' stacks and arenas are.
_WALL, _RESERVED = 1.25, 1 << 30


def limit(slot: Path) -> int:
    """Bytes of resident memory: the contract's with its margin and the interpreter's share, or most of the machine's."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    most = int(machine * _DEFAULT_SHARE)
    try:
        contract = manifests.decode((slot / MANIFEST_NAME).read_bytes()).contract.memory_mb
    except (EdgeKitError, OSError):
        # Whoever loads it will say so.
        return most
    return most if contract is None else min(most, int(contract * LATENCY_MARGIN * 1e6) + _INTERPRETER)


def wall(limit_bytes: int) -> int:
    """Bytes that the kernel refuses to go beyond."""
    return int(limit_bytes * _WALL) + _RESERVED


def resident(pid: int) -> int:
    """Bytes; 0 once the process is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_mb() -> float | None:
    """The most resident memory of this process, in MB; its own, not its parent's as getrusage(2) has it."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    found = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")), None)
    return None if found is None else int(found) * 1024 / 1e6
