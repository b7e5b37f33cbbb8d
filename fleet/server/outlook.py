"""What a planned rollout's stages will see: the rules' foresight, fed with what its devices reported so far."""

from statistics import median

from sqlalchemy import Connection, select

from edgekit.errors import NotPossibleError
from fleet import api
from fleet.rules import foresight, stages
from fleet.rules.evidence import USUAL_WINDOW_S
from fleet.rules.foresight import Cut, Sight, Usual
from fleet.rules.rollout import Rollout
from fleet.rules.text import show_duration
from fleet.server.schema import devices, totals

# Fewer windows say nothing of what is usual; so many devices are enough to know it.
_ENOUGH_WINDOWS = 5
_MOST_DEVICES = 5000


def outlook(connection: Connection, rollout: Rollout) -> tuple[tuple[api.StageOutlook, ...], tuple[str, ...]]:
    """Every stage with its devices and what its gates see, and notes. Raises: NotPossibleError for a gate that is hopeless."""
    usual = _usual(connection, rollout)
    cuts = _cuts(rollout)
    seen = foresight.foresee(rollout.spec.gates, cuts, usual, rollout.spec.soak_s)
    if told := foresight.hopeless(cuts, seen, usual):
        raise NotPossibleError(told)
    shown = tuple(
        api.StageOutlook(cut.words, cut.canaries, cut.controls, tuple(sight.words for sight in sights))
        for cut, sights in zip(cuts, seen, strict=True)
    )
    return shown, tuple(_notes(cuts, seen, usual))


def _notes(cuts: list[Cut], seen: tuple[tuple[Sight, ...], ...], usual: Usual) -> list[str]:
    notes = []
    if usual.requests is None:
        notes.append(
            f"nothing is known of these devices' traffic; {usual.assumed:g} requests per "
            f"{show_duration(usual.window_s)} are assumed"
        )
    for cut, sights in zip(cuts, seen, strict=True):
        notes += [
            f"{sight.gate.text}: in the stage {cut.words!r} even a harmless release passes only {sight.passes:.0%} of "
            f"the time{sight.needs}"
            for sight in sights
            if sight.passes < foresight.LIKELY
        ]
    return notes


def _cuts(rollout: Rollout) -> list[Cut]:
    """The devices that each stage will have moved, and those that it can be compared with."""
    free: dict[str, int] = {}
    for member in rollout.members.values():
        if not member.is_held:
            free[member.profile] = free.get(member.profile, 0) + 1
    can_compare = sum(1 for member in rollout.members.values() if member.previous is not None)
    cuts = []
    for stage in rollout.spec.stages:
        moved = len(rollout.members) if stage.is_closing else stages.moved_by(stage, free)
        cuts.append(Cut(stage.words, moved, max(0, can_compare - moved), stage.is_closing))
    return cuts


def _usual(connection: Connection, rollout: Rollout) -> Usual:
    """By the middle device, on what it runs now: one that claims a million requests changes nothing."""
    previous = {m.device: m.previous for m in rollout.members.values() if m.previous is not None}
    query = (
        select(
            totals.c.device,
            totals.c.digest,
            totals.c.windows,
            totals.c.requests,
            totals.c.errors,
            devices.c.window_s,
        )
        .join(devices, devices.c.id == totals.c.device)
        .where(totals.c.deployment == rollout.spec.deployment, totals.c.windows >= _ENOUGH_WINDOWS)
        .limit(_MOST_DEVICES)
    )
    rows = [row for row in connection.execute(query) if previous.get(row.device) == row.digest]
    if not rows:
        return Usual()
    rates = [row.errors / row.requests for row in rows if row.requests]
    return Usual(
        window_s=median(row.window_s or USUAL_WINDOW_S for row in rows),
        requests=median(row.requests / row.windows for row in rows),
        error_rate=sum(sorted(rates)[: max(1, len(rates) * 19 // 20)]) / max(1, len(rates))
        if rates
        else 0.005,
    )
