"""TUF metadata: publishers bring theirs, devices and mirrors fetch static files.

Metadata names models and versions and holds no secret, so it needs no credential: any cache may keep it. What it names,
the artifacts, a device gets only with its own.
"""

import re
from typing import Annotated

from fastapi import Depends, Response
from securesystemslib.signer import SSlibKey

from edgekit.errors import NotFoundError
from edgekit.trust.orderkeys import OrderKeys
from fleet import api
from fleet.server.api.admission import Caller
from fleet.server.api.context import Answer, Ctx, answer, body
from fleet.server.api.routing import Router, raw
from fleet.server.store import audit
from fleet.tuf import documents
from fleet.tuf.online import Files, Online

router = Router(prefix="/api/v1", tags=["metadata"])
static_router = Router(tags=["metadata"])

_SIGNED = raw("A signed document.", "application/json")
_TARGET = re.compile(r"^[0-9a-f]{64}\.order-keys\.json$")
_FILE = re.compile(r"^(\d{1,16}\.[a-z0-9][a-z0-9._-]{0,100}|timestamp)\.json$")


@router.get("/metadata")
def present(ctx: Ctx) -> Answer[api.MetadataView]:
    """The publishers' signed documents, and the key that signs snapshot and timestamp."""
    return answer(_view(ctx.tuf))


@router.post("/metadata")
def offer(
    ctx: Ctx, caller: Caller, new: Annotated[api.NewMetadata, Depends(body(api.NewMetadata))]
) -> Answer[api.MetadataView]:
    """Take a publisher's documents; snapshot and timestamp follow at once."""
    now = documents.moment(ctx.clock())
    before = _versions(ctx.tuf)
    roles = {role: text.encode() for role, text in new.roles.items()}
    files = {path: text.encode() for path, text in new.files.items()}

    def check(listed: OrderKeys) -> None:
        ctx.folder.check_order_keys(listed, ctx.issuer.key)

    ctx.tuf.offer(tuple(text.encode() for text in new.roots), roles, now, Files(files, check))
    # From here on devices may hear of the new key; the controller signs their orders again.
    ctx.issuer.key = ctx.folder.take_order_key(ctx.tuf.order_keys(), ctx.issuer.key)
    with ctx.database.begin() as connection:
        audit.append(
            connection,
            ctx.clock(),
            caller.who,
            "metadata.publish",
            ctx.issuer.fleet,
            before=before,
            after=_versions(ctx.tuf),
        )
    ctx.wake()
    return answer(_view(ctx.tuf))


@router.post("/metadata/online-key")
def successor(ctx: Ctx, caller: Caller) -> Answer[api.PublicKey]:
    """The public half of the key that is to follow the present online key; made on the first call."""
    key = ctx.tuf.next_key()
    with ctx.database.begin() as connection:
        audit.append(
            connection,
            ctx.clock(),
            caller.who,
            "metadata.online-key",
            ctx.issuer.fleet,
            before=ctx.tuf.key.keyid,
            after=key.keyid,
        )
    return answer(_public(key))


@router.post("/metadata/order-key")
def order_key(ctx: Ctx, caller: Caller) -> Answer[api.OrderKey]:
    """The public half of the key that is to sign orders once the publisher lists it; made on the first call."""
    key = ctx.folder.next_order_key()
    with ctx.database.begin() as connection:
        audit.append(
            connection,
            ctx.clock(),
            caller.who,
            "metadata.order-key",
            ctx.issuer.fleet,
            before=ctx.issuer.key.keyid,
            after=key.keyid,
        )
    return answer(api.OrderKey(key.keyid, key.public_hex))


@static_router.get("/tuf/targets/_fleet/{file}", responses=_SIGNED)
def target_file(ctx: Ctx, file: str) -> Response:
    """A target that is part of the metadata itself."""
    path = ctx.tuf.metadata / "targets" / "_fleet" / file
    if not _TARGET.match(file) or not path.is_file():
        raise NotFoundError(f"there is no target {file[:120]!r}")
    kept = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(path.read_bytes(), media_type="application/json", headers=kept)


@static_router.get("/tuf/{file}", responses=_SIGNED)
def static_file(ctx: Ctx, file: str) -> Response:
    """A metadata file, as TUF clients ask for it."""
    path = ctx.tuf.metadata / file
    if not _FILE.match(file) or not path.is_file():
        raise NotFoundError(f"there is no metadata file {file[:120]!r}")
    kept = "no-cache" if file == "timestamp.json" else "public, max-age=31536000, immutable"
    return Response(path.read_bytes(), media_type="application/json", headers={"Cache-Control": kept})


def _view(tuf: Online) -> api.MetadataView:
    whole = tuf.documents() or documents.Documents()
    return api.MetadataView(
        _public(tuf.key),
        tuple(documents.encode(one).decode() for one in whole.roots),
        {role: documents.encode(one).decode() for role, one in whole.roles.items()},
    )


def _versions(tuf: Online) -> dict[str, int]:
    """For the audit log: role → version."""
    whole = tuf.documents() or documents.Documents()
    roots = {"root": whole.roots[-1].signed.version} if whole.roots else {}
    return {**roots, **{role: one.signed.version for role, one in whole.roles.items()}}


def _public(key: SSlibKey) -> api.PublicKey:
    return api.PublicKey(key.keyid, key.to_dict())
