"""From what an operator typed to a rollout that could start: who moves to which bundle, who does not and why.

Always true
 1. Every rule is parsed before anything is stored; a plan that cannot work is refused with the reason.
 2. A rollout is judged: it has a control group and a gate against it, or an absolute gate.
 3. Two active rollouts never share a (device, deployment); one that would waits in the queue if it may, behind those
    that came before it.
"""

from collections import Counter

import msgspec
from sqlalchemy import Connection

from edgekit.errors import ConflictError, NotPossibleError
from fleet import api
from fleet.rules import gates, judge, pace, selectors, stages, statistics, windows
from fleet.rules.gates import Gate
from fleet.rules.pace import Pace
from fleet.rules.rollout import Rollout, Spec, Status
from fleet.rules.stages import Stage
from fleet.rules.text import duration, show_duration
from fleet.server import fitting, outlook
from fleet.server.clock import Now
from fleet.server.store import blocked, devices, experiments, members, orders, releases, rollouts


def plan(
    connection: Connection, wanted: api.NewRollout, now: Now, rollout_id: int | None = None
) -> tuple[Rollout, api.Plan]:
    """The rollout as it would start, and the same in words; nothing is stored. `rollout_id` is for one that has waited.

    Its status is QUEUED if it has to wait. Raises: NotPossibleError, NotFoundError, ConflictError.
    """
    name, version = releases.parse_title(wanted.release)
    blocked.check_release(connection, name, version)
    bundles = blocked.usable(connection, name, version)
    deployment = wanted.deployment or name
    selector = selectors.parse(wanted.to)
    everyone = [(row, devices.labels_of(row)) for row in devices.everyone(connection)]
    known = {"device", "profile"}.union(*(labels for _, labels in everyone))
    selectors.check_names(selector, known)
    present = orders.desired_of(connection)
    selected = [row for row, labels in everyone if selector.matches(labels)]
    choices = [
        fitting.choose(row, bundles, deployment, present.get((row.id, deployment))) for row in selected
    ]
    rollout_id = rollout_id or rollouts.next_id(connection)
    concerned = {
        choice.device.id for choice in choices if choice.bundle is not None or choice.reason == fitting.THERE
    }
    in_the_way = _conflict(connection, deployment, concerned, rollout_id)
    if in_the_way and not wanted.queue:
        raise ConflictError(
            f"{in_the_way}; let it finish, abort it or roll it back first, or wait with --queue"
        )
    if in_the_way:
        # What they are to run by now is not what they will run then.
        choices = [fitting.choose(row, bundles, deployment, None) for row in selected]
    eligible = [choice for choice in choices if choice.bundle is not None]
    ineligible = tuple(api.Ineligible(c.device.id, c.reason) for c in choices if c.bundle is None)
    if not eligible:
        raise NotPossibleError(_nobody(wanted.to, ineligible))
    held_count = stages.parse_holdback(wanted.holdback, len(eligible))
    spec = _spec(wanted, (name, version), deployment, eligible=len(eligible), held=held_count)
    label = f"r{rollout_id}"
    moment = rollouts.moment(now.steady)
    held = stages.choose_held(
        {c.device.id: c.bundle.profile for c in eligible if c.bundle}, label, held_count
    )
    chosen = {
        choice.device.id: fitting.member_of(
            choice, label, present.get((choice.device.id, deployment)), held, moment
        )
        for choice in eligible
    }
    rollout = Rollout(id=rollout_id, spec=spec, members=chosen, created_at=moment)
    _check_fetching(rollout, {c.bundle.sha256: c.bundle.length for c in eligible if c.bundle})
    seen, warnings = outlook.outlook(connection, rollout)
    told = _in_words(rollout, ineligible)
    notes = (*told.notes, *warnings)
    if in_the_way:
        rollout = msgspec.structs.replace(rollout, status=Status.QUEUED, reason=f"waits: {in_the_way}")
        notes = (f"it waits, and is planned afresh then: {in_the_way}", *notes)
    return rollout, msgspec.structs.replace(told, outlook=seen, notes=notes)


def _conflict(connection: Connection, deployment: str, chosen: set[str], rollout_id: int) -> str:
    """What has to end first: a rollout under way, or queued before this one, or an experiment; empty if there is none."""
    for (device, held), number in experiments.busy(connection, sorted(chosen)).items():
        if held == deployment:
            return (
                f"experiment {experiments.label(number)} has some of these devices ({device}…) until it is stopped, or one "
                "of its releases is adopted"
            )
    queued = (other for other in rollouts.queued(connection) if other.id < rollout_id)
    for other in (*rollouts.active(connection), *queued):
        if other.spec.deployment != deployment or other.id == rollout_id:
            continue
        shared = chosen & members.of(connection, other.id).keys()
        if shared:
            return (
                f"rollout {other.label} of {other.spec.name}@{other.spec.version} is {other.status} on "
                f"{len(shared)} of these devices ({', '.join(sorted(shared)[:3])}…)"
            )
    return ""


