"""From what an operator typed to a rollout that could start: who moves to which bundle, who does not and why.

Always true
 1. Every rule is parsed before anything is stored; a plan that cannot work is refused with the reason.
 2. A rollout is judged: it has a control group and a gate against it, or an absolute gate.
 3. Two active rollouts never share a (device, deployment).
"""

import functools
from collections import Counter
from dataclasses import dataclass
from datetime import datetime

import msgspec
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version
from sqlalchemy import Connection

from edgekit import profile as profiles
from edgekit.errors import ConflictError, ProfileError, UsageError
from edgekit.protocol import room
from fleet import api
from fleet.rules import gates, judge, selectors, stages, statistics
from fleet.rules.gates import Gate
from fleet.rules.members import Member
from fleet.rules.rollout import Rollout, Spec
from fleet.rules.stages import Stage
from fleet.rules.text import duration, show_duration
from fleet.server import outlook
from fleet.server.clock import Now
from fleet.server.store import blocked, devices, experiments, members, orders, releases, rollouts
from fleet.server.store.devices import DeviceRow
from fleet.server.store.orders import DesiredRow
from fleet.server.store.releases import BundleRow

_THERE = "is to run this bundle already"


@dataclass(frozen=True)
class Choice:
    """A device's bundle, or why it gets none."""

    device: DeviceRow
    bundle: BundleRow | None
    reason: str = ""


def plan(connection: Connection, wanted: api.NewRollout, now: Now) -> tuple[Rollout, api.Plan]:
    """The rollout as it would start, and the same in words; nothing is stored.

    Raises: UsageError, NotFoundError, ConflictError.
    """
    name, version = releases.parse_title(wanted.release)
    blocked.check_release(connection, name, version)
    bundles = blocked.usable(connection, name, version)
    deployment = wanted.deployment or name
    selector = selectors.parse(wanted.to)
    everyone = devices.everyone(connection)
    known = {label for row in everyone for label in devices.labels_of(row)} | {"device", "profile"}
    selectors.check_names(selector, known)
    present = orders.desired_of(connection)
    selected = [row for row in everyone if selector.matches(devices.labels_of(row))]
    choices = [choose(row, bundles, deployment, present.get((row.id, deployment))) for row in selected]
    rollout_id = rollouts.next_id(connection)
    eligible = [choice for choice in choices if choice.bundle is not None]
    ineligible = tuple(api.Ineligible(c.device.id, c.reason) for c in choices if c.bundle is None)
    concerned = {
        choice.device.id for choice in choices if choice.bundle is not None or choice.reason == _THERE
    }
    _check_conflicts(connection, deployment, concerned)
    if not eligible:
        raise UsageError(_nobody(wanted.to, ineligible))
    held_count = stages.parse_holdback(wanted.holdback, len(eligible))
    spec = _spec(wanted, (name, version), deployment, eligible=len(eligible), held=held_count)
    label = f"r{rollout_id}"
    moment = rollouts.moment(now.steady)
    held = stages.choose_held(
        {c.device.id: c.bundle.profile for c in eligible if c.bundle}, label, held_count
    )
    chosen = {
        choice.device.id: member_of(choice, label, present.get((choice.device.id, deployment)), held, moment)
        for choice in eligible
    }
    rollout = Rollout(id=rollout_id, spec=spec, members=chosen, created_at=moment)
    seen, warnings = outlook.outlook(connection, rollout)
    told = _in_words(rollout, ineligible)
    return rollout, msgspec.structs.replace(told, outlook=seen, notes=(*told.notes, *warnings))


def choose(
    row: DeviceRow, bundles: dict[str, BundleRow], deployment: str, present: DesiredRow | None
) -> Choice:
    """The most specific bundle of the device's profile chain that it can run."""
    bundle = bundle_for(row, bundles)
    reason = _unfit(row, deployment)
    if reason is None and bundle is None:
        reason = f"no bundle for profile {row.profile} (there is {', '.join(sorted(bundles)) or 'none that is not blocked'})"
    if reason is None and bundle is not None:
        reason = _cannot_run(row, bundle, deployment)
        if present is not None and present.sha256 == bundle.sha256:
            reason = _THERE
    return Choice(row, bundle) if reason is None else Choice(row, None, reason)


