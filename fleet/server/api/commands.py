"""Commands: what is asked of a device once."""

from typing import Annotated

from fastapi import Depends

from edgekit.errors import UsageError
from edgekit.wire.commands import LONGEST_LIFE
from fleet import api
from fleet.rules.text import duration
from fleet.server.api.admission import Caller
from fleet.server.api.context import Answer, Ctx, answer, body
from fleet.server.api.paging import Paged
from fleet.server.api.routing import Router
from fleet.server.store import commands, devices

router = Router(prefix="/api/v1", tags=["devices"])


@router.post("/devices/{device}/commands", status_code=201)
def ask(
    ctx: Ctx, caller: Caller, device: str, wanted: Annotated[api.NewCommand, Depends(body(api.NewCommand))]
) -> Answer[api.CommandView]:
    """Ask something of a device once: it is signed and queued, and goes out when the device is online."""
    life_s = duration(wanted.expires, "expires") if wanted.expires else commands.USUAL_LIFE_S
    if not 1 <= life_s <= LONGEST_LIFE.total_seconds():
        raise UsageError(f"expires: between a second and {LONGEST_LIFE.days} days")
    now = ctx.clock()
    with ctx.database.begin() as connection:
        caller.device(connection, device)
        row = devices.get(connection, device, lock=True)
        number = commands.add(connection, ctx.issuer, row, wanted.action, life_s, now=now, who=caller.who)
        made = commands.get(connection, device, number)
    ctx.wake()
    return answer(made, 201)


@router.get("/devices/{device}/commands")
def listing(ctx: Ctx, caller: Caller, device: str, page: Paged) -> Answer[list[api.CommandView]]:
    """What was asked of a device, the newest first, and what came of it."""
    with ctx.database.read() as connection:
        caller.device(connection, device)
        return page.of(commands.of_device(connection, device), lambda one: one.id)


@router.get("/devices/{device}/commands/{command}")
def one(ctx: Ctx, caller: Caller, device: str, command: str) -> Answer[api.CommandView]:
    """One command, and what came of it."""
    with ctx.database.read() as connection:
        caller.device(connection, device)
        return answer(commands.get(connection, device, command))
