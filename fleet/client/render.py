"""How answers look: JSON on stdout for machines, tables for people."""

import sys
from collections.abc import Iterable
from typing import Any

import click
import msgspec
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fleet import api

_COLOURS = {
    "completed": "green",
    "succeeded": "green",
    "satisfied": "green",
    "running": "cyan",
    "paused": "yellow",
    "inconclusive": "yellow",
    "waiting": "dim",
    "queued": "dim",
    "pending": "dim",
}
_MOVING = {"notified", "fetching", "staged", "probation", "rolling_back", "aborting"}


def show_json(value: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def show_json_line(value: Any) -> None:
    click.echo(msgspec.json.encode(value).decode())


# Wide enough for any line: what goes into a pipe is neither wrapped nor cut.
_UNLIMITED = 100_000


def show(renderable: RenderableType) -> None:
    Console(width=None if sys.stdout.isatty() else _UNLIMITED).print(renderable, highlight=False)


def coloured(state: str) -> str:
    colour = _COLOURS.get(state, "cyan" if state in _MOVING else "red")
    return f"[{colour}]{escape(state)}[/{colour}]"


def devices(found: Iterable[api.DeviceView]) -> Table:
    made = table("device", "profile", "", "deployment", "should run", "runs", "state", "labels")
    for device in found:
        where = "not enrolled" if not device.enrolled else "online" if device.online else "offline"
        if device.former_seen:
            where += ", an older board comes too"
        labels = ", ".join(f"{k}={v}" for k, v in device.labels.items() if k not in ("device", "profile"))
        first = True
        for name, deployment in device.deployments.items() or {"": api.DeploymentView()}.items():
            state = deployment.state + (f" ({deployment.reason})" if deployment.reason else "")
            made.add_row(
                *((device.device, device.profile, where) if first else ("", "", "")),
                name,
                deployment.should_run,
                deployment.runs,
                escape(state),
                labels if first else "",
            )
            first = False
    return made


def releases(found: Iterable[api.ReleaseView]) -> Table:
    made = table("release", "profile", "role", "engine", "size", "sha256", "evidence", "published")
    for column in made.columns[:3]:
        column.no_wrap, column.overflow, column.min_width = True, "fold", 12
    for release in found:
        for bundle in (*release.bundles, *release.alternates):
            made.add_row(
                f"{release.name}@{release.version}",
                bundle.profile,
                f"alternate {bundle.alternate}" if bundle.alternate else "picked",
                bundle.engine,
                f"{bundle.length / 1e6:.2f} MB",
                bundle.sha256[:12],
                "yes" if bundle.has_evidence else "no",
                f"{bundle.published:%Y-%m-%d %H:%M}",
            )
    return made


def plan(found: api.Plan) -> Group:
    """What a rollout would do, before the button."""
    total = sum(len(names) for names in found.eligible.values())
    lines = [
        f"[bold]{found.release}[/bold] to deployment {found.deployment}",
        f"[bold]eligible[/bold] {total}",
    ]
    for profile, names in found.eligible.items():
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        lines.append(f"  {profile}: {len(names)} ({escape(shown)})")
    lines += _ineligible(found.ineligible, "not eligible")
    lines.append(f"[bold]stages[/bold] {' → '.join(found.stages)}")
    lines.append("[bold]gates[/bold]")
    lines += [f"  {escape(words)}" for words in found.gates]
    for stage in found.outlook:
        beside = f", {stage.control} beside them" if stage.control else ", none beside them"
        lines.append(f"[bold]in the stage {escape(stage.stage)}[/bold] {stage.devices} devices{beside}")
        lines += [f"  {escape(words)}" for words in stage.sees]
    lines += [f"[dim]{escape(note)}[/dim]" for note in found.notes]
    return Group(*(Text.from_markup(line) for line in lines))


def assigned(found: api.Assigned) -> Group:
    """What an assignment does."""
    total = sum(len(names) for names in found.moves.values())
    lines = [
        f"[bold]{found.release}[/bold] to deployment {found.deployment}, at once",
        f"[bold]move[/bold] {total}",
    ]
    for profile, names in found.moves.items():
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        lines.append(f"  {profile}: {len(names)} ({escape(shown)})")
    lines.append(f"[bold]are to run it already[/bold] {len(found.there)}")
    lines += _ineligible(found.others, "do not follow now")
    return Group(*(Text.from_markup(line) for line in lines))


def _ineligible(found: Iterable[api.Ineligible], title: str) -> list[str]:
    """Who and why, the most common reason first."""
    reasons: dict[str, list[str]] = {}
    for item in found:
        reasons.setdefault(item.reason, []).append(item.device)
    count = sum(len(those) for those in reasons.values())
    lines = [f"[bold]{title}[/bold] {count}"] if count else []
    for reason, those in sorted(reasons.items(), key=lambda entry: -len(entry[1])):
        lines.append(f"  {escape(reason)}: {len(those)} ({escape(', '.join(those[:4]))})")
    return lines


def assignments(found: Iterable[api.AssignmentView]) -> Table:
    made = table("id", "release", "deployment", "to", "because", "since")
    for one in found:
        since = f"{one.at:%Y-%m-%d %H:%M}"
        made.add_row(one.id, one.release, one.deployment, escape(one.to), one.because, since)
    return made


def rollouts(found: Iterable[api.RolloutView]) -> Table:
    made = table("id", "release", "to", "status", "stage", "devices", "reason")
    for rollout in found:
        made.add_row(
            rollout.id,
            rollout.release,
            escape(rollout.to),
            coloured(rollout.status),
            f"{rollout.stage} of {len(rollout.stages)}",
            counts(rollout),
            escape(rollout.reason),
        )
    return made


def counts(rollout: api.RolloutView) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(rollout.counts.items()))


def rollout(found: api.RolloutView, *, most: int = 20) -> Group:
    """One rollout in full; at most `most` devices are listed."""
    head = f"[bold]{found.id}[/bold] {found.release} to {escape(found.to)}: {coloured(found.status)}"
    stage = f"stage {found.stage} of {len(found.stages)} ({found.stages[max(0, found.stage - 1)]})"
    soak = f", soak ends {found.soak_ends:%H:%M:%S} UTC" if found.soak_ends else ""
    gates = table("gate", "verdict", "")
    for gate in found.gates:
        gates.add_row(escape(gate.gate), coloured(gate.outcome), escape(gate.words))
    members = table("device", "profile", "stage", "state", "before", "reason")
    for member in found.members[:most]:
        stage_text = str(member.stage) if member.stage is not None else ""
        members.add_row(
            member.device,
            member.profile,
            stage_text,
            coloured(member.state),
            member.previous,
            escape(member.reason),
        )
    parts: list[RenderableType] = [Text.from_markup(head), Text.from_markup(stage + soak)]
    if found.waiting:
        parts.append(Text(f"{found.waiting} devices of this stage wait for their turn"))
    if found.held_profiles:
        parts.append(Text(f"held: {', '.join(found.held_profiles)}"))
    if found.reason:
        parts.append(Text.from_markup(f"[bold]why[/bold] {escape(found.reason)}"))
    if found.gates:
        parts.append(gates)
    parts.append(members)
    shown = min(most, len(found.members))
    if (left := sum(found.counts.values()) - shown) > 0:
        parts.append(Text(f"and {left} more devices: {counts(found)}"))
    return Group(*parts)


def line(found: api.RolloutView) -> str:
    """One line for a log."""
    why = f" · {found.reason}" if found.reason else ""
    return f"{found.id} {found.status}, stage {found.stage} of {len(found.stages)}: {counts(found)}{why}"


def table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column)
    return table