def bundle_for(row: DeviceRow, bundles: dict[str, BundleRow]) -> BundleRow | None:
    """The most specific one of the device's profile chain."""
    return next((bundles[profile] for profile in _chain(row.profile) if profile in bundles), None)


def _unfit(row: DeviceRow, deployment: str) -> str | None:
    """Why this device takes part in no rollout of this deployment."""
    if row.enrolment == 0:
        return "has not enrolled yet"
    if row.is_duplicate:
        return "is a duplicate: two machines speak under its name; enrol it again"
    if deployment not in devices.deployments_of(row):
        return f"is not enrolled for deployment {deployment}"
    return None if row.reported else "has never reported"


def _cannot_run(row: DeviceRow, bundle: BundleRow, deployment: str) -> str | None:
    """Why it could not run this bundle, by what it reported."""
    reported = devices.reported_of(row)
    assert reported is not None
    if reported.bundle_format < bundle.format:
        return f"reads bundle format {reported.bundle_format}, this is {bundle.format}; update its agent"
    engine = reported.engines.get(bundle.engine)
    if engine is None:
        return f"has no engine {bundle.engine}"
    if not _in_range(engine, bundle.engine_versions):
        return f"{bundle.engine} {engine} is outside {bundle.engine_versions}"
    if told := room.refusal(reported.free_bytes, bundle.length):
        return told
    present = reported.deployments.get(deployment)
    running_mb = (present.memory_mb if present is not None else None) or 0.0
    told = room.memory_refusal(
        reported.free_memory_mb, bundle.peak_memory_mb, running_mb, overlap=reported.overlap
    )
    return told or None


def member_of(
    choice: Choice, rollout: str, present: DesiredRow | None, held: frozenset[str], now: datetime
) -> Member:
    """The member as it starts; what the device said before is noted, so that it is not taken for an answer."""
    row, bundle = choice.device, choice.bundle
    reported = devices.reported_of(row)
    assert bundle is not None
    assert reported is not None
    return Member(
        device=row.id,
        profile=bundle.profile,
        key=stages.key(rollout, row.id),
        target=bundle.sha256,
        previous=present.sha256 if present is not None else None,
        previous_title=releases.title(present.name, present.version) if present is not None else "no model",
        is_held=row.id in held,
        online_since=now if row.is_online else None,
        seen=(row.enrolment, row.incarnation, row.reported_seq),
        refused_before=reported.refused,
    )


@functools.lru_cache(maxsize=256)
def _chain(profile: str) -> tuple[str, ...]:
    try:
        return profiles.load(profile).chain
    except ProfileError:
        return (profile,)  # a profile file of the user's own, known on the device only


def _in_range(version: str, versions: str) -> bool:
    try:
        return SpecifierSet(versions).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def _check_conflicts(connection: Connection, deployment: str, chosen: set[str]) -> None:
    for (device, held), number in experiments.busy(connection).items():
        if held == deployment and device in chosen:
            raise ConflictError(
                f"experiment {experiments.label(number)} has some of these devices ({device}…); stop it or adopt one of "
                "its releases first"
            )
    for other in rollouts.active(connection):
        if other.spec.deployment != deployment:
            continue
        shared = chosen & members.of(connection, other.id).keys()
        if shared:
            raise ConflictError(
                f"rollout {other.label} of {other.spec.name}@{other.spec.version} is {other.status} on "
                f"{len(shared)} of these devices ({', '.join(sorted(shared)[:3])}…); "
                "let it finish, abort it or roll it back first"
            )


