"""How a rollout that is watched looks: its track, what it waits for, canary against control."""

from collections.abc import Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.text import Text

from fleet import api
from fleet.api.history import ArmPoint
from fleet.client import views, watching
from fleet.client.render import coloured, words
from fleet.client.sheet import Column, Sheet, cell
from fleet.client.watching import AT_REST, MOVING, Look

_BAR = 40
_BLOCKS = "▁▂▃▄▅▆▇█"
_SPARKS = 24
_MOST_MEMBERS = 8


def screen(look: Look, now: datetime) -> Group:
    """All of it, for a terminal that is drawn anew."""
    found = look.rollout
    parts: list[RenderableType] = [
        words((found.id, "bold"), f" {found.release} to {found.to}: ")
        + coloured(found.status)
        + words(f", {watching.elapsed(found, now)}"),
        track(found),
        bar(found.counts),
    ]
    if look.away_since is not None:
        since = f"{look.away_since:%H:%M:%S} UTC"
        parts.append(words((f"the fleet cannot be reached; this is as of {since}, trying again", "yellow")))
    if found.reason and found.status not in ("paused", "queued"):
        parts.append(words(("why", "bold"), f" {found.reason}"))
    # The gates say below in their own words what they wait for.
    open_gates = (
        [gate.gate for gate in found.gates if gate.outcome != "satisfied"]
        if found.status == "running"
        else []
    )
    told = [line for line in watching.waits(found, now) if not line.startswith("gate ")]
    told += (
        [f"for {len(open_gates)} of {len(found.gates)} gates: {', '.join(open_gates)}"] if open_gates else []
    )
    parts += [words(("waits ", "dim"), line.removeprefix("waits ")) for line in told]
    if found.gates:
        parts += [Text(), views.gates(found.gates)]
    if look.arms:
        parts += [Text(), arms(look.arms)]
    if moving := [member for member in found.members if member.state not in ("pending", "succeeded")]:
        moving.sort(key=lambda member: member.state in AT_REST)
        parts += [Text(), views.members(moving[:_MOST_MEMBERS])]
    return Group(*parts)


def track(found: api.RolloutView) -> Text:
    """The stages: done, open, to come, as words and signs."""
    made = Text()
    is_done = found.status == "completed"
    for number, stage in enumerate(found.stages, 1):
        if number > 1:
            made += words((" → ", "dim"))
        if number < found.stage or is_done:
            made += words((f"✓ {stage}", "green"))
        elif number == found.stage:
            made += words((f"▶ {stage}", "bold"))
        else:
            made += words((stage, "dim"))
    return made


def bar(counts: dict[str, int]) -> Text:
    """All devices as one line, and the same in words."""
    done, pending = counts.get("succeeded", 0), counts.get("pending", 0)
    moving = sum(counts.get(state, 0) for state in MOVING)
    bad = sum(counts.values()) - done - moving - pending
    made = Text()
    shares = (done, moving, bad, pending)
    for width, sign, style in zip(_widths(shares), "█▓!░", ("green", "cyan", "red", "dim"), strict=True):
        made.append(sign * width, style)
    return made + words(f" {views.counts(counts)}")


def _widths(counts: Sequence[int]) -> list[int]:
    """Parts of the bar. Whoever is there is seen, however few they are: the largest part gives way."""
    total = max(1, sum(counts))
    widths = [max(1, round(_BAR * count / total)) if count > 0 else 0 for count in counts]
    if any(widths):
        widths[widths.index(max(widths))] += _BAR - sum(widths)
    return widths


def arms(points: Sequence[ArmPoint]) -> Sheet:
    """Canary and control: the newest interval in figures, those before as a line, both on one scale."""
    made = Sheet((
        Column("arm"), Column("errors", is_prose=True), Column("over time"), Column("p95", is_prose=True), Column("over time"),
    ))  # fmt: skip
    ordered = sorted(points, key=lambda point: point.at)
    top_share = max((point.error_share for point in ordered), default=0.0)
    top_ms = max((point.p95_ms or 0.0 for point in ordered), default=0.0)
    for arm, style in (("canary", "cyan"), ("control", "")):
        own = [point for point in ordered if point.arm == arm][-_SPARKS:]
        if own:
            made.add(
                cell(arm, style),
                watching.errors(own[-1]).removeprefix("errors "),
                sparks([point.error_share for point in own], top_share),
                watching.p95(own[-1]).removeprefix("p95 "),
                sparks([point.p95_ms for point in own], top_ms),
            )
    return made


def sparks(values: Sequence[float | None], top: float) -> str:
    """One block for each value, of eight heights from 0 to `top`; a blank where there is none."""
    steps = len(_BLOCKS) - 1
    return "".join(
        " " if value is None else _BLOCKS[round(steps * min(1.0, value / top)) if top > 0 else 0]
        for value in values
    )


def line(look: Look, now: datetime) -> str:
    """One line for a log: when, how long, where it stands, what it waits for, and how the arms compare."""
    found = look.rollout
    head = f"{now:%H:%M:%S} UTC, {watching.elapsed(found, now)}: {substance(look, now)}"
    undecided = [
        f"gate {gate.gate}: {gate.outcome}" for gate in found.gates if gate.outcome == "inconclusive"
    ]
    return " · ".join([head, *undecided, *watching.arm_lines(look.arms)])


def substance(look: Look, now: datetime) -> str:
    """What makes a line worth its place when it changes: no time, and no verdict that comes and goes with each report."""
    if look.away_since is not None:
        return f"the fleet cannot be reached; what was said holds for {look.away_since:%H:%M:%S} UTC"
    found = look.rollout
    calm = [told for told in watching.waits(found, now, is_live=False) if not told.startswith("gate ")]
    told = views.line(found)
    return " · ".join([told, *(word for word in calm if word not in told)])
