"""What boards measure, and what follows: bundles that are only lent for it, and another pick of a release."""

from pathlib import Path
from typing import Annotated

from fastapi import Depends

from edgekit import bundle as bundles
from edgekit.errors import NotFoundError
from fleet import api
from fleet.publish import target_of
from fleet.server.api.admission import Caller
from fleet.server.api.context import Answer, Ctx, answer, body
from fleet.server.api.routing import WAS_SO, Router
from fleet.server.store import finalists, picking, releases

router = Router(prefix="/api/v1", tags=["releases"])


@router.post("/finalists", status_code=201, responses=WAS_SO)
def lend(
    ctx: Ctx, caller: Caller, new: Annotated[api.NewFinalist, Depends(body(api.NewFinalist))]
) -> Answer[api.Lent]:
    """Let boards fetch an uploaded bundle to measure it; it is in no release."""
    path = ctx.folder.artifact(new.sha256)
    if not path.is_file():
        raise NotFoundError(f"the file of {new.sha256[:12]}… is not here; upload it first")
    checked = bundles.read(path, sha256=new.sha256)
    ctx.tuf.check_listed(target_of(checked))
    with ctx.database.begin() as connection:
        is_new = finalists.add(connection, checked, now=ctx.clock(), who=caller.who)
    return answer(api.Lent(new.sha256, is_changed=is_new), 201 if is_new else 200)


@router.post("/finalists/{sha256}/remove")
def take_back(ctx: Ctx, caller: Caller, sha256: str) -> Answer[api.Lent]:
    """Nobody may fetch it any more; what was published meanwhile is not touched."""
    releases.check_digest(sha256)
    with ctx.database.begin() as connection:
        is_changed = finalists.remove(connection, sha256, now=ctx.clock(), who=caller.who)
        is_published = releases.is_published(connection, sha256)
    if is_changed and not is_published:
        ctx.folder.artifact(sha256).unlink(missing_ok=True)
    return answer(api.Lent(sha256, is_changed=is_changed))


@router.post("/bundles/{name}/{version}/{profile}/pick")
def pick(  # noqa: PLR0917  # what the path names, in its order
    ctx: Ctx,
    caller: Caller,
    name: str,
    version: str,
    profile: str,
    wanted: Annotated[api.NewPick, Depends(body(api.NewPick))],
) -> Answer[api.BundleView]:
    """Another of a release's bundles for a profile is the one that orders name, by evidence that boards measured.

    Not once a device was ordered to run the one picked before: what runs in the field changes by a rollout.
    """
    statements = {sha256: text.encode() for sha256, text in wanted.evidence.items()}

    def read(sha256: str) -> bundles.Bundle:
        path: Path = ctx.folder.artifact(sha256)
        if not path.is_file():
            raise NotFoundError(
                f"the file of {sha256[:12]}… is missing from the fleet's artifacts; publish it again"
            )
        return bundles.read(path, sha256=sha256)

    with ctx.database.begin() as connection:
        picking.pick(
            connection,
            (name, version, profile),
            wanted.sha256,
            statements,
            read,
            now=ctx.clock(),
            who=caller.who,
        )
        return answer(releases.view(connection, wanted.sha256))
