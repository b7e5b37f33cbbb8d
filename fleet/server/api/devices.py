"""Devices: listing, explaining, giving them one more deployment, taking them out of service."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec
from fastapi import Depends, Query
from sqlalchemy import Connection, Row

from edgekit.sketch import Sketch, merge
from edgekit.wire import topics
from fleet import api
from fleet.rules import filters, moving
from fleet.rules.history import Gauges
from fleet.rules.rollout import Rollout
from fleet.server.api.admission import Caller
from fleet.server.api.context import Answer, Context, Ctx, answer, body
from fleet.server.api.matching import IfMatch, tag_of
from fleet.server.api.paging import MOST, USUAL
from fleet.server.api.routing import WAS_SO, Router
from fleet.server.clock import Now
from fleet.server.placing import Bundles, will_follow
from fleet.server.store import (
    assignments,
    certificates,
    devices,
    finding,
    groups,
    hardware,
    orders,
    releases,
    removal,
    rollouts,
    telemetry,
)
from fleet.server.store.devices import DeviceRow
from fleet.server.store.finding import Wanted
from fleet.server.store.orders import DesiredRow
from fleet.server.store.releases import BundleRow

Ordered = dict[tuple[str, str], DesiredRow]
Seen = dict[tuple[str, str, str], Row[Any]]

router = Router(prefix="/api/v1", tags=["devices"])


@dataclass(frozen=True)
class Search:
    """Which devices, in which order, and which page of them."""

    where: Annotated[
        str,
        Query(
            max_length=api.MAX_TEXT,
            description="A filter, e.g. `site=lab and state=failed`.",
            json_schema_extra={"format": "edgekit-filter"},
        ),
    ] = ""
    sort: Annotated[
        str,
        Query(
            max_length=65,
            description="A field or a label; with - before it the other way round.",
            json_schema_extra={"format": "edgekit-order"},
        ),
    ] = ""
    after: Annotated[
        str,
        Query(
            max_length=400,
            description="Where the page before ended, as its `Link` says.",
            json_schema_extra={"format": "edgekit-place"},
        ),
    ] = ""
    limit: Annotated[int, Query(ge=1, le=MOST)] = USUAL
    count: Annotated[bool, Query(description="Say in `X-Total-Count` how many all pages hold.")] = False

    def next(self, after: str) -> str:
        """The address of the page that begins there."""
        given = {"where": self.where, "sort": self.sort, "after": after, "limit": self.limit}
        query = urlencode({name: value for name, value in given.items() if value != ""})
        return f"/api/v1/devices?{query}"


@router.get("/devices")
def listing(ctx: Ctx, caller: Caller, search: Annotated[Search, Depends()]) -> Answer[list[api.DeviceView]]:
    """A page of devices. Where there may be more, `Link` says where (RFC 8288, relation `next`)."""
    now = ctx.time.now()
    reach = caller.scope.text
    wanted = Wanted(filters.within(search.where, reach), filters.sort(search.sort), now.steady)
    with ctx.database.read() as connection:
        page = finding.page(connection, wanted, search.after, search.limit)
        if not page.rows and not search.after and filters.labels(wanted.where):
            there = finding.label_names(connection, filters.within("", reach))
            filters.check_names(filters.parse(search.where), there)
        names = [row.id for row in page.rows]
        ordered = orders.desired_of(connection, devices=names)
        seen = telemetry.totals_of(connection, names)
        response = answer([view(row, ordered, seen, now) for row in page.rows])
        if search.count:
            # What fits on the first page was counted by reading it.
            is_all = not page.after and not search.after
            count = len(page.rows) if is_all else finding.count(connection, wanted)
            response.headers["X-Total-Count"] = str(count)
    if page.after:
        response.headers["Link"] = f'<{search.next(page.after)}>; rel="next"'
    return response


@router.get("/devices/{device}/explain")
def explain(ctx: Ctx, caller: Caller, device: str) -> Answer[api.Explanation]:
    """What a device should run, what it runs, and why not that."""
    now = ctx.time.now()
    with ctx.database.read() as connection:
        row = caller.device(connection, device)
        wanted, seen = orders.desired_of(connection, device), telemetry.totals_of(connection, [device])
        shown = view(row, wanted, seen, now)
        return answer(api.Explanation(shown, tuple(_sentences(connection, row, shown, now))))


@router.post("/devices/{device}/deployments", status_code=201, responses=WAS_SO)
def add_deployment(
    ctx: Ctx,
    caller: Caller,
    device: str,
    wanted: Annotated[api.NewDeployment, Depends(body(api.NewDeployment))],
) -> Answer[api.Done]:
    """One more model slot for a device that has enrolled: its next order says so, and that order goes out now."""
    now = ctx.clock()
    with ctx.database.begin() as connection:
        caller.device(connection, device)
        is_new = devices.add_deployment(connection, device, wanted.deployment, now=now, who=caller.who)
        if is_new and devices.get(connection, device).enrolment:
            orders.issue(connection, ctx.issuer, device, now)
    ctx.wake()
    return answer(api.Done(device, is_changed=is_new), 201 if is_new else 200)


@router.post("/devices/{device}/labels")
def relabel(
    ctx: Ctx,
    caller: Caller,
    seen: IfMatch,
    device: str,
    wanted: Annotated[api.NewLabels, Depends(body(api.NewLabels))],
) -> Answer[api.Done]:
    """It leaves what is about its old place, and follows what is about the new one."""
    with ctx.database.begin() as connection:
        caller.device(connection, device)
        seen.check(_tag(devices.get(connection, device, lock=True)), f"the device {device}")
        is_changed = groups.relabel(
            connection, device, wanted.labels, wanted.remove, now=ctx.clock(), who=caller.who
        )
        # Nobody moves a device out of their own reach.
        caller.check_reach(devices.labels_of(devices.get(connection, device)))
    ctx.wake()
    return answer(api.Done(device, is_changed=is_changed))


@router.post("/devices/{device}/revoke")
def revoke(
    ctx: Ctx, caller: Caller, device: str, why: Annotated[api.Reason, Depends(body(api.Reason))]
) -> Answer[api.Done]:
    """Take its identity away at once; a new enrolment file lets it join again."""
    now = ctx.clock()
    with ctx.database.begin() as connection:
        caller.device(connection, device)
        count = removal.revoke(connection, device, reason=why.reason, now=now, who=caller.who)
    ctx.certificates.revoked(device, now)
    ctx.wake()
    return answer(api.Done(device, is_changed=count > 0))


@router.post("/devices/{device}/decommission")
def decommission(
    ctx: Ctx, caller: Caller, device: str, why: Annotated[api.Reason, Depends(body(api.Reason))]
) -> Answer[api.Done]:
    """Out of service: no identity, no orders, no place in lists and rollouts. Its name may enrol again."""
    now = ctx.clock()
    with ctx.database.begin() as connection:
        caller.device(connection, device)
        removal.revoke(connection, device, reason=why.reason or "decommissioned", now=now, who=caller.who)
        devices.decommission(connection, device, now=now, who=caller.who)
    _gone(ctx, device, now)
    return answer(api.Done(device, is_changed=True))


@router.post("/devices/{device}/delete")
def delete(
    ctx: Ctx, caller: Caller, device: str, why: Annotated[api.Reason, Depends(body(api.Reason))]
) -> Answer[api.Done]:
    """Out of service, and forgotten: only the audit log and ended rollouts still name it. The name is free."""
    now = ctx.clock()
    with ctx.database.begin() as connection:
        caller.device(connection, device)
        removal.revoke(connection, device, reason=why.reason or "deleted", now=now, who=caller.who)
        removal.forget(connection, device, why.reason, now=now, who=caller.who)
    _gone(ctx, device, now)
    return answer(api.Done(device, is_changed=True))


def _gone(ctx: Context, device: str, now: float) -> None:
    ctx.certificates.revoked(device, now)
    for leaf in (topics.DESIRED, topics.REPORTED, topics.STATUS):
        ctx.link.publish(device, leaf, b"", qos=1, retain=True)
    ctx.wake()


def _tag(row: DeviceRow) -> str:
    return tag_of(row.labels, row.deployments, row.decommissioned_at)


def view(row: DeviceRow, ordered: Ordered, seen: Seen, now: Now) -> api.DeviceView:
    """A device as the API shows it, times by the wall clock."""
    ahead_s = now.wall - now.steady
    reported = devices.reported_of(row)
    deployments = {}
    for deployment in devices.deployments_of(row):
        should = ordered.get((row.id, deployment))
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
        last_seen=datetime.fromtimestamp(row.last_seen_at + ahead_s, UTC) if row.last_seen_at else None,
        order_counter=row.order_counter,
        reported_counter=reported.order_counter if reported else 0,
        refused=reported.refused if reported else "",
        deployments=deployments,
        tag=_tag(row),
        former_seen=datetime.fromtimestamp(row.former_at, UTC) if row.former_at else None,
        traffic=_traffic(row),
        conditions=tuple(
            api.ConditionView(one.code, one.detail, one.since, one.deployment)
            for one in (reported.conditions if reported else ())
        ),
        telemetry=_summary(
            [
                seen.get((row.id, name, entry.digest or ""))
                for name, entry in (reported.deployments if reported else {}).items()
            ]
        ),
    )


def _traffic(row: DeviceRow) -> dict[str, api.TrafficView]:
    link = devices.link_of(row.traffic)
    found: dict[str, api.TrafficView] = {}
    for purpose, passed in link.totals.items():
        month = link.of_month(purpose)
        found[purpose] = api.TrafficView(passed.sent, passed.received, month.sent, month.received)
    return found


def _summary(rows: list[Row[Any] | None]) -> api.Telemetry:
    known = [row for row in rows if row is not None]
    sketch = merge(msgspec.json.decode(row.infer_ms, type=Sketch) for row in known)
    gauges = [msgspec.json.decode(row.gauges, type=Gauges) for row in known if row.gauges]
    return api.Telemetry(
        windows=sum(row.windows for row in known),
        requests=sum(row.requests for row in known),
        errors=sum(row.errors for row in known),
        infer_ms_p50=sketch.quantile(0.50),
        infer_ms_p95=sketch.quantile(0.95),
        drift={label: index for one in gauges for label, index in one.drift.items()},
        anomalies=dict(sum((Counter(one.anomalies) for one in gauges), Counter())),
        guarded=sum(one.guarded for one in gauges),
    )


def _sentences(connection: Connection, row: DeviceRow, shown: api.DeviceView, now: Now) -> list[str]:
    if not shown.enrolled:
        return ["It has not enrolled yet: carry its enrolment file to it and start the agent there."]
    lines = [
        f"It is {'online' if shown.online else 'offline'}"
        + (
            f", last heard of {now.steady - row.last_seen_at:.0f} s ago."
            if row.last_seen_at
            else ", never heard of."
        ),
    ]
    if not certificates.of_enrolment(connection, row.id, row.enrolment):
        lines.append(
            "Its identity was taken away (revoked): make a new file with "
            f"'edgekit fleet enroll {row.id}' and carry it there."
        )
    if other := hardware.told(connection, row.id, row.enrolled_at or 0.0):
        lines.append(f"It {other}. If nobody exchanged the board, its identity was copied: revoke it.")
    if shown.is_duplicate:
        lines.append(
            "Two machines speak under its name (a cloned card): it stays out of rollouts until it enrols again."
        )
    if shown.former_seen:
        lines.append(
            f"An older board comes under its name too, with the identity of enrolment {row.former_enrolment} (this one is"
            f" {row.enrolment}), last at {shown.former_seen:%Y-%m-%d %H:%M} UTC. It is not believed; switch it off."
        )
    if shown.refused:
        lines.append(f"It refused its newest order: {shown.refused}")
    elif shown.reported_counter < shown.order_counter:
        lines.append(
            f"It has not accepted order {shown.order_counter} yet (its newest is {shown.reported_counter})."
        )
    lines += _conditions(shown.conditions)
    under_way = rollouts.of_device(connection, row.id)
    lines += _of_deployments(connection, row, shown, under_way)
    for rollout in under_way:
        member = rollout.members[row.id]
        why = f" ({member.reason})" if member.reason else ""
        waits = f"not told to move yet: {moving.waits_for(rollout, member, rollouts.moment(now.wall))}"
        told = f"in stage {member.stage + 1}" if member.stage is not None else waits
        what = f" of {rollout.spec.title}, which move together" if rollout.spec.beside else ""
        lines.append(f"Rollout {rollout.label}{what} ({rollout.status}): {member.state}{why}, {told}.")
    return lines


def _of_deployments(
    connection: Connection, row: DeviceRow, shown: api.DeviceView, under_way: Sequence[Rollout]
) -> Iterator[str]:
    """What runs in each, what should, and what is assigned."""
    all_of_them, bundles = assignments.newest_first(connection), Bundles(connection)
    ordered = orders.desired_of(connection, row.id)
    for name, deployment in shown.deployments.items():
        yield _sentence(name, deployment)
        if will_follow(all_of_them, row, name, ordered.get((row.id, name))):
            then = "it gets that once no rollout has it, it is online, and the maintenance window of that release is open"
        elif moving_it := _moving(under_way, row.id, name):
            then = f"{moving_it} has it until that ends"
        else:
            then = "'edgekit fleet assign' would move it there"
        yield from _assigned(name, deployment, *bundles.assigned(all_of_them, row, name), then=then)


def _moving(under_way: Iterable[Rollout], device: str, deployment: str) -> str:
    """The rollout that told the device to move in this deployment, if one did."""
    told = (one for one in under_way if one.members[device].stage is not None)
    return next((f"rollout {one.label}" for one in told if deployment in one.spec.deployments), "")


def _conditions(found: Iterable[api.ConditionView]) -> Iterator[str]:
    for condition in found:
        of = f" ({condition.deployment})" if condition.deployment else ""
        yield f"Something is wrong with it: {condition.code}{of}, {condition.detail}"


def _assigned(
    name: str, deployment: api.DeploymentView, bundle: BundleRow | None, why: str, *, then: str
) -> list[str]:
    """Where what holds for its place is not what it is ordered: why, or what `then`."""
    if bundle is None:
        nothing = not deployment.should_digest and not why
        return [f"{name}: {why}."] if why else [f"{name}: nothing is assigned to it."] if nothing else []
    if bundle.sha256 == deployment.should_digest:
        return []
    title = releases.title(bundle.name, bundle.version)
    return [f"{name}: {title} is assigned to where it is; {then}."]


def _sentence(name: str, deployment: api.DeploymentView) -> str:
    if not deployment.should_digest:
        return f"{name}: nothing is ordered" + (f"; it runs {deployment.runs}." if deployment.runs else ".")
    ordered = f"{name}: should run {deployment.should_run} ({deployment.because})"
    if deployment.should_digest == deployment.runs_digest:
        return f"{ordered}, and does."
    because = f": {deployment.reason}" if deployment.reason else ""
    return f"{ordered}, runs {deployment.runs or 'no model'}, state {deployment.state or 'unknown'}{because}."
