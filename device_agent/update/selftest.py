"""The self-test of a staged bundle, in a child process with time and memory limits.

The parent's half, `run`, needs no numpy. The child (`python -m device_agent.update.selftest`) loads the slot, runs the
golden inputs, and, where the contract bounds latency and another bundle runs here, that one too in the same minute: a
machine that slows both alike is no fault of the new one.
"""

import argparse
import asyncio
import math
import os
import signal
import sys
from pathlib import Path

import msgspec

from device_agent import confined, memory, parent
from device_agent.account import Account
from device_agent.blocking import run_blocking
from device_agent.folder import DeploymentFolder
from device_agent.update.events import Cause, SlotName
from device_agent.update.slots import load_checked
from device_agent.update.trial import LATENCY_MARGIN
from edgekit.errors import BundleError, EdgeKitError
from edgekit.manifest import Manifest

TIMEOUT_S = 300.0
# nice(2), of what is in no hurry.
PATIENCE = 5
_POLL_S = 0.1


class Verdict(msgspec.Struct, frozen=True):
    """`reason` is empty when passed; otherwise `cause` says whose it is."""

    passed: bool
    reason: str
    latency_p95_ms: float = 0.0
    cause: Cause = Cause.BUNDLE
    # For who asked for figures: of a test that ran to its end.
    latency_p50_ms: float = 0.0
    agreement: float = 0.0
    max_error: dict[str, float | None] = {}
    peak_memory_mb: float | None = None


async def run(
    folder: DeploymentFolder,
    name: SlotName,
    running: SlotName | None,
    *,
    account: Account | None = None,
    outputs_only: bool = False,
    is_patient: bool = False,
) -> Verdict:
    """Judge the bundle in slot `name`; where it `is_patient`, below everything else. Cancelling ends the child.

    A crash or too much memory is a verdict like any other; a hang, or an end that came from outside, may be the
    machine's doing and is one only when it repeats. Raises: OSError if no process can be had.
    """
    slot = folder.slot(name)
    beside = None if running is None else folder.slot(running)
    words = ["--parent", str(os.getpid()), "--slot", str(slot), "--cache", str(folder.cache)]
    if beside is not None:
        words += ["--running", str(beside)]
    if outputs_only:
        words.append("--outputs-only")
    if is_patient:
        words.append("--patient")
    limit = await run_blocking(lambda: memory.limit(slot))
    bounds = confined.Bounds(
        hidden=(folder.state,),
        readable=(slot, *([beside] if beside is not None else [])),
        writable=(folder.cache,),
        memory_bytes=memory.wall(limit),
        account=account,
    )
    options = await run_blocking(lambda: confined.options(bounds))
    process = await asyncio.create_subprocess_exec(
        *confined.command("device_agent.update.selftest", bounds, *words),
        stdout=asyncio.subprocess.PIPE, start_new_session=True, **options,
    )  # fmt: skip
    assert process.stdout is not None
    guard = asyncio.create_task(_too_much_memory(process.pid, limit))
    try:
        async with asyncio.timeout(TIMEOUT_S):
            output = await process.stdout.read()
        async with asyncio.timeout(_POLL_S * 50):
            code = await process.wait()
    except TimeoutError:
        told = f"the self-test took longer than {TIMEOUT_S:.0f} s"
        return Verdict(passed=False, reason=told, cause=Cause.DOUBT)
    finally:
        guard.cancel()
        if process.returncode is None:
            process.kill()
            await process.wait()
    if guard.done() and not guard.cancelled():
        return Verdict(passed=False, reason=f"the self-test needed more than {limit >> 20} MiB of memory")
    if code != 0:
        is_crash = code < 0 and -code not in (signal.SIGKILL, signal.SIGTERM)
        cause = Cause.BUNDLE if is_crash else Cause.DOUBT
        return Verdict(passed=False, reason=f"the self-test's process {_ending(code)}", cause=cause)
    try:
        # Engines print to standard output as they please; the verdict is the last line.
        return msgspec.json.decode(output.splitlines()[-1] if output else b"", type=Verdict)
    except msgspec.DecodeError as error:
        told = f"the self-test said nothing that can be read ({error})"
        return Verdict(passed=False, reason=told, cause=Cause.DOUBT)