def _spec(
    wanted: api.NewRollout, release: tuple[str, str], deployment: str, *, eligible: int, held: int
) -> Spec:
    cut = stages.parse(wanted.stages, eligible)
    parsed = tuple(gates.parse(text) for text in wanted.gates)
    _check_gates(parsed, eligible, held)
    if held:
        cut = (*cut, Stage(share=1.0, words="the held-back devices", is_closing=True))
    deadline_s = duration(wanted.deadline, "deadline")
    return Spec(
        name=release[0],
        version=release[1],
        deployment=deployment,
        selector=wanted.to,
        stages=stages.with_approvals(cut, wanted.approve),
        gates=parsed,
        soak_s=duration(wanted.soak, "soak"),
        on_violation=wanted.on_violation,
        deadline_s=deadline_s,
        finish_by_s=duration(wanted.finish_by, "finish-by"),
        probation_s=duration(wanted.probation, "probation") if wanted.probation else None,
        pace=_pace(wanted, deadline_s),
    )


def _pace(wanted: api.NewRollout, deadline_s: float) -> Pace:
    spans = tuple(windows.parse(text) for text in wanted.windows)
    if windows.longest_s(spans) < deadline_s:
        raise NotPossibleError(
            f"windows: none is as long as a device may take ({show_duration(deadline_s)}), so that nobody would ever be "
            "told; use a longer window, or a shorter --deadline"
        )
    jitter_s = duration(wanted.jitter, "jitter") if wanted.jitter else 0.0
    if jitter_s > deadline_s / 2:
        raise NotPossibleError(
            f"jitter: {wanted.jitter} is more than half of the time that a device has ({wanted.deadline}); use a longer "
            "--deadline"
        )
    return Pace(
        rate=pace.parse_rate(wanted.rate) if wanted.rate else None,
        at_once=wanted.at_once or None,
        per_site=wanted.per_site or None,
        windows=spans,
        zone=windows.parse_zone(wanted.time_zone) if wanted.time_zone else pace.UTC,
        site_bytes_s=pace.parse_bandwidth(wanted.site_bandwidth) if wanted.site_bandwidth else None,
        jitter_s=jitter_s,
    )


def _check_fetching(rollout: Rollout, lengths: dict[str, int]) -> None:
    """Raises: NotPossibleError if devices could not fetch the release within their deadline."""
    spec = rollout.spec
    sites = Counter(member.site for member in rollout.members.values())
    for site, count in sites.most_common(1):
        bytes_s = pace.fetch_bytes_s(spec.pace, count)
        if bytes_s is None:
            continue
        needed_s = max(lengths.values()) / bytes_s + spec.pace.jitter_s
        if needed_s > spec.deadline_s / 2:
            raise NotPossibleError(
                f"site bandwidth: a device of site {site or '(none)'!r} would have {bytes_s / 1e6:.3g} MB/s, and fetch for "
                f"{show_duration(needed_s)}, of {show_duration(spec.deadline_s)} that it has in all; use --per-site, so "
                "that fewer share the line, or a longer --deadline"
            )


def _check_gates(parsed: tuple[Gate, ...], eligible: int, held: int) -> None:
    if len({(gate.metric, gate.reference, gate.at_least) for gate in parsed}) < len(parsed):
        raise NotPossibleError("gates: the same metric is limited twice; keep the stricter one")
    for gate in parsed:
        if gate.is_relative and held < statistics.SMALLEST_ARM:
            raise NotPossibleError(
                f"gate {gate.text!r} could never conclude: it needs at least {statistics.SMALLEST_ARM} devices held "
                f"back as control, and {held} of {eligible} are; use --holdback, or an absolute gate such as "
                "'error_rate < 1%' or 'latency_p95 <= 20ms'"
            )
        if gate.minimum_unit == "devices" and not gate.reference and gate.minimum > eligible:
            raise NotPossibleError(
                f"gate {gate.text!r} could never conclude: it needs {gate.minimum} devices, {eligible} are eligible"
            )
    if not any(gate.metric != "lost" and gate.reference != "before" for gate in parsed):
        raise NotPossibleError(
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
        *pace.words(spec.pace, spec.deadline_s),
        *_pace_notes(rollout),
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


def _pace_notes(rollout: Rollout) -> list[str]:
    """What the pace means for these devices."""
    spec, found = rollout.spec, []
    waits = [str(number) for number, stage in enumerate(spec.stages, 1) if stage.needs_approval]
    if waits:
        found.append(
            f"stage {', '.join(waits)} begins only after 'edgekit fleet rollout approve {rollout.label}'"
        )
    if spec.pace.rate is not None:
        least_s = len(rollout.members) / spec.pace.rate.count * spec.pace.rate.per_s
        found.append(f"at that rate it takes at least {show_duration(least_s)} until all are told")
        if least_s > spec.finish_by_s:
            found.append(
                f"that is longer than --finish-by ({show_duration(spec.finish_by_s)}): it would pause before"
            )
    if spec.pace.per_site is not None and (homeless := sum(not m.site for m in rollout.members.values())):
        found.append(f"{homeless} devices have no label {pace.SITE!r}, and count as one site")
    if spec.pace.windows and (zoneless := sum(not m.zone for m in rollout.members.values())):
        found.append(
            f"{zoneless} devices have no label {pace.ZONE!r} with a time zone; theirs is taken to be {spec.pace.zone}"
        )
    return found


def gate_words(parsed: tuple[Gate, ...]) -> tuple[str, ...]:
    return (
        *(gate.words for gate in judge.with_always(parsed)),
        "two install failures among the first five devices pause it",
    )
