"""Releases: publishing for operators, artifacts for devices.

Always true
 1. A file becomes an artifact under its own digest, whole, or not at all.
 2. A release is registered only once exactly its bundle is a target of the fleet's TUF metadata: the publisher signed it.
 3. A device may fetch what it is ordered to run or to compare, deltas to what it runs, and what a command asks it to
    measure; nothing else: models are property.
"""

import hashlib
import os
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request, Response
from fastapi.responses import FileResponse
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool

from edgekit import bundle as bundles
from edgekit import evidence
from edgekit.errors import BundleError, NotFoundError
from fleet import api
from fleet.publish import target_of
from fleet.server.api import identity
from fleet.server.api.admission import Caller
from fleet.server.api.context import (
    Answer,
    Context,
    Ctx,
    TooLargeError,
    answer,
    body,
)
from fleet.server.api.paging import Paged
from fleet.server.api.routing import WAS_SO, Router, raw
from fleet.server.store import commands, enrolments, orders, releases, shadows

router = Router(prefix="/api/v1", tags=["releases"])
artifact_router = Router(tags=["artifacts"])

MAX_BUNDLE_BYTES = 4 << 30
_FILE = raw("The file.", "application/octet-stream")
_PARTS = {**_FILE, **raw("The part that `Range` asked for.", "application/octet-stream", status=206)}
_UPLOAD = {
    "requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string"}}}}
}


@router.get("/releases")
def listing(ctx: Ctx, page: Paged) -> Answer[list[api.ReleaseView]]:
    """Releases with their bundles."""
    with ctx.database.read() as connection:
        return page.of(releases.everything(connection), lambda one: releases.title(one.name, one.version))


@router.get("/bundles/{name}/{version}/{profile}")
def bundle(ctx: Ctx, name: str, version: str, profile: str) -> Answer[api.BundleView]:
    """The bundle of a release for a profile."""
    with ctx.database.read() as connection:
        row = releases.existing(connection, name, version, profile)
        if row is None:
            raise NotFoundError(f"{releases.title(name, version)} for {profile} is not published here")
        return answer(releases.view(connection, row.sha256))


@router.get("/evidence/{sha256}", responses=raw("An in-toto statement.", "application/json"))
def statement(ctx: Ctx, sha256: str) -> Response:
    """A bundle's evidence."""
    with ctx.database.read() as connection:
        return Response(releases.statement(connection, sha256), media_type="application/json")


@router.put("/uploads/{sha256}", status_code=204, openapi_extra=_UPLOAD)
async def upload(request: Request, ctx: Ctx, sha256: str) -> Response:
    """Receive a bundle file; it is kept only if its digest is the one in the path."""
    releases.check_digest(sha256)
    partial = ctx.folder.artifacts / f"{sha256}.{os.urandom(4).hex()}.part"
    digest = hashlib.sha256()
    size = 0
    try:
        with partial.open("wb") as sink:
            async for chunk in request.stream():
                size += len(chunk)
                if size > MAX_BUNDLE_BYTES:
                    raise TooLargeError(f"a bundle may have at most {MAX_BUNDLE_BYTES} bytes")
                digest.update(chunk)
                sink.write(chunk)
            sink.flush()
            await run_in_threadpool(os.fsync, sink.fileno())
        if digest.hexdigest() != sha256:
            raise BundleError(
                f"the upload arrived damaged (sha256 {digest.hexdigest()[:12]}…); send it again"
            )
        partial.replace(ctx.folder.artifact(sha256))
    finally:
        partial.unlink(missing_ok=True)
    return Response(status_code=204)


@router.post("/bundles", status_code=201, responses=WAS_SO)
def publish(
    ctx: Ctx, caller: Caller, new: Annotated[api.NewBundle, Depends(body(api.NewBundle))]
) -> Answer[api.PublishAnswer]:
    """Register an uploaded bundle as part of its release."""
    checked = bundles.read(Path(_present(ctx, new.sha256)), sha256=new.sha256)
    target = target_of(checked)
    ctx.tuf.check_listed(target)
    statement = new.evidence.encode() if new.evidence is not None else None
    if statement is not None:
        evidence.decode(statement, sha256=new.sha256)
    register = releases.publish_alternate if new.alternate else releases.publish
    with ctx.database.begin() as connection:
        was_there = register(connection, checked, statement, now=ctx.clock(), who=caller.who)
        view = (releases.view_alternate if new.alternate else releases.view)(connection, new.sha256)
    return answer(api.PublishAnswer(view, was_there), 200 if was_there else 201)


@router.get("/files/{sha256}", responses=_FILE)
def file(ctx: Ctx, sha256: str) -> Response:
    """A published bundle's file, for who makes deltas from it."""
    releases.check_digest(sha256)
    with ctx.database.begin() as connection:
        releases.bundle(connection, sha256)
    return FileResponse(_present(ctx, sha256), media_type="application/octet-stream")


@artifact_router.get("/artifacts/{sha256}", responses=_PARTS)
def artifact(request: Request, ctx: Ctx, sha256: str) -> Response:
    """The file of a bundle or delta; ranges are served, so an interrupted download goes on."""
    with ctx.database.begin() as connection:
        _check_allowed(connection, request, ctx, sha256)
    return FileResponse(_present(ctx, sha256), media_type="application/octet-stream")


def _present(ctx: Context, sha256: str) -> str:
    path = ctx.folder.artifact(sha256)
    if not path.is_file():
        raise NotFoundError(
            f"the file of {sha256[:12]}… is missing from the fleet's artifacts; publish it again"
        )
    return str(path)


def _check_allowed(connection: Connection, request: Request, ctx: Context, sha256: str) -> None:
    """Raises: AuthError unless a device shows who it is, NotFoundError for what it is not ordered to run."""
    releases.check_digest(sha256)
    device = identity.device_of(connection, request, ctx.clock())
    enrolments.confirm(connection, device)
    wanted = orders.desired_of(connection, device.id)
    if any(row.sha256 == sha256 for row in wanted.values()):
        return
    if commands.may_fetch(connection, device.id, sha256):
        return
    compared = shadows.ordered(connection, [device.id]).get(device.id, {})
    if any(shadow.bundle.sha256 == sha256 for shadow in compared.values()):
        return
    if not any(ctx.tuf.is_delta(sha256, row.name, orders.target_path(row)) for row in wanted.values()):
        raise NotFoundError(f"{device.id} is not ordered to run {sha256[:12]}…")
