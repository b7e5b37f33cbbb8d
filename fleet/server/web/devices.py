"""The devices: a table of 50 with search, filters and sort in its address; labels of many at once."""

from typing import Annotated, NamedTuple

from fastapi import APIRouter, Depends, Response

from edgekit.errors import EdgeKitError, UsageError
from fleet import api
from fleet.server.api import devices as rest
from fleet.server.api.matching import Expected
from fleet.server.store import glance, orders, telemetry
from fleet.server.store.devices import DeviceRow
from fleet.server.store.glance import Browse
from fleet.server.web import words
from fleet.server.web.forms import Form, pairs, valid
from fleet.server.web.frame import On, Page, link
from fleet.server.web.rollouts import quoted

router = APIRouter(tags=["page"])
ON_A_PAGE = 50


class Shown(NamedTuple):
    """A row of the table; `trouble` is why it does not run what it should, "" where it does."""

    view: api.DeviceView
    state: str
    trouble: str


class Chip(NamedTuple):
    """A filter that holds; `without` is the same page without it."""

    text: str
    without: str


# Columns whose heads turn the order.
_SORTED_BY = ("device", "last_seen", "profile", "agent")


class Column(NamedTuple):
    """A head of the table; `to` sorts by it, or the other way; `is_by` is "", up or down."""

    name: str
    to: str
    is_by: str


def _asked(where: str = "", q: str = "", state: str = "", sort: str = "device", after: str = "") -> Browse:
    return Browse(where.strip(), q.strip(), state, sort, after)


@router.get("/devices", include_in_schema=False)
def listing(page: On, wanted: Annotated[Browse, Depends(_asked)]) -> Response:
    error, following, count, status = "", "", 0, 200
    rows: list[Shown] = []
    try:
        rows, following, count = _read(page, wanted)
    except UsageError as mistake:
        error, status = str(mistake), mistake.http_status
    return page.show(
        "devices.html.jinja",
        status=status,
        wanted=wanted,
        rows=rows,
        count=count,
        most=glance.MOST_COUNTED,
        error=error,
        chips=_chips(wanted),
        columns=_columns(wanted),
        states=glance.STATES,
        following=link("/devices", **{**_query(wanted), "after": following}) if following else "",
        first=link("/devices", **{**_query(wanted), "after": ""}),
        refused=page.why_not("POST", "/relabel"),
        refused_enrol=page.why_not("GET", "/enrol"),
        command=_command(wanted),
    )


def _read(page: Page, wanted: Browse) -> tuple[list[Shown], str, int]:
    """Rows, where the next ones begin, how many there are in all. Raises: UsageError."""
    scope = page.caller.scope
    if scope.is_limited:
        wanted = wanted._replace(where=scope.narrow(wanted.where or "all"))
    now = page.ctx.time.now()
    wanted = wanted._replace(now=now.steady)
    with page.ctx.database.read() as connection:
        found, following = glance.browse(connection, wanted, ON_A_PAGE)
        names = [row.id for row in found]
        desired, seen = orders.desired_of(connection, devices=names), telemetry.totals_of(connection, names)
        rows = [_shown(row, rest.view(row, desired, seen, now)) for row in found]
        # What fits on the first page was counted by reading it.
        is_all = not following and not wanted.after
        count = len(found) if is_all else glance.how_many(connection, wanted)
    return rows, following, count


def _shown(row: DeviceRow, view: api.DeviceView) -> Shown:
    troubles = [view.refused] if view.refused else []
    troubles += [
        f"{name}: {one.reason}"
        for name, one in view.deployments.items()
        if one.reason and one.should_digest != one.version
    ]
    return Shown(view, glance.state_of(row), troubles[0] if troubles else "")


def _query(wanted: Browse) -> dict[str, str]:
    return {
        "where": wanted.where,
        "q": wanted.text,
        "state": wanted.state,
        "sort": "" if wanted.sort == "device" else wanted.sort,
    }


def _chips(wanted: Browse) -> list[Chip]:
    query = _query(wanted)
    texts = {
        "q": f"name has “{wanted.text}”",
        "where": wanted.where,
        "state": words.state(wanted.state).word,
    }
    return [
        Chip(text, link("/devices", **{**query, name: ""})) for name, text in texts.items() if query[name]
    ]


def _columns(wanted: Browse) -> dict[str, Column]:
    by, is_down = wanted.sort.removeprefix("-"), wanted.sort.startswith("-")
    found = {}
    for name in _SORTED_BY:
        # The newest is what is looked for first.
        usual = f"-{name}" if name == "last_seen" else name
        turned = name if is_down else f"-{name}"
        to = link("/devices", **{**_query(wanted), "sort": turned if name == by else usual})
        found[name] = Column(name, to, ("down" if is_down else "up") if name == by else "")
    return found


def _command(wanted: Browse) -> str:
    return "edgekit fleet devices" + (f" --where {quoted(wanted.where)}" if wanted.where else "")


@router.post("/relabel", include_in_schema=False)
def relabel(page: On, given: Form) -> Response:
    """Set and take away labels of the devices that were ticked; the first that cannot be changed stops it."""
    names, back = given.all("device"), given.one("back")
    done = 0
    try:
        gone = tuple(part.strip() for part in given.one("remove").split(",") if part.strip())
        wanted = valid(api.NewLabels(pairs(given.one("labels"), "label"), gone))
        if not names or not (wanted.labels or wanted.remove):
            raise UsageError("tick some devices, and write labels to set (site=lab) or to take away (site)")
        for name in names:
            rest.relabel(page.ctx, page.caller, Expected(), name, wanted)
            done += 1
    except EdgeKitError as error:
        told = f"Not done: {error}" + (f" The {words.devices(done)} before it were changed." if done else "")
        return page.done(_local(back), told)
    return page.done(_local(back), f"Labels of {words.devices(done)} were changed.")


def _local(back: str) -> str:
    return back if back.startswith("/devices") else "/devices"
