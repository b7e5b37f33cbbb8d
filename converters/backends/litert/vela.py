"""Arm's Vela: an int8 LiteRT model compiled ahead of time for one Ethos-U.

Always true
 1. The compiled file runs on that accelerator only. What is judged here, and what the golden outputs come from, is
    the model that went in, on LiteRT's CPU kernels: it stays beside the compiled one and is never shipped.
 2. Every figure is Vela's own estimate for the accelerator configuration, never a measurement.
 3. What Vela leaves on the CPU is listed by operator, from the compiled file itself.

Vela runs in a process of its own: its compiler core is native code that writes to standard output and may abort.
Source: `vela --help` and ARM's OPTIONS.md for 5.2: the summary's memory figures are KiB, its clock Hz, its time s.
"""

import csv
import hashlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from converters.backends import Unsupported
from converters.backends.artifact import Artifact
from converters.recipes.recipes import VelaConfig
from converters.source import tflite
from edgekit.distribution import extra
from edgekit.errors import ToolFailedError
from edgekit.evidence import Compiled

PACKAGE = "ethos-u-vela"
# The file of configurations that comes with Vela; a profile names sections of it.
CONFIGURATIONS = "Arm/vela.ini"
MODEL = "model.tflite"
JUDGED = "uncompiled.tflite"
TIMEOUT_S = 900
# The line of a traceback that has the error.
_RAISED = re.compile(r"[A-Za-z_.]+(Error|Exception)\b")
# Limits of the address space stand where a memory mode sets no size of its own.
_NO_LIMIT_KIB = 4_194_304


def tools() -> dict[str, str]:
    """Raises: ToolFailedError if Vela is not installed."""
    try:
        return {PACKAGE: importlib.metadata.version(PACKAGE)}
    except importlib.metadata.PackageNotFoundError as error:
        raise ToolFailedError(f"an Ethos-U needs {PACKAGE}; {extra('build')}") from error


def compiled(base: Artifact, config: VelaConfig, folder: Path) -> Artifact:
    """`base` compiled into `folder`, which afterwards holds both files.

    Raises: Unsupported if no operator runs on the accelerator, ToolFailedError with what Vela said.
    """
    version = tools()[PACKAGE]
    uncompiled = folder / JUDGED
    shutil.copyfile(base.folder / base.model, uncompiled)
    with tempfile.TemporaryDirectory(prefix="edgekit-vela-") as scratch:
        summary = _run(uncompiled, config, Path(scratch), folder / MODEL)
    operators = Counter(tflite.read(folder / MODEL).operators)
    if not operators[tflite.NPU_OPERATOR]:
        raise Unsupported(
            f"Vela put no operator on the {config.accelerator}; all stay on the CPU: {_listed(operators)}"
        )
    del operators[tflite.NPU_OPERATOR]
    figures = _figures(summary, config, version, uncompiled, operators)
    return replace(
        base,
        folder=folder,
        model=MODEL,
        judged=JUDGED,
        compiled=figures,
        notes=(*base.notes, *_notes(figures)),
    )


def _run(source: Path, config: VelaConfig, scratch: Path, target: Path) -> dict[str, str]:
    """Compile into `target`; the row of Vela's summary. Raises: ToolFailedError."""
    command = [
        sys.executable, "-m", "ethosu.vela", str(source),
        "--config", CONFIGURATIONS, "--accelerator-config", config.accelerator,
        "--system-config", config.system_config, "--memory-mode", config.memory_mode,
        "--output-dir", str(scratch),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, cwd=scratch, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ToolFailedError(
            f"Vela did not finish within {TIMEOUT_S} s; the model may be too large"
        ) from error
    made = scratch / f"{source.stem}_vela.tflite"
    summaries = list(scratch.glob(f"{source.stem}_summary_*.csv"))
    # Vela 5.2 exits 0 for a file that it could not read.
    if done.returncode != 0 or not made.is_file() or len(summaries) != 1:
        raise ToolFailedError(f"Vela failed for {config.accelerator}: {_complaint(done)}")
    shutil.copyfile(made, target)
    with summaries[0].open(encoding="utf-8", newline="") as stream:
        return next(csv.DictReader(stream))


def _complaint(done: subprocess.CompletedProcess[str]) -> str:
    """What Vela says after its traceback, without warnings about defaults. Its own reasons are indented too."""
    text = done.stderr.strip() or done.stdout.strip()
    lines = text.splitlines()
    if done.stderr.lstrip().startswith("Traceback"):
        raised = [index for index, line in enumerate(lines) if _RAISED.match(line)]
        lines = lines[raised[-1] if raised else 0 :]
    said = " ".join(line.strip() for line in lines if line.strip()) or f"exit code {done.returncode}"
    return said[:500]


def _figures(
    summary: Mapping[str, str], config: VelaConfig, version: str, uncompiled: Path, on_cpu: Counter[str]
) -> Compiled:
    def kb(*keys: str) -> float:
        return round(sum(float(summary[key]) for key in keys) * 1024 / 1000, 3)

    limit_kib = float(summary["arena_cache_size"])
    return Compiled(
        accelerator=config.accelerator,
        system_config=config.system_config,
        memory_mode=config.memory_mode,
        compiler=f"vela {version}",
        cycles=int(float(summary["cycles_total"])),
        latency_ms=float(summary["inference_time"]) * 1e3,
        inferences_per_s=float(f"{float(summary['inferences_per_second']):.6g}"),
        macs=int(float(summary["nn_macs"])),
        sram_kb=kb("sram_memory_used"),
        dram_kb=kb("dram_memory_used"),
        flash_kb=kb("on_chip_flash_memory_used", "off_chip_flash_memory_used"),
        sram_limit_kb=limit_kib * 1.024 if limit_kib < _NO_LIMIT_KIB else None,
        operators=int(tflite.read(uncompiled).count),
        on_cpu=dict(sorted(on_cpu.items())),
        uncompiled_sha256=hashlib.sha256(uncompiled.read_bytes()).hexdigest(),
    )


def _notes(figures: Compiled) -> tuple[str, ...]:
    judged = (
        f"compiled by {figures.compiler} for {figures.accelerator}; accuracy was judged on the uncompiled model"
        f" (sha256 {figures.uncompiled_sha256[:12]}) on LiteRT's CPU kernels, since the compiled one runs only there"
    )
    told = (
        f"Vela estimates {figures.cycles} cycles, {figures.sram_kb:g} kB of SRAM, {figures.dram_kb:g} kB of DRAM and"
        f" {figures.flash_kb:g} kB of flash"
    )
    if not figures.on_cpu:
        return (judged, f"{told}; all operators run on the accelerator")
    left = _listed(Counter(figures.on_cpu))
    return (judged, f"{told}, without the operators left on the CPU: {left}")


def _listed(operators: Mapping[str, int]) -> str:
    return ", ".join(f"{name} x {count}" for name, count in sorted(operators.items()) if count)
