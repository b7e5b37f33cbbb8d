"""Joining: enrolment files for operators; enrolling, renewing and the revocation list for devices and brokers."""

from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from fastapi import Depends, Request, Response
from fastapi.responses import FileResponse
from sqlalchemy import Row

from edgekit.errors import ConflictError, NotPossibleError
from edgekit.wire.enrolment import FORMAT, EnrolAnswer, EnrolmentFile, EnrolRequest, RenewRequest, unprotected
from fleet import api
from fleet.rules.text import duration
from fleet.server import parting
from fleet.server.api import identity
from fleet.server.api.admission import Caller, Principal, origin
from fleet.server.api.context import Answer, Context, Ctx, answer, body
from fleet.server.api.paging import Paged
from fleet.server.api.routing import Router, other, raw
from fleet.server.store import approvals, blocked, devices, enrolments, former, orders
from fleet.server.store.enrolments import DEFAULT_LIFETIME_S, Invitation, WaitsForApprovalError

router = Router(prefix="/api/v1", tags=["enrolment"])
device_router = Router(tags=["enrolment"])

MAX_LIFETIME_S = 366 * 86_400.0
ASK_AGAIN_S = 30
_WAITS = other(
    202, "It waits for an operator's approval: ask again after `Retry-After` seconds.", api.ErrorAnswer
)


@router.post("/devices", status_code=201)
def invite(
    ctx: Ctx, caller: Caller, wanted: Annotated[api.NewDevice, Depends(body(api.NewDevice))]
) -> Answer[EnrolmentFile]:
    """The file of one device."""
    invitation = Invitation(
        wanted.device,
        wanted.labels,
        wanted.deployments,
        ctx.clock() + _lifetime_s(wanted.expires),
        needs_approval=wanted.needs_approval,
    )
    return _file(ctx, caller, invitation)


@router.post("/devices/{device}/replace", status_code=201)
def replace(
    ctx: Ctx, caller: Caller, device: str, wanted: Annotated[api.Replacement, Depends(body(api.Replacement))]
) -> Answer[EnrolmentFile]:
    """The file of a device that there is, for a new card or a new board: what it has by the old one it has again."""
    with ctx.database.read() as connection:
        row = caller.device(connection, device)
    invitation = Invitation(
        device,
        msgspec.json.decode(row.labels, type=dict[str, str]),
        devices.deployments_of(row),
        ctx.clock() + _lifetime_s(wanted.expires),
        needs_approval=wanted.needs_approval,
    )
    return _file(ctx, caller, invitation)


@router.post("/batches", status_code=201)
def batch(
    ctx: Ctx, caller: Caller, wanted: Annotated[api.NewBatch, Depends(body(api.NewBatch))]
) -> Answer[EnrolmentFile]:
    """One file for many devices."""
    invitation = Invitation(
        "",
        wanted.labels,
        wanted.deployments,
        ctx.clock() + _lifetime_s(wanted.expires),
        max_uses=wanted.count,
        serials=wanted.serials,
        needs_approval=wanted.needs_approval,
    )
    return _file(ctx, caller, invitation)


def _lifetime_s(text: str) -> float:
    """Raises: UsageError."""
    if not text:
        return DEFAULT_LIFETIME_S
    found = duration(text, "--expires")
    if not 0 < found <= MAX_LIFETIME_S:
        raise NotPossibleError(f"--expires {text}: between a minute and a year, e.g. 7d")
    return found


def _file(ctx: Context, caller: Principal, invitation: Invitation) -> Answer[EnrolmentFile]:
    root = ctx.tuf.root()
    if not root:
        raise ConflictError(
            "nobody publishes for this fleet yet, so its devices would not know whose bundles to run: make the"
            " publisher's keys first, with 'edgekit keys init DIR'"
        )
    labels = {"device": invitation.device, "profile": ""}
    caller.check_reach({**invitation.labels, **labels})
    with ctx.database.begin() as connection:
        known = devices.find(connection, invitation.device)
        if known is not None:
            caller.check_reach(devices.labels_of(known))
        token = enrolments.invite(connection, invitation, now=ctx.clock(), who=caller.who)
    url = ctx.places.url
    made = EnrolmentFile(
        format=FORMAT,
        fleet=ctx.issuer.fleet,
        device=invitation.device,
        token=token,
        enrol_url=f"{url}/v1/enrol",
        artifact_url=f"{url}/artifacts",
        allowed_hosts=(urlsplit(url).netloc,),
        broker=ctx.places.announced,
        order_keys={ctx.issuer.key.keyid: ctx.issuer.key.public_hex},
        tuf_root=root,
        metadata_url=f"{url}/tuf",
        deployments=invitation.deployments,
        labels=invitation.labels,
        ca=ctx.ca_bundle,
    )
    assert not unprotected(made)  # `places` allows no such address
    return answer(made, 201)


