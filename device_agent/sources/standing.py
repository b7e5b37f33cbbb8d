"""How sources stand, for `edgekit agent status` and as conditions. Pure."""

from collections.abc import Iterable
from typing import Literal

import msgspec

from device_agent.channel import SourceTold

State = Literal["starting", "running", "failing", "over"]
CODES = ("source-failing", "source-waiting", "sink-failing")
# A model that is being replaced, or a sink that is away for a moment, is nobody's business.
WAITS_S = 60.0


class SourceStatus(msgspec.Struct, frozen=True):
    """One source. `did` counts since the agent started; `why` is what ended its process the last time, while it fails.

    `waits_s` is for how long it has been waiting for what `did.waits` says.
    """

    name: str
    kind: str
    deployment: str
    state: State = "starting"
    did: SourceTold = SourceTold()
    why: str = ""
    starts: int = 0
    waits_s: float = 0.0


def total(before: SourceTold, now: SourceTold) -> SourceTold:
    """What processes did one after the other; all but the counts are the newest's."""
    counts = {
        name: getattr(before, name) + getattr(now, name)
        for name in ("read", "answered", "refused", "dropped", "delivered")
    }
    return msgspec.structs.replace(now, **counts)


def conditions_of(sources: Iterable[SourceStatus]) -> dict[str, str]:
    """Code → detail of what is wrong with sources and their sinks."""
    found: dict[str, list[str]] = {code: [] for code in CODES}
    for one in sources:
        if one.state == "failing":
            found["source-failing"].append(f"{one.name}: {one.why}")
        if one.did.waits and one.waits_s >= WAITS_S:
            found["source-waiting"].append(f"{one.name}: {one.did.waits}")
        found["sink-failing"] += [f"{sink} (of {one.name}): {why}" for sink, why in one.did.sinks.items()]
    return {code: "; ".join(details) for code, details in found.items() if details}


def render(sources: Iterable[SourceStatus], *, is_running: bool) -> list[str]:
    """A few lines for a person."""
    lines: list[str] = []
    for one in sources:
        did = one.did
        goes = f" to {one.deployment}" if one.deployment else ""
        state = one.state if is_running else "not running"
        lines += [
            "",
            f"source {one.name} ({one.kind}){goes}: {state}",
            f"  inputs   {did.read} read, {did.answered} answered, {did.refused} refused, {did.dropped} dropped",
            f"  answers  {did.delivered} delivered, {did.waiting} waiting",
        ]
        if one.starts > 1:
            lines.append(f"  starts   {one.starts}")
        if is_running:
            told = (
                ("why", one.why),
                ("waits", did.waits),
                *((f"sink {sink}", why) for sink, why in did.sinks.items()),
            )
            lines += [f"  {title:8} {why}" for title, why in told if why]
    return lines
