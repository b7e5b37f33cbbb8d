"""The rollouts: all, one, starting one."""

import shlex
from datetime import timedelta
from typing import Annotated, Any, NamedTuple

import msgspec
from fastapi import APIRouter, Query, Response
from sqlalchemy import Connection

from edgekit.errors import EdgeKitError, NotFoundError
from fleet import api
from fleet.rules.members import BAD, MOVING, Member
from fleet.rules.retry import RETRIES_IN
from fleet.rules.rollout import ACTIVE, Rollout, Status
from fleet.server.api import rollouts as rest
from fleet.server.store import glance, history, releases, rollouts
from fleet.server.store.glance import Tally
from fleet.server.web import charts, memory, track, words
from fleet.server.web.forms import Form, valid
from fleet.server.web.frame import On, Page, link
from fleet.server.web.track import Segment, Sentence

router = APIRouter(tags=["page"])
ON_A_PAGE, MEMBERS = 50, 25
# What a chip of the devices' table stands for, and the order in which it shows them: who needs a look comes first.
GROUPS: dict[str, tuple[str, ...]] = {
    "failed": tuple(sorted(BAD - {"rolled_back"})),
    "moving": tuple(sorted(MOVING)),
    "waiting": ("pending",),
    "done": ("succeeded",),
    "gone back": ("rolled_back",),
}


class Card(NamedTuple):
    """A rollout as lists and its own page show it."""

    head: Rollout
    title: str
    steps: tuple[Segment, ...]
    waits: Sentence
    counts: dict[str, int]
    tallies: list[Tally]
    shift: timedelta

    @property
    def is_active(self) -> bool:
        return self.head.status in ACTIVE

    @property
    def created(self) -> Any:
        return self.head.created_at + self.shift


def card(connection: Connection, page: Page, head: Rollout) -> Card:
    now = page.ctx.time.now()
    shift = timedelta(seconds=now.wall - now.steady)
    tallies = memory.of(page.ctx.database).counted(
        ("tallies", head.id),
        lambda: glance.tallies(connection, head.id),
        version=rollouts.revision(connection, head.id),
    )
    steps = track.track(head, tallies)
    waits = track.waits_for(head, tallies, steps, now=words.moment(now.wall), shift=shift)
    return Card(head, head.spec.title, steps, waits, track.counts(tallies), tallies, shift)


def is_seen(connection: Connection, page: Page, head: Rollout) -> bool:
    """Whether the rollout is within the reach of the one who looks."""
    scope = page.caller.scope
    return not scope.is_limited or glance.is_within(connection, head.id, scope.text)


def found(connection: Connection, page: Page, rollout_id: str) -> Rollout:
    """Raises: NotFoundError, also for one out of reach."""
    head = glance.head(connection, rollouts.parse_id(rollout_id))
    if head is None or not is_seen(connection, page, head):
        raise NotFoundError(f"there is no rollout {rollout_id[:40]}; the list of rollouts shows them all")
    return head


@router.get("/rollouts", include_in_schema=False)
def listing(page: On, before: Annotated[int, Query(ge=1, le=2**31 - 1)] = 2**31 - 1) -> Response:
    with page.ctx.database.read() as connection:
        heads = glance.heads(connection, before=before, limit=ON_A_PAGE + 1)
        seen = [head for head in heads[:ON_A_PAGE] if is_seen(connection, page, head)]
        active = [card(connection, page, head) for head in seen if head.status in ACTIVE]
    now = page.ctx.time.now()
    return page.show(
        "rollouts.html.jinja",
        active=active,
        ended=[head for head in seen if head.status not in ACTIVE],
        shift=timedelta(seconds=now.wall - now.steady),
        older=heads[ON_A_PAGE - 1].id if len(heads) > ON_A_PAGE else 0,
        refused=page.why_not("GET", "/rollouts/start"),
    )


_TEXTS = (
    "release", "to", "stages", "soak", "on_violation", "deadline", "finish_by", "holdback", "deployment", "probation",
    "approve", "rate", "time_zone", "site_bandwidth", "jitter",
)  # fmt: skip


@router.get("/rollouts/start", include_in_schema=False)
def ask(page: On, release: str = "", to: str = "", like: str = "") -> Response:
    """The form, empty, for a release, or filled as an earlier rollout was."""
    wanted = api.NewRollout(release=release, to=to, gates=("error_rate < 1%",))
    if like:
        with page.ctx.database.read() as connection:
            wanted = rollouts.wanted(connection, found(connection, page, like).id)
    return _form(page, wanted)


def _form(
    page: Page, wanted: api.NewRollout, *, plan: api.Plan | None = None, error: str = "", status: int = 200
) -> Response:
    with page.ctx.database.read() as connection:
        known = releases.everything(connection)
    return page.show(
        "start.html.jinja",
        status=status,
        wanted=wanted,
        known=[releases.title(one.name, one.version) for one in known],
        plan=plan,
        error=error,
        command=_command(wanted),
    )


