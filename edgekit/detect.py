"""The profile of the machine this runs on, as TOML that `edgekit.profile.load` reads.

What the kernel tells is taken as told (ISA, cores, memory, storage). Arithmetic speed is the peak that clock and ISA
give, as in the profiles that ship: a matrix product of numpy measures its BLAS, which on a CPU it does not know was
30 times below that. Memory traffic is measured for a moment. Comments in the file say which is which.
"""

import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from edgekit import engines
from edgekit.errors import ProfileError

# /proc/cpuinfo flag → our name (x86 "flags", Arm "Features").
_FLAGS: Mapping[str, str] = {
    "avx2": "avx2",
    "avx512f": "avx512",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "asimd": "neon",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "asimdhp": "fp16",
    "bf16": "bf16",
}
# ISA → float products a cycle of one core, widest first: two FMA units of its width, one on the oldest Arm cores.
_PRODUCTS: Mapping[str, int] = {"avx512": 32, "avx2": 16, "dotprod": 8, "neon": 4}
_VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}
_NATIVE_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}


def cpu_name(cpuinfo: str | None = None) -> str:
    """The CPU as /proc/cpuinfo calls it."""
    text = _cpuinfo() if cpuinfo is None else cpuinfo
    match = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.machine()


def isa(cpuinfo: str | None = None) -> tuple[str, ...]:
    """The instruction sets that kernels may use here, in the order of the table."""
    text = _cpuinfo() if cpuinfo is None else cpuinfo
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    flags = set(match.group(1).split()) if match else set()
    return tuple(name for flag, name in _FLAGS.items() if flag in flags)


def closest_shipped() -> str:
    """The most specific shipped profile that this machine can run, judged by architecture and ISA only.

    Raises: ProfileError for a machine below all of them.
    """
    have = set(isa())
    if platform.machine() == "aarch64" and "neon" in have:
        return "generic-arm64"
    if {"avx512", "avx512_vnni"} <= have:
        return "x86-64-v4-vnni"
    if "avx2" in have:
        return "x86-64-v3"
    raise ProfileError(
        f"{cpu_name()}: neither AVX2 nor 64-bit Arm with NEON, below every profile that ships; write your own .toml"
    )


def detect() -> str:
    """TOML text of this machine's profile."""
    have = isa()
    arch = "aarch64" if platform.machine() == "aarch64" else "x86_64"
    precisions = ["fp32", *(["bf16"] if _NATIVE_BF16 & set(have) else []), "int8"]
    reduce_range = arch == "x86_64" and not _VNNI & set(have)
    cores = len(os.sched_getaffinity(0))
    gmacs, origin = _gmacs_fp32(cores, have)
    int8_gain = 4 if _VNNI & set(have) or "dotprod" in have else 1.5
    name = re.sub(r"[^a-z0-9._-]+", "-", platform.node().lower()).strip("-.") or "this-machine"
    lines = [
        f"# {cpu_name()}: made by `edgekit profiles detect` on this machine.",
        f'name = "{name[:64]}"',
        f'title = "{cpu_name().replace(chr(34), "")}"',
        "# What was built for this one runs here too.",
        f'extends = "{closest_shipped()}"',
        f'arch = "{arch}"',
        f"isa = {_list(have)}",
        f"cores = {cores}",
        f"memory_mb = {_memory_mb()}",
        f"storage_mb = {shutil.disk_usage('/').total // 1_000_000}",
        f"# For estimates only: {origin}; int8 is {int8_gain} times that by the ISA; memory traffic was measured.",
        f"gmacs_fp32 = {gmacs:.1f}",
        f"gmacs_int8 = {gmacs * int8_gain:.1f}",
        f"mem_gbps = {_measured_gbps():.1f}",
        f"precisions = {_list(precisions)}",
        "",
        "[engines]",
        *(f'{engine} = "{_range(version)}"' for engine, version in engines.installed().items()),
        "",
        "[quantization]",
        f"reduce_range = {str(reduce_range).lower()}",
    ]
    return "\n".join(lines) + "\n"


def _range(version: str) -> str:
    """From the installed version up to the next major one."""
    return f">={version},<{int(version.partition('.')[0]) + 1}"


def _list(values: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{value}"' for value in values) + "]"


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _memory_mb() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1_000_000


def _gmacs_fp32(cores: int, have: Sequence[str]) -> tuple[float, str]:
    """Billions of float multiply-accumulates a second of all cores, and how the figure came about."""
    products = next((count for isa, count in _PRODUCTS.items() if isa in have), 0)
    clock_ghz = _clock_ghz()
    if products and clock_ghz:
        return (
            cores * clock_ghz * products,
            f"the peak of {cores} cores at {clock_ghz:.2g} GHz with {products} float products a cycle each",
        )
    side = 512
    a = np.ones((side, side), np.float32)
    seconds = min(_time(lambda: a @ a) for _ in range(5))
    return side**3 / seconds / 1e9, "measured with numpy's matrix product"


def _clock_ghz() -> float | None:
    limit = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    if limit.is_file():
        return int(limit.read_text(encoding="ascii")) / 1e6
    match = re.search(r"^cpu MHz\s*:\s*([\d.]+)$", _cpuinfo(), re.MULTILINE)
    return float(match.group(1)) / 1000 if match else None


def _measured_gbps() -> float:
    """GB/s read and written by a copy larger than the caches, the best of a few."""
    block = np.ones(64 << 20, np.uint8)
    target = np.empty_like(block)
    return 2 * block.nbytes / min(_time(lambda: np.copyto(target, block)) for _ in range(3)) / 1e9


def _time(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began
