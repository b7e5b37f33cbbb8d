"""Devices: inviting, enrolling, listing, explaining."""

from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from fastapi import APIRouter, Depends, Response
from sqlalchemy import Connection, Row

from edgekit.sketch import Sketch, merge
from edgekit.wire.enrolment import FORMAT, EnrolmentFile, EnrolRequest
from fleet import api
from fleet.server.api.context import Actor, Ctx, answer, body
from fleet.server.store import devices, orders, releases, rollouts, settings, telemetry
from fleet.server.store.devices import DeviceRow
from fleet.server.store.orders import DesiredRow

Wanted = dict[tuple[str, str], DesiredRow]
Seen = dict[tuple[str, str, str], Row[Any]]

router = APIRouter(tags=["devices"])
device_router = APIRouter(tags=["enrolment"])


@router.post("/devices")
def invite(
    ctx: Ctx, actor: Actor, wanted: Annotated[api.NewDevice, Depends(body(api.NewDevice))]
) -> Response:
    with ctx.database.begin() as connection:
        token = devices.invite(
            connection, wanted.device, wanted.labels, wanted.deployments, now=ctx.clock(), actor=actor
        )
        publisher_keys = settings.publisher_keys(connection)
    return answer(
        EnrolmentFile(
            format=FORMAT,
            fleet=ctx.issuer.fleet,
            device=wanted.device,
            token=token,
            enrol_url=f"{ctx.url}/enrol",
            artifact_url=f"{ctx.url}/artifacts",
            allowed_hosts=(urlsplit(ctx.url).netloc,),
            broker=ctx.broker,
            order_keys={ctx.keys.order.keyid: ctx.keys.order.public_hex},
            publisher_keys=publisher_keys,
            deployments=wanted.deployments,
            labels=wanted.labels,
            tuf_root=ctx.tuf.root(),
            metadata_url=f"{ctx.url}/tuf",
        ),
        201,
    )


@device_router.post("/enrol")
def enrol(ctx: Ctx, request: Annotated[EnrolRequest, Depends(body(EnrolRequest))]) -> Response:
    now = ctx.clock()
    with ctx.database.begin() as connection:
        given = devices.enrol(connection, request, now)
        if orders.desired_of(connection, request.device):
            # A re-flashed card: its orders must name the new enrolment.
            orders.issue(connection, ctx.issuer, request.device, now)
    ctx.wake()
    return answer(given)


@router.get("/devices")
def listing(ctx: Ctx, _actor: Actor) -> Response:
    with ctx.database.begin() as connection:
        wanted = orders.desired_of(connection)
        seen = telemetry.totals_of(connection)
        return answer([view(row, wanted, seen) for row in devices.everyone(connection)])


@router.get("/devices/{device}/explain")
def explain(ctx: Ctx, _actor: Actor, device: str) -> Response:
    with ctx.database.begin() as connection:
        row = devices.get(connection, device)
        shown = view(row, orders.desired_of(connection, device), telemetry.totals_of(connection, device))
        return answer(api.Explanation(shown, tuple(_sentences(connection, row, shown, ctx.clock()))))


def view(row: DeviceRow, wanted: Wanted, seen: Seen) -> api.DeviceView:
    """A device as the API shows it."""
    reported = devices.reported_of(row)
    deployments = {}
    for deployment in devices.deployments_of(row):
        should = wanted.get((row.id, deployment))
        runs = reported.deployments.get(deployment) if reported else None
        deployments[deployment] = api.DeploymentView(
            should_run=releases.title(should.name, should.version) if should else "",
            should_digest=should.sha256 if should else "",
            because=should.because if should else "",
            runs=releases.title(runs.model, runs.model_version) if runs and runs.digest else "",
            runs_digest=(runs.digest or "") if runs else "",
            version=runs.model_version if runs and runs.digest and runs.digest == runs.committed else "",
            telemetry=_summary([seen.get((row.id, deployment, runs.digest or ""))] if runs else []),
            state=runs.state.value if runs else "",
            reason=runs.reason if runs else "",
        )
    return api.DeviceView(
        device=row.id,
        profile=row.profile,
        labels=devices.labels_of(row),
        enrolled=row.enrolment > 0,
        online=row.is_online,
        is_duplicate=row.is_duplicate,
        agent_version=row.agent_version,
        last_seen=datetime.fromtimestamp(row.last_seen_at, UTC) if row.last_seen_at else None,
        order_counter=row.order_counter,
        reported_counter=reported.order_counter if reported else 0,
        refused=reported.refused if reported else "",
        deployments=deployments,
        telemetry=_summary(
            [
                seen.get((row.id, name, entry.digest or ""))
                for name, entry in (reported.deployments if reported else {}).items()
            ]
        ),
    )


def _summary(rows: list[Row[Any] | None]) -> api.Telemetry:
    known = [row for row in rows if row is not None]
    sketch = merge(msgspec.json.decode(row.infer_ms, type=Sketch) for row in known)
    return api.Telemetry(
        windows=sum(row.windows for row in known),
        requests=sum(row.requests for row in known),
        errors=sum(row.errors for row in known),
        infer_ms_p50=sketch.quantile(0.50),
        infer_ms_p95=sketch.quantile(0.95),
    )


def _sentences(connection: Connection, row: DeviceRow, shown: api.DeviceView, now: float) -> list[str]:
    if not shown.enrolled:
        return ["It has not enrolled yet: carry its enrolment file to it and start the agent there."]
    lines = [
        f"It is {'online' if shown.online else 'offline'}"
        + (
            f", last heard of {now - row.last_seen_at:.0f} s ago."
            if row.last_seen_at
            else ", never heard of."
        ),
    ]
    if shown.is_duplicate:
        lines.append(
            "Two machines speak under its name (a cloned card): it stays out of rollouts until it enrols again."
        )
    if shown.refused:
        lines.append(f"It refused its newest order: {shown.refused}")
    elif shown.reported_counter < shown.order_counter:
        lines.append(
            f"It has not accepted order {shown.order_counter} yet (its newest is {shown.reported_counter})."
        )
    for name, deployment in shown.deployments.items():
        lines.append(_sentence(name, deployment))
    for rollout in rollouts.active(connection):
        member = rollout.members.get(row.id)
        if member is not None:
            why = f" ({member.reason})" if member.reason else ""
            told = f"in stage {member.stage + 1}" if member.stage is not None else "not told to move yet"
            lines.append(f"Rollout {rollout.label} ({rollout.status}): {member.state}{why}, {told}.")
    return lines


def _sentence(name: str, deployment: api.DeploymentView) -> str:
    if not deployment.should_digest:
        return f"{name}: nothing is ordered" + (f"; it runs {deployment.runs}." if deployment.runs else ".")
    ordered = f"{name}: should run {deployment.should_run} ({deployment.because})"
    if deployment.should_digest == deployment.runs_digest:
        return f"{ordered}, and does."
    because = f": {deployment.reason}" if deployment.reason else ""
    return f"{ordered}, runs {deployment.runs or 'no model'}, state {deployment.state or 'unknown'}{because}."