@router.post("/rollouts/start", include_in_schema=False)
def start(page: On, given: Form) -> Response:
    """First the plan; then, with that plan in sight, the start."""
    is_start = given.one("do") == "start"
    wanted = api.NewRollout(release="", to="")
    try:
        wanted = _wanted(given)
        answer = rest.start(page.ctx, page.caller, msgspec.structs.replace(wanted, dry_run=not is_start))
    except EdgeKitError as error:
        return _form(page, wanted, error=str(error), status=error.http_status)
    made = msgspec.json.decode(answer.body, type=api.RolloutAnswer)
    if made.rollout is None:
        return _form(page, wanted, plan=made.plan)
    return page.done(
        f"/rollouts/{made.rollout.id}", f"Rollout {made.rollout.id} of {made.plan.release} has begun."
    )


def _wanted(given: Form) -> api.NewRollout:
    """Raises: UsageError."""
    texts: dict[str, Any] = {name: text for name in _TEXTS if (text := given.one(name))}
    lines = {
        name: tuple(x.strip() for x in given.one(name).splitlines() if x.strip())
        for name in ("gates", "windows")
    }
    return valid(
        api.NewRollout(
            **{"release": "", "to": "", **texts, **lines},
            at_once=given.number("at_once", "devices at once"),
            per_site=given.number("per_site", "devices per site"),
            queue=given.has("queue"),
        )
    )


def _command(wanted: api.NewRollout) -> str:
    """The same, to type."""
    parts = ["edgekit fleet rollout start", quoted(wanted.release)]
    usual = api.NewRollout(release="", to="")
    for name in ("to", *(name for name in _TEXTS if name not in ("release", "to")), "at_once", "per_site"):
        value = getattr(wanted, name)
        if value and value != getattr(usual, name):
            parts.append(f"--{name.replace('_', '-')} {quoted(str(value))}")
    parts += [f"--gate {quoted(gate)}" for gate in wanted.gates]
    parts += [f"--window {quoted(window)}" for window in wanted.windows]
    return " ".join([*parts, *(["--queue"] if wanted.queue else [])])


# Moments of a chart: a rollout of days is drawn by the hour, so that its page is no longer than that of one of an hour.
_POINTS = 120


def quoted(text: str) -> str:
    """For a shell."""
    return shlex.quote(text)


@router.get("/rollouts/{rollout_id}", include_in_schema=False)
def show(
    page: On, rollout_id: str, only: str = "", after: Annotated[str, Query(max_length=80)] = ""
) -> Response:
    with page.ctx.database.read() as connection:
        head = found(connection, page, rollout_id)
        one = card(connection, page, head)
        groups = {name: sum(one.counts.get(state, 0) for state in states) for name, states in GROUPS.items()}
        groups = {name: many for name, many in groups.items() if many}
        members, following = _members(connection, head.id, [only] if only in GROUPS else list(groups), after)
        points = history.of_rollout(connection, head.id, most=_POINTS)
    here = f"/rollouts/{head.label}"
    return page.show(
        "rollout.html.jinja",
        one=one,
        head=head,
        here_path=here,
        groups=groups,
        only=only if only in GROUPS else "",
        members=members,
        is_first=not after,
        following=link(here, only=only, after=following) if following else "",
        charts=charts.of_rollout(points, head),
        verbs=_verbs(page, one),
        held=head.stopped,
        can_repeat=not page.why_not("GET", "/rollouts/start"),
    )


def _members(connection: Connection, rollout: int, groups: list[str], after: str) -> tuple[list[Member], str]:
    """A page of the members of these groups, one group after the other, and where the next page begins.

    `after` is `GROUP:DEVICE`, where the page before ended.
    """
    group, _, name = after.partition(":")
    at = groups.index(group) if group in groups else 0
    members: list[Member] = []
    for number in range(at, len(groups)):
        left = MEMBERS + 1 - len(members)
        states, behind = GROUPS[groups[number]], name if number == at else ""
        some = glance.members_page(connection, rollout, states=states, after=behind, limit=left)
        if len(some) == left:
            # One more than fits: the page ends here, and the next begins behind the last that is shown.
            last = some[-2] if len(some) > 1 else None
            shown = [*members, *some[:-1]]
            end = f"{groups[number]}:{last.device if last else behind}"
            return shown, end
        members += some
    return members, ""


class VerbLink(NamedTuple):
    """A button: where it is refused, why."""

    verb: str
    label: str
    is_first: bool
    refused: str


def possible(one: Card) -> dict[str, bool]:
    """What can be done to it as it is now, and what cannot."""
    head = one.head
    return {
        "approve": head.awaits is not None and head.status in (Status.RUNNING, Status.PAUSED),
        "pause": head.status is Status.RUNNING,
        "resume": head.status is Status.PAUSED,
        "retry": head.status in RETRIES_IN and track.failed(one.tallies) > 0,
        "abort": head.status in (Status.RUNNING, Status.PAUSED, Status.QUEUED),
        "rollback": head.status in (Status.RUNNING, Status.PAUSED, Status.COMPLETED),
    }


def _verbs(page: Page, one: Card) -> list[VerbLink]:
    head, refused = one.head, page.why_not("POST", "/rollouts/{rollout_id}/{verb}")
    labels = {
        "approve": f"Approve stage {(head.awaits or 0) + 1}", "pause": "Pause", "resume": "Resume",
        "retry": "Try failed devices again", "abort": "Abort", "rollback": "Roll back",
    }  # fmt: skip
    return [
        VerbLink(verb, labels[verb], verb in ("approve", "resume"), refused)
        for verb, holds in possible(one).items()
        if holds
    ]
