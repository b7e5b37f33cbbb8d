"""`edgekit agent doctor`: engines, disk, clock and link of this device, each with what to do about it.

No engine is called good before it has run a model (`device_agent.probe`).
"""

import asyncio
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from device_agent import confined, health, probe, status
from device_agent.folder import StateFolder
from device_agent.identity import DeviceIdentity
from device_agent.orderbook import AGENT_BUILT
from device_agent.record import Record
from edgekit.distribution import PROVIDERS, engine_extras, extra
from edgekit.errors import EdgeKitError, UsageError

LOW_SPACE = 256 << 20
CONNECT_TIMEOUT_S = 5.0


class Check(msgspec.Struct, frozen=True):
    """One finding; `advice` is empty where nothing is to be done."""

    name: str
    state: Literal["good", "note", "bad"]
    found: str
    advice: str = ""


async def examine(state: StateFolder, profile: str | None) -> list[Check]:
    """All checks; what cannot be looked at is a finding, not an error."""
    checks = [*await _machine(profile), _disk(state), *_aside(state), _clock(), *_conditions(state)]
    record = Record(state.identity, DeviceIdentity)
    known = record.peek()
    if record.trouble:
        names = " and ".join(record.trouble)
        advice = "a start of the agent mends it from the other copy" if known else "enrol this device again"
        checks.append(Check("enrolment", "note" if known else "bad", f"{names} damaged", advice))
    if known is None and not record.trouble:
        advice = "start it with: edgekit agent run --enrolment FILE"
        return [*checks, Check("enrolment", "note", "this device has not joined a fleet yet", advice)]
    if known is None:
        return checks
    broker = known.file.broker
    return [*checks, _enrolment(known), await _link(broker.host, broker.port)]


async def _machine(profile: str | None) -> list[Check]:
    try:
        platform = await probe.find(profile)
    except EdgeKitError as error:
        return [Check("profile", "bad", str(error))]
    found = [
        Check("profile", "good", " > ".join(platform.profiles)),
        Check("isa", "good", " ".join(platform.isa)),
        _confinement(),
    ]
    if platform.engines:
        engines = ", ".join(f"{name} {version}" for name, version in platform.engines.items())
        found.append(Check("engines", "good", engines))
    elif not platform.broken:
        others = ", ".join(name for engine in PROVIDERS.values() for name in engine.values())
        advice = f"install one: {extra('agent', 'onnxruntime')} (one of {others})"
        found.append(Check("engines", "bad", "no engine works here", advice))
    for name, trouble in platform.broken.items():
        advice = f"install it anew with what it needs: {engine_extras(name)}"
        found.append(Check("engines", "bad", trouble, advice))
    return found


def _confinement() -> Check:
    if (version := confined.version()) > 0:
        return Check("workers", "good", f"confined by Landlock {version}, without capabilities")
    advice = "a kernel of 5.13 or newer with CONFIG_SECURITY_LANDLOCK keeps them to their own files"
    return Check("workers", "note", "without capabilities; this kernel has no Landlock", advice)


def _disk(state: StateFolder) -> Check:
    folder = state.root
    while not folder.is_dir():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        return Check("disk", "bad", f"{folder} cannot be written", "give the agent's user the folder")
    free = health.free_bytes(folder)
    found = f"{free >> 20} MiB free at {folder}"
    if free < LOW_SPACE:
        return Check("disk", "bad", found, "updates need room for two bundles; free some")
    return Check("disk", "good", found)


def _aside(state: StateFolder) -> list[Check]:
    """What was found damaged once: it is of no use to the agent, and perhaps to whoever asks why."""
    aside = sorted(path.name for path in state.root.rglob("*.damaged")) if state.root.is_dir() else []
    if not aside:
        return []
    advice = "the card may be failing; the files may be deleted"
    return [Check("disk", "note", f"found damaged and set aside: {', '.join(aside)}", advice)]


def _conditions(state: StateFolder) -> list[Check]:
    """What a running agent says is wrong."""
    try:
        view = status.read(state)
    except UsageError:
        return []
    if not view.is_running:
        return []
    return [
        Check("agent", "bad", f"{condition.deployment or 'device'}: {condition.code}: {condition.detail}")
        for condition in view.reported.conditions
    ]


def _clock() -> Check:
    now = datetime.now(UTC)
    found = now.isoformat(timespec="seconds")
    if now < AGENT_BUILT:
        return Check(
            "clock", "bad", f"{found} lies before this agent was made", "set up time synchronisation"
        )
    if not Path("/run/systemd/timesync/synchronized").exists():
        return Check("clock", "note", f"{found}, plausible; systemd-timesyncd does not confirm it")
    return Check("clock", "good", f"{found}, synchronized")


def _enrolment(known: DeviceIdentity) -> Check:
    answer = known.answer
    return Check(
        "enrolment", "good", f"{answer.device} of fleet {known.file.fleet}, enrolment {answer.enrolment}"
    )


async def _link(host: str, port: int) -> Check:
    where = f"{host}:{port}"
    try:
        _reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), CONNECT_TIMEOUT_S)
    except (OSError, TimeoutError, socket.gaierror) as error:
        advice = "the agent serves on and tries again by itself; check network and broker"
        return Check(
            "link", "bad", f"the broker at {where} cannot be reached ({error or 'no answer'})", advice
        )
    writer.close()
    return Check("link", "good", f"the broker at {where} accepts connections")


def render(checks: list[Check]) -> str:
    marks = {"good": "ok  ", "note": "note", "bad": "BAD "}
    lines: list[str] = []
    for check in checks:
        lines.append(f"{marks[check.state]} {check.name:10} {check.found}")
        if check.advice:
            lines.append(f"{'':15} {check.advice}")
    return "\n".join(lines)
