"""How commands, and what devices have to show of them, look to people."""

from collections.abc import Sequence

from rich.console import RenderableType

from edgekit.wire.commands import Cleared, Measured, Payload, SelfTested, Tested
from fleet import api
from fleet.client.device_views import ago
from fleet.client.render import coloured
from fleet.client.sheet import Cell, Column, Sheet


def listed(found: Sequence[api.CommandView]) -> RenderableType:
    """A row for each command."""
    made = Sheet([*map(Column, ("id", "asked", "by", "what", "state")), Column("reason", is_prose=True)])
    for one in found:
        made.add(one.id, ago(one.created), one.created_by, one.kind, coloured(one.state), one.reason)
    return made


def figures(payload: Payload) -> RenderableType:
    """What there is to show of one."""
    if isinstance(payload, Cleared):
        return _cleared(payload)
    return _tests(payload.tests) if isinstance(payload, SelfTested) else measured(payload)


def _cleared(payload: Cleared) -> RenderableType:
    made = Sheet([Column("bundle"), Column("was refused because", is_prose=True)])
    for digest, why in payload.digests.items():
        made.add(digest[:12], why)
    return made


def _tests(tests: Sequence[Tested]) -> RenderableType:
    made = Sheet(
        [
            *map(Column, ("deployment", "bundle", "self-test")),
            *(Column(title, is_right=True) for title in ("agreement", "p50", "p95")),
            Column("reason", is_prose=True, is_optional=True),
        ]
    )
    for one in tests:
        made.add(
            one.deployment, one.sha256[:12], _passed(one), f"{one.agreement:.1%}", _ms(one.latency_p50_ms),
            _ms(one.latency_p95_ms), one.reason,
        )  # fmt: skip
    return made


def measured(payload: Measured) -> RenderableType:
    """A row for each bundle; its interval is of the median."""
    made = Sheet(
        [
            *map(Column, ("bundle", "engine", "self-test")),
            *(Column(title, is_right=True) for title in ("p50", "95 % interval", "p95", "memory")),
            Column("", is_optional=True),
            Column("reason", is_prose=True, is_optional=True),
        ]
    )
    for one in payload.bundles:
        is_timed = bool(one.rounds_ms)
        made.add(
            one.test.sha256[:12],
            f"{one.engine} {one.engine_version}, {one.threads} threads",
            _passed(one.test),
            _ms(one.p50_ms) if is_timed else "",
            f"{one.p50_low_ms:.3g} to {one.p50_high_ms:.3g}" if is_timed else "",
            _ms(one.p95_ms) if is_timed else "",
            f"{one.memory_mb:.0f} MB" if one.memory_mb else "",
            "serves" if one.serves else "",
            one.test.reason,
        )
    return made


def _passed(one: Tested) -> Cell:
    return "passed" if one.passed else "failed"


def _ms(value: float) -> str:
    return f"{value:.3g} ms"
