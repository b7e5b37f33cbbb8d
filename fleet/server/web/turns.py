"""What a person does to a rollout: a page says first what will happen, and asks.

Always true
 1. Nothing happens on the first page. What it says is counted from the same rows that the act itself will change.
 2. What cannot be taken back asks for the rollout's name to be typed.
 3. The act is the API's own endpoint: its refusals, its audit entry.
"""

from collections.abc import Callable
from typing import NamedTuple

from fastapi import APIRouter, Response

from edgekit.errors import EdgeKitError, NotFoundError, UsageError
from fleet import api
from fleet.rules.retry import RETRIES_IN
from fleet.rules.rollout import Status, Verb
from fleet.server.api import retry as retry_rest
from fleet.server.api import rollouts as rest
from fleet.server.api.matching import Expected
from fleet.server.store import glance
from fleet.server.store.glance import Previous
from fleet.server.web import rollouts, track, words
from fleet.server.web.forms import Form, valid
from fleet.server.web.frame import On, Page
from fleet.server.web.rollouts import Card

router = APIRouter(tags=["page"])
# Releases to go back to that are named one by one.
_MOST_LINES = 6


class Act(NamedTuple):
    """`says` tells in sentences what will happen. `is_final`: it cannot be taken back."""

    title: str
    button: str
    says: Callable[[Card, list[Previous]], list[str]]
    done: str
    is_final: bool = False
    asks_profile: bool = False


def _pause(one: Card, _before: list[Previous]) -> list[str]:
    moving = sum(one.counts.get(state, 0) for state in rollouts.GROUPS["moving"])
    finish = words.either(moving, "The one device that moves finishes", "The {n} devices that move finish")
    told = f"{finish}, and what it comes to is kept" if moving else "No device is moving now"
    return [f"No new orders go out. {told}.", "It goes on where it was when it is resumed."]


def _resume(one: Card, _before: list[Previous]) -> list[str]:
    failed = track.failed(one.tallies)
    excused = words.either(
        failed, "The device that failed is excused", "The {n} devices that failed are excused"
    )
    told = excused if failed else "Nothing has failed so far"
    return [
        f"It goes on with stage {one.head.stage + 1} of {len(one.steps)}.",
        f"{told}; what was spent of its error budget stays spent.",
    ]


def _approve(one: Card, _before: list[Previous]) -> list[str]:
    at = one.head.awaits
    assert at is not None, "asked only where one is waited for"
    step = one.steps[at]
    told = words.either(step.devices, "one more device is told", "{n} more devices are told")
    return [f"Stage {at + 1} ({step.words}) begins: {told} to run {one.title}."]


def _abort(one: Card, before: list[Previous]) -> list[str]:
    back, stay = sum(p.others for p in before), sum(p.succeeded for p in before)
    returns = words.either(
        back, "One device goes back to what it ran before", "{n} devices go back to what each ran before"
    )
    stays = words.either(
        stay, "The one device that runs it already stays", "The {n} devices that run it already stay"
    )
    return [
        f"{returns}: those that have not settled on {one.title}." if back else "No device has to go back.",
        f"{stays} on it." if stay else f"No device runs {one.title} by it yet.",
        "It cannot be resumed after that.",
    ]


def _rollback(one: Card, before: list[Previous]) -> list[str]:
    if not before:
        return ["No device was told to move yet; the rollout ends."]
    found = []
    for group in before[:_MOST_LINES]:
        many = words.either(group.succeeded + group.others, "One device goes", "{n} devices go")
        found.append(f"{many} back to {group.title or 'running nothing, as before'}.")
    if len(before) > _MOST_LINES:
        found.append(f"The others go back to {len(before) - _MOST_LINES} more releases, each to its own.")
    return [
        *found,
        f"Nothing of {one.title} stays where this rollout put it. It cannot be resumed after that.",
    ]


def _retry(one: Card, _before: list[Previous]) -> list[str]:
    told = words.either(
        track.failed(one.tallies),
        "One device that failed is told to try again; its failure counts",
        "{n} devices that failed are told to try again; their failures count",
    )
    return [f"{told} no more, and the new outcome does."]


def _hold(one: Card, _before: list[Previous]) -> list[str]:
    return [f"No more orders of {one.title} for devices of one profile; the others go on."]


def _release(_one: Card, _before: list[Previous]) -> list[str]:
    return ["Devices of the profile get their orders again, as their stage comes."]


