"""The profile of the machine this runs on, as TOML that `edgekit.profile.load` reads.

What the kernel tells is taken as told (ISA, cores, memory, storage); the speeds are measured for a moment with numpy
and good for estimates only. Nothing is guessed silently: comments in the file say which is which.
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
    """The most specific shipped profile that this machine can run, judged by architecture and ISA only."""
    have = set(isa())
    if platform.machine() == "aarch64":
        return "generic-arm64"
    return "x86-64-v4-vnni" if {"avx512", "avx512_vnni"} <= have else "x86-64-v3"


def detect() -> str:
    """TOML text of this machine's profile."""
    have = isa()
    arch = "aarch64" if platform.machine() == "aarch64" else "x86_64"
    precisions = ["fp32", *(["bf16"] if _NATIVE_BF16 & set(have) else []), "int8"]
    reduce_range = arch == "x86_64" and not _VNNI & set(have)
    gmacs, gbps = _measure_speed()
    int8_gain = 4 if _VNNI & set(have) or "dotprod" in have else 1.5
    name = re.sub(r"[^a-z0-9._-]+", "-", platform.node().lower()).strip("-.") or "this-machine"
    lines = [
        f"# {cpu_name()}: made by `edgekit profiles detect` on this machine.",
        f'name = "{name[:64]}"',
        f'title = "{cpu_name().replace(chr(34), "")}"',
        f'arch = "{arch}"',
        f"isa = {_list(have)}",
        f"cores = {len(os.sched_getaffinity(0))}",
        f"memory_mb = {_memory_mb()}",
        f"storage_mb = {shutil.disk_usage('/').total // 1_000_000}",
        "# Measured for a moment with numpy, for estimates only; int8 is the float figure times what the ISA promises.",
        f"gmacs_fp32 = {gmacs:.1f}",
        f"gmacs_int8 = {gmacs * int8_gain:.1f}",
        f"mem_gbps = {gbps:.1f}",
        f"precisions = {_list(precisions)}",
        "",
        "[engines]",
        *(f'{engine} = ">={version}"' for engine, version in engines.installed().items()),
        "",
        "[quantization]",
        f"reduce_range = {str(reduce_range).lower()}",
    ]
    return "\n".join(lines) + "\n"


def _list(values: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{value}"' for value in values) + "]"


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _memory_mb() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1_000_000


def _measure_speed() -> tuple[float, float]:
    """(billions of float multiply-accumulates a second, GB/s of memory traffic), each the best of a few tries."""
    side = 512
    a = np.ones((side, side), np.float32)
    block = np.ones(32 << 20, np.uint8)
    target = np.empty_like(block)
    multiply = min(_time(lambda: a @ a) for _ in range(5))
    copy = min(_time(lambda: np.copyto(target, block)) for _ in range(3))
    return side**3 / multiply / 1e9, 2 * block.nbytes / copy / 1e9


def _time(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began
