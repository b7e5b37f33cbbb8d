"""What /proc and /sys say about this device: load, the agent's memory, temperature. None where they do not say."""

import math
import shutil
from collections.abc import Iterable
from pathlib import Path


class CpuMeter:
    """Busy share of all cores since the last call, in percent."""

    def __init__(self) -> None:
        self._last = _cpu_times()

    def percent(self) -> float | None:
        now, last = _cpu_times(), self._last
        self._last = now
        if now is None or last is None or now[1] <= last[1]:
            return None
        return round(100 * (now[0] - last[0]) / (now[1] - last[1]), 1)


def _cpu_times() -> tuple[int, int] | None:
    """(busy, all) clock ticks since the machine started."""
    try:
        with Path("/proc/stat").open(encoding="ascii") as stream:
            ticks = [int(word) for word in stream.readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, sum(ticks)


def tree_memory_mb(pids: Iterable[int]) -> float | None:
    """Proportional set size of these processes together, in MB: shared pages count once."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
            total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
        except (OSError, StopIteration, ValueError):
            continue
    return round(total * 1024 / 1e6, 1) if total else None


def temperature_c() -> float | None:
    """The hottest thermal zone."""
    found: list[float] = []
    for zone in Path("/sys/class/thermal").glob("thermal_zone*/temp"):
        try:
            found.append(int(zone.read_text(encoding="ascii")) / 1000)
        except (OSError, ValueError):
            continue
    return max(found, default=None)


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def free_memory_mb(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> float | None:
    """MB that processes of ours can still take without swapping: the machine's, or a control group's (v2) if less."""
    found = math.inf
    try:
        for line in (proc / "meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found = int(line.split()[1]) * 1024 / 1e6
    except (OSError, ValueError, IndexError):
        pass
    found = min(found, _left_in_cgroups(proc, cgroups))
    return None if math.isinf(found) else max(0.0, round(found, 1))


def _left_in_cgroups(proc: Path, cgroups: Path) -> float:
    """MB below the tightest limit of our own control group and those around it; infinite where there is none."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return math.inf
    own = next((line[3:] for line in lines if line.startswith("0::")), None)
    if own is None:
        return math.inf
    folder = cgroups / own.lstrip("/")
    groups = [group for group in (folder, *folder.parents) if group.is_relative_to(cgroups)]
    return min((_left_in(group) for group in groups), default=math.inf)


def _left_in(group: Path) -> float:
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        taken = int((group / "memory.current").read_text(encoding="ascii"))
        stat = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):  # no such file, or "max"
        return math.inf
    # Pages of files that nobody used for a while are counted, and given back before anybody is refused.
    cached = next((int(line.split()[1]) for line in stat if line.startswith("inactive_file ")), 0)
    return (limit - taken + cached) / 1e6
