"""How releases, assignments and rollouts look to people."""

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.text import Text

from fleet import api
from fleet.client.render import coloured, words
from fleet.client.sheet import Column, Sheet

_MOST_NAMES = 8


def releases(found: Iterable[api.ReleaseView]) -> Sheet:
    titles = ("release", "profile", "role", "engine")
    made = Sheet(
        (
            *map(Column, titles),
            Column("size", is_right=True),
            Column("evidence"),
            Column("published"),
            Column("sha256"),
        )
    )
    for release in found:
        for bundle in (*release.bundles, *release.alternates):
            made.add(
                f"{release.name}@{release.version}",
                bundle.profile,
                f"alternate {bundle.alternate}" if bundle.alternate else "picked",
                bundle.engine,
                f"{bundle.length / 1e6:.2f} MB",
                "yes" if bundle.has_evidence else "no",
                f"{bundle.published:%Y-%m-%d %H:%M}",
                bundle.sha256,
            )
    return made


def plan(found: api.Plan) -> Group:
    """What a rollout would do, before the button."""
    total = sum(len(names) for names in found.eligible.values())
    lines = [
        words((found.release, "bold"), f" to deployment {found.deployment}"),
        words(("eligible", "bold"), f" {total}"),
        *_by_profile(found.eligible),
        *_ineligible(found.ineligible, "not eligible"),
        words(("stages", "bold"), f" {' → '.join(found.stages)}"),
        words(("gates", "bold")),
        *(words(f"  {gate}") for gate in found.gates),
    ]
    for stage in found.outlook:
        beside = f", {stage.control} beside them" if stage.control else ", none beside them"
        lines.append(words((f"in the stage {stage.stage}", "bold"), f" {stage.devices} devices{beside}"))
        lines += [words(f"  {sees}") for sees in stage.sees]
    return Group(*lines, *(words((note, "dim")) for note in found.notes))


def assigned(found: api.Assigned) -> Group:
    """What an assignment does."""
    total = sum(len(names) for names in found.moves.values())
    return Group(
        words((found.release, "bold"), f" to deployment {found.deployment}, at once"),
        words(("move", "bold"), f" {total}"),
        *_by_profile(found.moves),
        words(("are to run it already", "bold"), f" {len(found.there)}"),
        *_ineligible(found.others, "do not follow now"),
    )


def _by_profile(found: dict[str, tuple[str, ...]]) -> Iterable[Text]:
    for profile, names in found.items():
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        yield words(f"  {profile}: {len(names)} ({', '.join(names[:_MOST_NAMES])}{more})")


def _ineligible(found: Iterable[api.Ineligible], title: str) -> list[Text]:
    """Who and why, the most common reason first."""
    reasons: dict[str, list[str]] = {}
    for item in found:
        reasons.setdefault(item.reason, []).append(item.device)
    count = sum(len(those) for those in reasons.values())
    lines = [words((title, "bold"), f" {count}")] if count else []
    for reason, those in sorted(reasons.items(), key=lambda entry: -len(entry[1])):
        lines.append(words(f"  {reason}: {len(those)} ({', '.join(those[:4])})"))
    return lines


def assignments(found: Iterable[api.AssignmentView]) -> Sheet:
    titles = ("id", "release", "deployment")
    made = Sheet((*map(Column, titles), Column("to", is_prose=True), Column("because"), Column("since")))
    for one in found:
        made.add(one.id, one.release, one.deployment, one.to, one.because, f"{one.at:%Y-%m-%d %H:%M}")
    return made


def rollouts(found: Iterable[api.RolloutView]) -> Sheet:
    prose = ("to", "devices", "reason")
    titles = ("id", "release", "status", "stage", "started", *prose)
    made = Sheet([Column(title, is_prose=title in prose, is_optional=title == "reason") for title in titles])
    for rollout in found:
        made.add(
            rollout.id,
            rollout.release,
            coloured(rollout.status),
            f"{rollout.stage} of {len(rollout.stages)}",
            f"{rollout.created:%Y-%m-%d %H:%M}",
            rollout.to,
            counts(rollout.counts),
            rollout.reason,
        )
    return made


def counts(found: dict[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(found.items()))


def rollout(found: api.RolloutView, *, most: int = 20) -> Group:
    """One rollout in full; at most `most` devices are listed."""
    size = f" ({found.stages[found.stage - 1]})" if 0 < found.stage <= len(found.stages) else ""
    stage = f"stage {found.stage} of {len(found.stages)}{size}"
    soak = f", soak ends {found.soak_ends:%H:%M:%S} UTC" if found.soak_ends else ""
    parts: list[RenderableType] = [
        words((found.id, "bold"), f" {found.release} to {found.to}: ") + coloured(found.status),
        words(stage + soak),
    ]
    if found.waiting:
        parts.append(words(f"{found.waiting} devices of this stage wait for their turn"))
    if found.held_profiles:
        parts.append(words(f"held: {', '.join(found.held_profiles)}"))
    if found.reason:
        parts.append(words(("why", "bold"), f" {found.reason}"))
    if found.gates:
        parts.append(gates(found.gates))
    parts.append(members(found.members[:most]))
    shown = min(most, len(found.members))
    if (left := sum(found.counts.values()) - shown) > 0:
        parts.append(words(f"and {left} more devices: {counts(found.counts)}"))
    return Group(*parts)


def gates(found: Iterable[api.GateView]) -> Sheet:
    made = Sheet((Column("gate"), Column("verdict"), Column("", is_prose=True)))
    for gate in found:
        made.add(gate.gate, coloured(gate.outcome), gate.words)
    return made


def members(found: Iterable[api.MemberView]) -> Sheet:
    titles = ("device", "profile", "stage", "state", "before", "reason")
    made = Sheet(
        [Column(title, is_prose=title == "reason", is_optional=title == "reason") for title in titles]
    )
    for one in found:
        stage = str(one.stage) if one.stage is not None else ""
        made.add(one.device, one.profile, stage, coloured(one.state), one.previous, one.reason)
    return made


def line(found: api.RolloutView) -> str:
    """One line for a log."""
    why = f" · {found.reason}" if found.reason else ""
    return (
        f"{found.id} {found.status}, stage {found.stage} of {len(found.stages)}: {counts(found.counts)}{why}"
    )