@router.get("/waiting")
def waiting(ctx: Ctx, caller: Caller, page: Paged) -> Answer[list[api.Waiting]]:
    """Who asked to join and waits for a person."""
    with ctx.database.read() as connection:
        found = [row for row in approvals.waiting(connection) if caller.reaches(_labels(row))]
    return page.of(
        [
            api.Waiting(
                row.device,
                row.profile,
                row.public_key,
                datetime.fromtimestamp(row.first_at, UTC),
                msgspec.json.decode(row.labels, type=dict[str, str]),
            )
            for row in found
        ],
        lambda one: one.device,
    )


@router.post("/waiting/{device}/approve")
def approve(ctx: Ctx, caller: Caller, device: str) -> Answer[api.Done]:
    """It gets its identity when it asks the next time."""
    return _decide(ctx, caller, device, is_approved=True)


@router.post("/waiting/{device}/reject")
def reject(ctx: Ctx, caller: Caller, device: str) -> Answer[api.Done]:
    """It gets none by this file."""
    return _decide(ctx, caller, device, is_approved=False)


def _decide(ctx: Context, caller: Principal, device: str, *, is_approved: bool) -> Answer[api.Done]:
    with ctx.database.begin() as connection:
        for row in approvals.waiting(connection):
            if row.device == device:
                caller.check_reach(_labels(row))
        approvals.decide(connection, device, is_approved=is_approved, now=ctx.clock(), who=caller.who)
    return answer(api.Done(device, is_changed=True))


def _labels(row: Row[Any]) -> dict[str, str]:
    """Of one who waits: what the file gives it, and what it says of itself."""
    given = msgspec.json.decode(row.labels, type=dict[str, str])
    return {**given, "device": row.device, "profile": row.profile}


@device_router.post("/v1/enrol", responses=_WAITS)
def enrol(
    ctx: Ctx, http: Request, request: Annotated[EnrolRequest, Depends(body(EnrolRequest))]
) -> Answer[EnrolAnswer] | Answer[api.ErrorAnswer]:
    """See `edgekit.wire.enrolment` for what each status means to a device."""
    now = ctx.clock()
    waits, was_enrolled = None, False
    with ctx.database.begin() as connection:
        before = enrolments.number_of(connection, request.device)
        try:
            given = enrolments.enrol(connection, ctx.registrar, request, now, origin=origin(http))
        except WaitsForApprovalError:
            # The transaction is committed all the same: it holds who waits.
            waits = api.ErrorAnswer(
                api.ErrorBody(
                    "waits", f"{request.device} waits for an operator: edgekit fleet approve {request.device}"
                )
            )
        else:
            was_enrolled = 0 < before < given.enrolment
            if given.enrolment > before and orders.has_any(connection, request.device):
                # A re-flashed card, or other hardware: its orders must name the new enrolment, and what runs there.
                blocked.withdraw(connection, request.device)
                parting.refit(connection, request.device, request.profile)
                orders.issue(connection, ctx.issuer, request.device, now)
    if waits is not None:
        response = answer(waits, 202)
        response.headers["Retry-After"] = str(ASK_AGAIN_S)
        return response
    if was_enrolled:
        # Whoever still runs with the identity before this one is let go by the broker.
        ctx.certificates.revoked(request.device, now)
    ctx.wake()
    return answer(given)


@device_router.post("/v1/renew")
def renew(
    request: Request, ctx: Ctx, wanted: Annotated[RenewRequest, Depends(body(RenewRequest))]
) -> Answer[EnrolAnswer]:
    """A new certificate for a device that holds one which is good, or ran out less than 90 days ago."""
    now = ctx.clock()
    try:
        with ctx.database.begin() as connection:
            held = identity.held_by(connection, request, wanted.csr, wanted.proof)
            given = enrolments.renew(connection, ctx.registrar, held, wanted, now, origin=origin(request))
    except enrolments.NotGoodError as error:
        with ctx.database.begin() as connection:
            row = devices.find(connection, error.held.device)
            if row is not None:
                former.asked(connection, row, error.held.enrolment, now, origin(request))
        raise
    return answer(given)


@device_router.get("/v1/crl.pem", responses=raw("PEM.", "application/x-pem-file"))
def revocations(ctx: Ctx) -> Response:
    """The revocation list, for a broker that runs elsewhere. It names serial numbers, and is signed; it is no secret."""
    return FileResponse(ctx.folder.keys_folder / "crl.pem", media_type="application/x-pem-file")