def _ending(code: int) -> str:
    return f"ended with exit code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"


async def _too_much_memory(pid: int, limit: int) -> None:
    """Ends the process, and returns, once its resident memory is above `limit` bytes."""
    while memory.resident(pid) <= limit:  # noqa: ASYNC110  # memory has no event to wait for
        await asyncio.sleep(_POLL_S)
    os.kill(pid, signal.SIGKILL)


def judge(slot: Path, running: Path | None, cache: Path, *, outputs_only: bool = False) -> Verdict:
    """The child's half: outputs by the manifest's tolerances, then, unless `outputs_only`, latency."""
    from edgekit import selftest
    from edgekit.engines import LoadedBundle

    try:
        _mark, manifest = load_checked(slot)
        result = selftest.check(manifest, LoadedBundle(manifest, slot, cache=cache), slot)
        reason = result.reason
        if result.passed and not outputs_only:
            reason = _latency_complaint(manifest, result.latency_p95_ms, running, cache)
    except BundleError as error:
        return Verdict(passed=False, reason=str(error), cause=Cause.LOST)
    except (OSError, MemoryError) as error:
        return Verdict(passed=False, reason=str(error) or type(error).__name__, cause=Cause.PASSING)
    except EdgeKitError as error:
        return Verdict(passed=False, reason=str(error))
    return Verdict(
        passed=not reason,
        reason=reason,
        latency_p95_ms=result.latency_p95_ms,
        latency_p50_ms=result.latency_p50_ms,
        agreement=result.agreement,
        max_error={name: error if math.isfinite(error) else None for name, error in result.max_error.items()},
        peak_memory_mb=memory.peak_mb(),
    )


def _latency_complaint(manifest: Manifest, p95_ms: float, running: Path | None, cache: Path) -> str:
    limit = manifest.contract.latency_p95_ms
    if limit is None or p95_ms <= limit * LATENCY_MARGIN:
        return ""
    told = f"latency p95 is {p95_ms:.2f} ms, the contract says {limit:g} ms"
    if running is None:
        return told
    slowdown = _slowdown(running, cache)
    if slowdown is not None and p95_ms <= limit * LATENCY_MARGIN * slowdown:
        return ""
    return told


def _slowdown(running: Path, cache: Path) -> float | None:
    """How many times its own latency contract the running bundle takes now; None if it has none or cannot say."""
    from edgekit import selftest
    from edgekit.engines import LoadedBundle

    try:
        _mark, manifest = load_checked(running)
        own = manifest.contract.latency_p95_ms
        if own is None:
            return None
        result = selftest.check(manifest, LoadedBundle(manifest, running, cache=cache), running)
    except EdgeKitError:
        return None
    return result.latency_p95_ms / own


def main() -> None:
    parser = argparse.ArgumentParser(description="EdgeKit self-test; started by 'edgekit agent run'.")
    parser.add_argument("--parent", type=int, required=True, help="the process that this one ends with")
    parser.add_argument("--slot", type=Path, required=True)
    parser.add_argument("--running", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--outputs-only", action="store_true", help="do not judge latency")
    parser.add_argument("--patient", action="store_true", help="give way to everything else")
    chosen = parser.parse_args()
    parent.die_with(chosen.parent)
    if chosen.patient:
        os.nice(PATIENCE)
    verdict = judge(chosen.slot, chosen.running, chosen.cache, outputs_only=chosen.outputs_only)
    sys.stdout.buffer.write(b"\n" + msgspec.json.encode(verdict))
    sys.stdout.flush()
    # Skips interpreter teardown, where some engines crash after a clean run.
    os._exit(0)


if __name__ == "__main__":
    main()
