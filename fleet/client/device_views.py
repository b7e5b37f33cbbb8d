"""How devices look to people: a row for each deployment, or everything about one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.text import Text

from edgekit.errors import UsageError
from fleet import api
from fleet.client.render import coloured, words
from fleet.client.sheet import Cell, Column, Sheet, cell, pairs
from fleet.client.spans import span

Device = api.DeviceView
Deployment = api.DeploymentView
_LABEL = "label."


@dataclass(frozen=True)
class _Of:
    """A column of `edgekit fleet devices`: of the device, or of each of its deployments."""

    column: Column
    of_device: Callable[[Device], Cell] | None = None
    of_deployment: Callable[[str, Deployment], Cell] | None = None


def _device(
    title: str, value: Callable[[Device], Cell], *, is_prose: bool = False, is_optional: bool = False
) -> _Of:
    return _Of(Column(title, is_prose, is_optional=is_optional, is_shared=True), of_device=value)


def _deployment(
    title: str, value: Callable[[str, Deployment], Cell], *, is_prose: bool = False, is_right: bool = False,
    is_optional: bool = False,
) -> _Of:  # fmt: skip
    return _Of(Column(title, is_prose, is_right, is_optional), of_deployment=value)


def presence(one: Device) -> Text:
    where = "not enrolled" if not one.enrolled else "online" if one.online else "offline"
    made = coloured(where)
    if one.is_duplicate:
        made += words((", two machines speak under its name", "red"))
    if one.former_seen:
        made += words((", an older board comes too", "yellow"))
    return made


def ago(moment: datetime | None) -> str:
    return f"{span((datetime.now(UTC) - moment).total_seconds())} ago" if moment else "never"


def milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3g} ms"


def traffic(one: api.TrafficView) -> str:
    """Megabytes of one purpose."""
    return (
        f"{one.month_sent / 1e6:.2f} MB sent, {one.month_received / 1e6:.2f} MB received this month;"
        f" {one.sent / 1e6:.2f} and {one.received / 1e6:.2f} MB in all"
    )


def labels(found: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in found.items() if key not in ("device", "profile"))


def conditions(one: Device) -> Cell:
    return cell("; ".join(f"{each.code}: {each.detail}" for each in one.conditions), "yellow")


COLUMNS: Mapping[str, _Of] = {
    "device": _device("device", lambda one: one.device),
    "profile": _device("profile", lambda one: one.profile),
    "online": _device("connection", presence),
    "last_seen": _device("last seen", lambda one: ago(one.last_seen)),
    "deployment": _deployment("deployment", lambda name, _: name),
    "wanted": _deployment("should run", lambda _, one: one.should_run),
    "release": _deployment("runs", lambda _, one: one.runs),
    "state": _deployment("state", lambda _, one: coloured(one.state)),
    "reason": _deployment("reason", lambda _, one: one.reason, is_prose=True, is_optional=True),
    "because": _deployment("ordered by", lambda _, one: one.because),
    "wanted_digest": _deployment("should run (sha256)", lambda _, one: one.should_digest),
    "digest": _deployment("runs (sha256)", lambda _, one: one.runs_digest),
    "requests": _deployment("requests", lambda _, one: str(one.telemetry.requests), is_right=True),
    "errors": _deployment("errors", lambda _, one: str(one.telemetry.errors), is_right=True),
    "p50": _deployment("p50", lambda _, one: milliseconds(one.telemetry.infer_ms_p50), is_right=True),
    "p95": _deployment("p95", lambda _, one: milliseconds(one.telemetry.infer_ms_p95), is_right=True),
    "refused": _device("refused", lambda one: one.refused, is_prose=True, is_optional=True),
    "conditions": _device("conditions", conditions, is_prose=True, is_optional=True),
    "agent": _device("agent", lambda one: one.agent_version),
    "order": _device("order", lambda one: f"{one.reported_counter} of {one.order_counter}"),
    "labels": _device("labels", lambda one: labels(one.labels), is_prose=True),
}
USUAL = (
    "device", "profile", "online", "deployment", "wanted", "release", "state", "reason", "refused", "conditions", "labels",
)  # fmt: skip


def devices(found: Sequence[Device], names: Sequence[str] = USUAL) -> Sheet:
    """A row for each device, or where a column is about deployments, for each of these.

    Raises: UsageError for a column that there is not.
    """
    shown = [COLUMNS[name] if name in COLUMNS else _of_label(name, found) for name in names]
    made = Sheet([one.column for one in shown])
    by_deployment = any(one.of_deployment for one in shown)
    for device in found:
        rows = (device.deployments if by_deployment else {}) or {"": Deployment()}
        for name, deployment in rows.items():
            made.add(*(_cell(one, device, name, deployment) for one in shown))
    return made


def _cell(of: _Of, device: Device, name: str, deployment: Deployment) -> Cell:
    if of.of_device is not None:
        return of.of_device(device)
    return of.of_deployment(name, deployment) if of.of_deployment is not None and name else ""


def _of_label(name: str, found: Sequence[Device]) -> _Of:
    label = name.removeprefix(_LABEL)
    if found and not any(label in one.labels for one in found):
        raise UsageError(
            f"--columns: {name!r} is neither a column nor a label of these devices; columns are {', '.join(COLUMNS)}"
        )
    return _device(label, lambda one: one.labels.get(label, ""))


def device(one: Device) -> Group:
    """Everything about one device; what is empty is left out."""
    rows: list[tuple[str, Cell]] = [
        ("profile", one.profile or "none yet"),
        ("connection", presence(one)),
        ("last seen", ago(one.last_seen) + (f" ({one.last_seen:%Y-%m-%d %H:%M:%S} UTC)" if one.last_seen else "")),
        ("labels", labels(one.labels)),
        ("agent", one.agent_version),
        ("order", f"{one.reported_counter} accepted of {one.order_counter}"),
        ("refused", cell(one.refused, "red")),
        *((f"condition {each.code}", cell(f"{each.detail} (since {each.since:%Y-%m-%d %H:%M} by its clock)", "yellow"))
          for each in one.conditions),
        *((f"link: {purpose}", traffic(each)) for purpose, each in one.traffic.items()),
    ]  # fmt: skip
    parts: list[RenderableType] = [words((one.device, "bold")), _filled(rows)]
    for name, deployment in one.deployments.items():
        parts += [
            Text(),
            words(("deployment ", "dim"), (name, "bold")),
            _filled(_deployment_rows(deployment)),
        ]
    return Group(*parts)


def _deployment_rows(one: Deployment) -> list[tuple[str, Cell]]:
    told = one.telemetry
    served = f"{told.requests} requests, {told.errors} errors" if told.windows else ""
    if told.guarded:
        served += f", {told.guarded} unfamiliar"
    if told.infer_ms_p95 is not None:
        served += f", p50 {milliseconds(told.infer_ms_p50)}, p95 {milliseconds(told.infer_ms_p95)}"
    because = f" ({one.because})" if one.because else ""
    return [
        ("should run", f"{one.should_run}{because}" if one.should_run else "nothing is ordered"),
        ("", one.should_digest),
        ("runs", one.runs or "no model"),
        ("", one.runs_digest if one.runs_digest != one.should_digest else ""),
        ("state", coloured(one.state)),
        ("reason", cell(one.reason, "yellow")),
        ("served", served),
    ]


def _filled(rows: Sequence[tuple[str, Cell]]) -> RenderableType:
    return pairs([(name, value) for name, value in rows if str(value)])
