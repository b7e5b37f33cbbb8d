"""Samples for retraining: asked for by operators, brought by devices, downloaded by whoever retrains.

Always true
 1. A device's sample is taken only by a collection that names the device and goes on, within its bounds.
 2. It is acknowledged once its file and its row are on the disk; the same bytes again are acknowledged again.
 3. Access that is scoped to devices sees the samples of those devices, and decides only about collections that it reaches
    as a whole.
"""

import contextlib
import hashlib
import os
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request, Response
from fastapi.responses import FileResponse
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool

from edgekit.errors import AuthError, EdgeKitError, MessageError, NotFoundError, NotPossibleError, UsageError
from edgekit.wire.samples import MAX_SAMPLE_BYTES, SampleAbout, unpack
from fleet import api
from fleet.server import collecting as files
from fleet.server.api import identity
from fleet.server.api.admission import Caller, Principal
from fleet.server.api.context import Answer, Context, Ctx, answer, body, read_body
from fleet.server.api.paging import Paged, link
from fleet.server.api.routing import WAS_SO, Router, raw
from fleet.server.store import collecting, devices, enrolments
from fleet.server.store.collecting import CollectionRow

router = Router(prefix="/api/v1", tags=["samples"])
device_router = Router(tags=["samples"])
_SAMPLE = raw("A line of JSON, then an `.npz`.", "application/octet-stream")
_UPLOAD = {
    "requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string"}}}}
}


@router.get("/samples")
def listing(ctx: Ctx, caller: Caller, page: Paged) -> Answer[list[api.CollectionView]]:
    """What was asked for, the newest first, and what came of it."""
    with ctx.database.read() as connection:
        reached = _reached(connection, caller)
        found = [
            row
            for row in collecting.everything(connection)
            if reached is None or not reached.isdisjoint(collecting.devices_of(connection, row.id))
        ]
        sizes = collecting.sizes(connection, reached)
        views = [_view(connection, row, sizes, reached, ctx.clock()) for row in found]
    return page.of(views, lambda one: one.id)


@router.post("/samples", status_code=201)
def collect(
    ctx: Ctx, caller: Caller, wanted: Annotated[api.NewCollection, Depends(body(api.NewCollection))]
) -> Answer[api.CollectionView]:
    """Let devices keep inputs of a deployment for retraining, and bring them here. Their next orders say so."""
    to, now = caller.scope.narrow(wanted.to), ctx.clock()
    if len(to) > api.MAX_TEXT:
        raise NotPossibleError(f"the selector is too long: at most {api.MAX_TEXT} characters with your scope")
    with ctx.database.begin() as connection:
        number = files.begin(connection, wanted, to, now=now, who=caller.who)
        made = _view(connection, collecting.get(connection, number), {}, None, now)
    ctx.wake()
    return answer(made, 201)


@router.get("/samples/{collection}/items")
def items(ctx: Ctx, caller: Caller, page: Paged, collection: str) -> Answer[list[api.SampleView]]:
    """The samples of a collection, in the order in which they came."""
    number = collecting.parse_id(collection)
    with ctx.database.read() as connection:
        collecting.get(connection, number)
        rows = collecting.items(connection, number, _reached(connection, caller), page.after, page.limit + 1)
    made = answer([_item(row) for row in rows[: page.limit]])
    if len(rows) > page.limit:
        link(made, page.request, rows[page.limit - 1].sha256, page.limit)
    return made


@router.get("/samples/{collection}/files/{sha256}", responses=_SAMPLE)
def file(ctx: Ctx, caller: Caller, collection: str, sha256: str) -> Response:
    """One sample as its device sent it."""
    with ctx.database.read() as connection:
        row = collecting.find(connection, collecting.parse_id(collection), sha256)
        caller.device(connection, row.device)
    path = files.path_of(ctx.folder.samples, row.sha256)
    if not path.is_file():
        raise NotFoundError(
            f"the file of sample {sha256[:12]}… is missing; it was not in the backup, perhaps"
        )
    return FileResponse(path, media_type="application/octet-stream")


@router.post("/samples/{collection}/stop")
def stop(ctx: Ctx, caller: Caller, collection: str) -> Answer[api.Changed]:
    """No more are taken from now on, and devices delete what waits as soon as they hear of it."""
    number = collecting.parse_id(collection)
    with ctx.database.begin() as connection:
        _check_whole(connection, caller, number)
        was_active = files.stop(connection, number, now=ctx.clock(), who=caller.who)
    ctx.wake()
    return answer(api.Changed(collecting.label(number), is_changed=was_active))