ACTS: dict[str, Act] = {
    "pause": Act("Pause", "Pause it", _pause, "is paused"),
    "resume": Act("Resume", "Resume it", _resume, "goes on"),
    "approve": Act("Approve", "Let the stage begin", _approve, "goes on: the stage begins"),
    "abort": Act("Abort", "Abort it", _abort, "is aborted", is_final=True),
    "rollback": Act("Roll back", "Roll it back", _rollback, "goes back", is_final=True),
    "retry": Act("Try again", "Try them again", _retry, "tries its failed devices again"),
    "hold": Act("Hold a profile", "Hold it", _hold, "holds the profile", asks_profile=True),
    "release": Act(
        "Release a profile", "Release it", _release, "goes on with the profile", asks_profile=True
    ),
}


def _not_now(one: Card, verb: str) -> str:
    if verb == "approve" and one.head.awaits is None:
        return "It waits for no approval now."
    if verb == "retry" and one.head.status in RETRIES_IN:
        return "No device of it has failed."
    return f"It is {words.state(one.head.status.value).word}: nothing is left to do here."


_FORWARD = frozenset({"approve", "resume", "release"})


@router.get("/rollouts/{rollout_id}/{verb}", include_in_schema=False)
def ask(page: On, rollout_id: str, verb: str) -> Response:
    return _asked(page, rollout_id, verb)


def _asked(page: Page, rollout_id: str, verb: str, *, error: str = "", status: int = 200) -> Response:
    act = _act(verb)
    with page.ctx.database.read() as connection:
        head = rollouts.found(connection, page, rollout_id)
        one = rollouts.card(connection, page, head)
        before = glance.previous(connection, head.id)
    command = f"edgekit fleet rollout {verb} {head.label}"
    is_possible = rollouts.possible(one).get(verb, head.status in (Status.RUNNING, Status.PAUSED))
    says = act.says(one, before) if is_possible else [_not_now(one, verb)]
    profiles = sorted({tally.profile for tally in one.tallies})
    return page.show(
        "act.html.jinja",
        status=status,
        title=f"{act.title} {head.label}: {one.title}",
        says=says,
        is_possible=is_possible,
        button=act.button,
        is_final=act.is_final,
        typed=head.label if act.is_final else "",
        profiles=[p for p in profiles if (p in head.stopped) == (verb == "release")]
        if act.asks_profile
        else [],
        asks_time=verb == "resume" and page.now >= head.finish_at + one.shift,
        command=command + (" --profile PROFILE" if act.asks_profile else ""),
        back=f"/rollouts/{head.label}",
        to=f"/rollouts/{head.label}/{verb}",
        fields=(),
        # Two may look at once, and what leads forward was decided by what was seen. What stops or turns back is never in
        # vain because the rollout went on meanwhile.
        hidden={"tag": rest.tag(head)} if verb in _FORWARD else {},
        error=error,
    )


@router.post("/rollouts/{rollout_id}/{verb}", include_in_schema=False)
def do(page: On, rollout_id: str, verb: str, given: Form) -> Response:
    act = _act(verb)
    try:
        if act.is_final and given.one("typed") != rollout_id:
            raise UsageError(f"type {rollout_id} to say that you mean this rollout; nothing was done")
        if verb == "retry":
            retry_rest.retry_rollout(page.ctx, page.caller, rollout_id, valid(api.Retry(given.all("device"))))
        else:
            how = api.Turn(given.one("profile"), given.one("finish_by"))
            seen = Expected(frozenset({tag}) if (tag := given.one("tag")) else None)
            rest.turn(page.ctx, page.caller, rollout_id, _verb(verb), seen=seen, how=valid(how))
    except EdgeKitError as error:
        return _asked(page, rollout_id, verb, error=str(error), status=error.http_status)
    return page.done(f"/rollouts/{rollout_id}", f"Rollout {rollout_id} {act.done}.")


def _act(verb: str) -> Act:
    """Raises: NotFoundError."""
    try:
        return ACTS[verb]
    except KeyError as error:
        raise NotFoundError(f"there is nothing like {verb[:40]!r} to do to a rollout") from error


def _verb(verb: str) -> Verb:
    found: dict[str, Verb] = {
        "pause": "pause", "resume": "resume", "abort": "abort", "rollback": "rollback", "approve": "approve",
        "hold": "hold", "release": "release",
    }  # fmt: skip
    return found[verb]
