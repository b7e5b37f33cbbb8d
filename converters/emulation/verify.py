"""A bundle's self-test on an emulated ARM CPU, judged here.

What an emulated run shows goes into the evidence and never into the bundle: a bundle's digest must not depend on
whether the building machine has an emulator. The tolerance in the manifest is therefore checked, not widened; a gap
beyond it is told as a failure, since a device would most likely refuse the bundle too. Emulated times are not kept:
they say nothing about a board.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from converters.emulation import setup
from converters.emulation.machine import CHILD, Machine
from converters.keep.artifacts import Cache
from edgekit import bundle, noise, selftest
from edgekit.errors import EdgeKitError, ProfileError, UsageError
from edgekit.evidence import Emulation, Figure, Where
from edgekit.manifest import Manifest
from edgekit.profile import Profile, load
from edgekit.samples import load_arrays
from edgekit.selftest import SelfTestResult

# Seconds of golden samples, and what loading may take beside them.
BUILD_BUDGET_S = 20.0
VERIFY_BUDGET_S = 1200.0
GRACE_S = 180.0
Progress = Callable[[int, int], None]


class Ran(msgspec.Struct, frozen=True):
    """The self-test's result on the samples that ran, and what it ran on."""

    passed: bool
    samples: int
    of: int
    agreement: float
    max_error: dict[str, float]
    tolerance: dict[str, float]
    reason: str
    on: Where


def of_build(
    path: Path, profile: Profile, built_on: Where, cache: Path | None, tell: Callable[[str], None]
) -> Emulation | None:
    """The emulated part of a new bundle's evidence; None for a profile that is no ARM CPU.

    Whatever keeps it from running is told in it; a build never fails by its emulator.
    """
    if profile.arch != "aarch64":
        return None
    if profile.accelerator is not None:
        return Emulation(
            "not emulated", f"an accelerator of kind {profile.accelerator.kind} cannot be emulated"
        )
    if profile.emulator is None:
        return Emulation("not emulated", f"the profile {profile.name} names no emulator")
    machine = setup.installed()
    if machine is None:
        return Emulation("not emulated", "the emulator is not set up (edgekit emulator setup)")
    tell(f"{profile.name}: self-test on an emulated {profile.emulator}")
    try:
        ran = _cached(path, machine, profile.emulator, cache)
    except EdgeKitError as error:
        return Emulation("not emulated", str(error))
    return as_evidence(ran, built_on)


def as_evidence(ran: Ran, built_on: Where) -> Emulation:
    return Emulation(
        outcome="passed" if ran.passed else "failed",
        reason=ran.reason,
        samples=ran.samples,
        of=ran.of,
        agreement=Figure(ran.agreement, "emulated", ran.on),
        max_error={name: Figure(error, "emulated", ran.on) for name, error in ran.max_error.items()},
        tolerance=ran.tolerance,
        against=built_on,
    )


def cpu_for(path: Path, profile: str | None) -> str:
    """The emulated CPU of a bundle's profile, or of the one named. Raises: UsageError, ProfileError."""
    name = profile or bundle.read(path).manifest.profile
    try:
        found = load(name)
    except ProfileError as error:
        if profile:
            raise
        raise UsageError(f"{path.name}: {error}; name its file with --profile") from error
    if found.emulator is None:
        raise UsageError(
            f"the profile {found.name} ({found.arch}) names no emulator; only arm64 CPUs are emulated"
        )
    return found.emulator


def run(
    path: Path, cpu: str, *, budget_s: float = VERIFY_BUDGET_S, progress: Progress = lambda _done, _of: None
) -> Ran:
    """The self-test of a bundle file under emulation. Raises: BundleError; ToolFailedError, also where none is set up."""
    machine = setup.installed()
    if machine is None:
        raise setup.why_absent()
    return _run(path, machine, cpu, budget_s, progress)


def _cached(path: Path, machine: Machine, cpu: str, cache: Path | None) -> Ran:
    """Kept under everything that decides the outcome, the bundle's digest first."""
    parts = {
        "step": "emulated self-test",
        "bundle": bundle.read(path).sha256,
        "cpu": cpu,
        "qemu": machine.meta.qemu_version,
        "packages": machine.meta.packages,
        "budget_s": BUILD_BUDGET_S,
    }
    with tempfile.TemporaryDirectory(prefix="edgekit-emulated-") as folder:

        def make(_: Path) -> dict[str, object]:
            ran = _run(path, machine, cpu, BUILD_BUDGET_S, lambda _done, _of: None)
            made: dict[str, object] = msgspec.to_builtins(ran)
            return made

        return msgspec.convert(Cache(cache).fetch(parts, Path(folder), make), Ran)


def _run(path: Path, machine: Machine, cpu: str, budget_s: float, progress: Progress) -> Ran:
    found = bundle.read(path)
    manifest = found.manifest

    def heard(line: str) -> None:
        message = json.loads(line)
        if "done" in message:
            progress(message["done"], message["of"])

    with tempfile.TemporaryDirectory(prefix="edgekit-emulated-") as name:
        folder = Path(name)
        job = {"bundle": str(path.resolve()), "out": str(folder / "out.npz"), "budget_s": budget_s}
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        said = machine.run(
            CHILD, ["selftest", str(folder / "job.json")], cpu=cpu, timeout_s=budget_s + GRACE_S, heard=heard
        )
        told = json.loads(said.splitlines()[-1])
        found.extract(folder)
        result = _judged(manifest, folder, int(told["samples"]))
    where = Where(
        cpu=f"{cpu}, emulated by qemu {machine.meta.qemu_version}",
        isa=tuple(told["isa"]),
        engine=manifest.engine.name,
        engine_version=told["engine_version"],
        threads=manifest.engine.threads,
    )
    return Ran(
        passed=result.passed,
        samples=int(told["samples"]),
        of=manifest.selftest.samples,
        agreement=result.agreement,
        max_error=result.max_error,
        tolerance=manifest.selftest.tolerance,
        reason=result.reason,
        on=where,
    )


def _judged(manifest: Manifest, folder: Path, count: int) -> SelfTestResult:
    """The device's own rule on the first `count` samples.

    As many answers may differ in a part as in the whole, and as much noise may be in it: a part that fails shows that
    the whole would.
    """
    golden = manifest.selftest
    ours = load_arrays(folder / "out.npz")
    # Of ragged outputs a record has one row for all samples, the first ones' entries first.
    whole = [load_arrays(folder / name) for name in (golden.source, golden.artifact)]
    recorded = [
        {key: array[: len(ours[key])] for key, array in arrays.items() if key in ours} for arrays in whole
    ]
    part = msgspec.structs.replace(
        golden,
        samples=count,
        agreement=max(0.0, 1 - (1 - golden.agreement) * golden.samples / count),
        snr_db=noise.of_first_samples(golden, manifest.outputs, whole[0], recorded[0]),
    )
    return selftest.judge_record(
        msgspec.structs.replace(manifest, selftest=part),
        ours,
        [0.0] * count,
        source=recorded[0],
        artifact=recorded[1],
    )