def _spec(
    wanted: api.NewRollout, release: tuple[str, str], deployment: str, *, eligible: int, held: int
) -> Spec:
    cut = stages.parse(wanted.stages, eligible)
    parsed = tuple(gates.parse(text) for text in wanted.gates)
    _check_gates(parsed, eligible, held)
    if held:
        cut = (*cut, Stage(share=1.0, words="the held-back devices", is_closing=True))
    return Spec(
        name=release[0],
        version=release[1],
        deployment=deployment,
        selector=wanted.to,
        stages=cut,
        gates=parsed,
        soak_s=duration(wanted.soak, "soak"),
        on_violation=wanted.on_violation,
        deadline_s=duration(wanted.deadline, "deadline"),
        finish_by_s=duration(wanted.finish_by, "finish-by"),
        probation_s=duration(wanted.probation, "probation") if wanted.probation else None,
    )


def _check_gates(parsed: tuple[Gate, ...], eligible: int, held: int) -> None:
    if len({(gate.metric, gate.reference, gate.at_least) for gate in parsed}) < len(parsed):
        raise UsageError("gates: the same metric is limited twice; keep the stricter one")
    for gate in parsed:
        if gate.is_relative and held < statistics.SMALLEST_ARM:
            raise UsageError(
                f"gate {gate.text!r} could never conclude: it needs at least {statistics.SMALLEST_ARM} devices held "
                f"back as control, and {held} of {eligible} are; use --holdback, or an absolute gate such as "
                "'error_rate < 1%' or 'latency_p95 <= 20ms'"
            )
        if gate.minimum_unit == "devices" and not gate.reference and gate.minimum > eligible:
            raise UsageError(
                f"gate {gate.text!r} could never conclude: it needs {gate.minimum} devices, {eligible} are eligible"
            )
    if not any(gate.metric != "lost" and gate.reference != "before" for gate in parsed):
        raise UsageError(
            "a rollout needs something to be judged by; add an absolute gate such as --gate 'error_rate < 1%' or "
            "--gate 'latency_p95 <= 20ms', or one against devices held back, such as --gate 'latency_p95 <= 1.1 * control'"
        )


def _nobody(selector: str, ineligible: tuple[api.Ineligible, ...]) -> str:
    if not ineligible:
        return f"no device matches {selector!r}; 'edgekit fleet devices' shows devices and their labels"
    reasons = Counter(item.reason for item in ineligible)
    listed = "; ".join(f"{reason}: {count}" for reason, count in reasons.most_common(5))
    return f"none of the {len(ineligible)} devices that match {selector!r} can move: {listed}"


def _in_words(rollout: Rollout, ineligible: tuple[api.Ineligible, ...]) -> api.Plan:
    spec = rollout.spec
    by_profile: dict[str, list[str]] = {}
    for member in sorted(rollout.members.values(), key=lambda m: m.key):
        by_profile.setdefault(member.profile, []).append(member.device)
    held = sum(member.is_held for member in rollout.members.values())
    notes = [
        f"each stage soaks {show_duration(spec.soak_s)} once its reachable devices have settled",
        "gates with too little data wait as long again, then the rollout pauses",
        f"a device has {show_duration(spec.deadline_s)} from accepting the order",
        f"the rollout pauses after {show_duration(spec.finish_by_s)}",
        f"when a gate is violated: {spec.on_violation}",
    ]
    if held:
        notes.append(f"{held} devices stay on the old release until the last soak has passed, then follow")
    else:
        notes.append(
            "no devices are held back as control: gates are absolute, and see no comparison with the old release"
        )
    return api.Plan(
        release=releases.title(spec.name, spec.version),
        deployment=spec.deployment,
        eligible={profile: tuple(names) for profile, names in by_profile.items()},
        ineligible=ineligible,
        stages=tuple(stage.words for stage in spec.stages),
        gates=gate_words(spec.gates),
        notes=tuple(notes),
    )


def gate_words(parsed: tuple[Gate, ...]) -> tuple[str, ...]:
    return (
        *(gate.words for gate in judge.with_always(parsed)),
        "two install failures among the first five devices pause it",
    )