@router.post("/samples/{collection}/remove")
def remove(ctx: Ctx, caller: Caller, collection: str) -> Answer[api.SamplesGone]:
    """Forget a collection that has ended; its samples are deleted."""
    number = collecting.parse_id(collection)
    with ctx.database.begin() as connection:
        _check_whole(connection, caller, number)
        gone = [row.sha256 for row in collecting.items(connection, number, None, "", 10_000_000)]
        files.delete(connection, number, now=ctx.clock(), who=caller.who)
    for sha256 in gone:
        files.path_of(ctx.folder.samples, sha256).unlink(missing_ok=True)
    return answer(api.SamplesGone(collecting.label(number), len(gone)))


@device_router.put("/v1/samples/{sha256}", status_code=201, openapi_extra=_UPLOAD, responses=WAS_SO)
async def bring(request: Request, ctx: Ctx, sha256: str) -> Response:
    """A device's sample. See `edgekit.wire.samples` for what each status means to it."""
    # Who it is, before anything of the body is read.
    device = await run_in_threadpool(_device, ctx, request)
    data = await read_body(request, MAX_SAMPLE_BYTES)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UsageError("the sample arrived damaged; send it again")
    return Response(status_code=await run_in_threadpool(_take, ctx, device, sha256, data))


def _device(ctx: Context, request: Request) -> str:
    with ctx.database.begin() as connection:
        row = identity.device_of(connection, request, ctx.clock())
        enrolments.confirm(connection, row)
        return str(row.id)


def _take(ctx: Context, device: str, sha256: str, data: bytes) -> int:
    """Keep it; the status. Raises: NotFoundError, EndedError, NotPossibleError for what is no sample."""
    try:
        about, _arrays = unpack(data)
    except MessageError as error:
        raise NoSampleError(str(error)) from error
    with ctx.database.read() as connection:
        if collecting.is_here(connection, sha256):
            return 200
        collecting.check(connection, device, about, ctx.clock())
    path = files.path_of(ctx.folder.samples, sha256)
    _write(path, data)
    try:
        return _count(ctx, device, about, sha256, len(data))
    except EdgeKitError:
        # Refused after all. Whatever else went wrong may have committed; a file that no row names is swept.
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def _count(ctx: Context, device: str, about: SampleAbout, sha256: str, length: int) -> int:
    with ctx.database.begin() as connection:
        # Of the same sample twice at once the second waits here.
        collecting.get(connection, collecting.parse_id(about.policy), lock=True)
        if collecting.is_here(connection, sha256):
            return 200
        collecting.take(connection, device, about, sha256, length, now=ctx.clock())
    return 201


def _write(path: Path, data: bytes) -> None:
    """On the disk under its name, whole."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    partial = path.with_suffix(f".{os.urandom(4).hex()}.part")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as sink:
            sink.write(data)
            sink.flush()
            os.fsync(sink.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class NoSampleError(NotPossibleError):
    """What a device sent can be no sample."""

    http_status = 422


def _reached(connection: Connection, caller: Principal) -> set[str] | None:
    """The devices of a scope; None for all."""
    if not caller.scope.is_limited:
        return None
    return {row.id for row in devices.everyone(connection) if caller.reaches(devices.labels_of(row))}


def _check_whole(connection: Connection, caller: Principal, number: int) -> None:
    """Raises: AuthError for a collection that a scope reaches in part, or not at all."""
    collecting.get(connection, number)
    reached = _reached(connection, caller)
    if reached is not None and not reached.issuperset(collecting.devices_of(connection, number)):
        raise AuthError(f"{collecting.label(number)} concerns devices beyond {caller.scope.text}")


def _view(
    connection: Connection,
    row: CollectionRow,
    sizes: dict[int, tuple[int, int]],
    reached: Collection[str] | None,
    now: float,
) -> api.CollectionView:
    names = collecting.devices_of(connection, row.id)
    count, size = sizes.get(row.id, (0, 0))
    return api.CollectionView(
        id=collecting.label(row.id),
        deployment=row.deployment,
        to=row.selector,
        state=collecting.state_of(row, now),
        words=collecting.reasons_of(row).words,
        devices=len(names if reached is None else [name for name in names if name in reached]),
        most=row.most,
        per_device=row.per_device,
        per_day_bytes=row.bytes_a_day,
        samples=count,
        bytes=size,
        until=datetime.fromtimestamp(row.until_at, UTC),
        created=datetime.fromtimestamp(row.created_at, UTC),
        created_by=row.created_by,
    )


def _item(row: CollectionRow) -> api.SampleView:
    return api.SampleView(
        sha256=row.sha256,
        device=row.device,
        deployment=row.deployment,
        digest=row.digest,
        reason=row.reason,
        kind=row.kind,
        confidence=row.confidence,
        label=row.label,
        taken=datetime.fromtimestamp(row.taken_at, UTC),
        received=datetime.fromtimestamp(row.received_at, UTC),
        length=row.length,
    )
