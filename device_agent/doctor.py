"""`edgekit agent doctor`: engines, disk, clock, identity and link of this device, each with what to do about it.

No engine is called good before it has run a model (`device_agent.probe`).
"""

import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from device_agent import agentfile, confined, health, identity, probe, renewal, status
from device_agent.blocking import run_blocking
from device_agent.clock import AGENT_BUILT, Clock, is_synchronized
from device_agent.folder import StateFolder
from device_agent.hardware import ROOT_VARIABLE
from device_agent.identity import DeviceIdentity
from device_agent.network import CONNECT_TIMEOUT_S, Access, dial, place
from device_agent.record import Record
from device_agent.sources.advice import examine as examine_sources
from edgekit.distribution import PROVIDERS, engine_extras, extra
from edgekit.errors import EdgeKitError, UsageError
from edgekit.wire.enrolment import EXPIRED_MAY_RENEW_S

LOW_SPACE = 256 << 20


class Check(msgspec.Struct, frozen=True):
    """One finding; `advice` is empty where nothing is to be done."""

    name: str
    state: Literal["good", "note", "bad"]
    found: str
    advice: str = ""


async def examine(state: StateFolder, profile: str | None, config: Path | None = None) -> list[Check]:
    """All checks; what cannot be looked at is a finding, not an error. `config` as for a start of the agent."""
    own = [_disk(state), *_aside(state), _clock(), *_sources(state, config), *_conditions(state)]
    checks = [*await _machine(profile), *own]
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
    return [*checks, *_enrolment(state), *await run_blocking(lambda: _ways(state, known))]


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
    if not is_synchronized():
        return Check("clock", "note", f"{found}, plausible; the kernel does not call it synchronized")
    return Check("clock", "good", f"{found}, synchronized")


def _sources(state: StateFolder, config: Path | None) -> list[Check]:
    """What `agent.toml` says, and what it names that is not there."""
    try:
        file = agentfile.read(state.root, config)
    except UsageError as error:
        return [Check("agent.toml", "bad", str(error), "the agent does not start until it is mended")]
    if file.path is None:
        return []
    found = f"{file.path}: {len(file.sources)} sources, {len(file.sinks)} sinks"
    troubles = [Check("sources", "bad", f"{one.who}: {one.what}", one.todo) for one in examine_sources(file)]
    return [Check("agent.toml", "good", found), *troubles]


def _enrolment(state: StateFolder) -> list[Check]:
    known = status.identity_of(state)
    if known is None:
        return []
    checks = [
        Check("enrolment", "good", f"{known.device} of fleet {known.fleet}, enrolment {known.enrolment}"),
        _certificate(known),
    ]
    if known.hardware:
        found = f"this state folder was made on other hardware: {known.hardware}"
        checks.append(
            Check("hardware", "bad", found, "enrol this device with a file of its own: --enrolment FILE")
        )
    elif known.fingerprint:
        checks.append(Check("hardware", "good", f"{known.fingerprint[:12]}, the one that enrolled"))
    else:
        advice = f"where a container hides them, mount the host's /proc and /sys and name the place in {ROOT_VARIABLE}"
        checks.append(
            Check("hardware", "note", "no serial number here; a copied card would not be noticed", advice)
        )
    return checks


def _certificate(known: status.IdentityView) -> Check:
    now = datetime.now(UTC)
    begin, end = known.certificate_begins, known.certificate_ends
    found = f"valid until {end.isoformat(timespec='minutes')}"
    if now > end:
        may = end + timedelta(seconds=EXPIRED_MAY_RENEW_S)
        if now > may:
            return Check(
                "certificate",
                "bad",
                f"ended at {end.isoformat(timespec='minutes')}",
                "enrol this device again",
            )
        advice = f"it may only be renewed, until {may.isoformat(timespec='minutes')}; see the link below"
        return Check("certificate", "bad", f"ended at {end.isoformat(timespec='minutes')}", advice)
    if now < begin:
        return Check(
            "certificate",
            "note",
            f"{found}, and not before {begin.isoformat(timespec='minutes')}",
            "see the clock",
        )
    if now > renewal.due(begin, end, 1):
        return Check("certificate", "note", f"{found}; should be renewed by now", "see the link to the fleet")
    return Check(
        "certificate",
        "good",
        f"{found}, renewed from {renewal.due(begin, end, 0).isoformat(timespec='minutes')}",
    )


def _ways(state: StateFolder, known: DeviceIdentity) -> list[Check]:
    """Each way to the fleet, as the agent would take it: with TLS, its own certificate, and the proxy that is named."""
    clock = Clock()
    try:
        access = Access(known.file.ca, known.file.allowed_hosts, clock.known)
        key = identity.peek_key(state, known)
        if key is not None:
            access.show(known.answer.certificate, key.pem, known.answer.credential)
    except UsageError as error:
        return [Check("link", "bad", str(error), "enrol this device again")]
    broker = known.file.broker
    host = broker.host.strip("[]")
    checks = [_way("link", "the broker", (host, broker.port), access, is_tls=broker.tls)]
    if broker.websocket_path:
        web = (host, broker.websocket_port)
        checks.append(_way("link", "the broker (WebSockets)", web, access, is_tls=broker.tls, proxied=True))
        if any(check.state == "good" for check in checks):
            checks = [_excused(check) for check in checks]
    url = urlsplit(known.file.artifact_url)
    is_tls = url.scheme == "https"
    address = (url.hostname or "", url.port or (443 if is_tls else 80))
    checks.append(_way("fleet", "the fleet", address, access, is_tls=is_tls, proxied=True))
    return checks


def _excused(check: Check) -> Check:
    """One way to the broker is enough."""
    return (
        Check(check.name, "note", check.found, "the other way to it works") if check.state == "bad" else check
    )


def _way(
    name: str, what: str, address: tuple[str, int], access: Access, *, is_tls: bool, proxied: bool = False
) -> Check:
    host, port = address
    where = place(host, port)
    try:
        if proxied:
            sock = dial("https" if is_tls else "http", host, port)
        else:
            sock = socket.create_connection((host, port), CONNECT_TIMEOUT_S)
        with sock:
            if is_tls and access.context is not None:
                with access.context.wrap_socket(sock, server_hostname=host) as secured:
                    return Check(name, "good", f"{what} at {where} accepts connections, {secured.version()}")
    except OSError as error:
        advice = "the agent serves on and tries again by itself; check network, proxy and fleet"
        return Check(name, "bad", f"{what} at {where} cannot be reached ({error or 'no answer'})", advice)
    return Check(name, "good", f"{what} at {where} accepts connections")


def render(checks: list[Check]) -> str:
    marks = {"good": "ok  ", "note": "note", "bad": "BAD "}
    lines: list[str] = []
    for check in checks:
        lines.append(f"{marks[check.state]} {check.name:10} {check.found}")
        if check.advice:
            lines.append(f"{'':15} {check.advice}")
    return "\n".join(lines)
