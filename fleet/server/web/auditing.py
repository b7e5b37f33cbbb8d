"""The audit log, a readable line for each change."""

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Annotated, NamedTuple

import msgspec
from fastapi import APIRouter, Depends, Query, Response

from fleet.audit_entry import Entry
from fleet.server.store import glance
from fleet.server.store.glance import Look
from fleet.server.web import words
from fleet.server.web.frame import On

router = APIRouter(tags=["page"])
ON_A_PAGE = 50
# From so many on alike lines are one.
_MANY = 4
# What was done, as the middle of a sentence between who and whom. One that is missing here is shown by its name.
DID: Mapping[str, str] = {
    "rollout.start": "started rollout",
    "rollout.queue": "queued rollout",
    "rollout.turn": "turned rollout",
    "rollout.pause": "paused rollout",
    "rollout.resume": "resumed rollout",
    "rollout.approve": "approved the next stage of rollout",
    "rollout.abort": "aborted rollout",
    "rollout.rollback": "rolled back rollout",
    "rollout.hold": "held a profile of rollout",
    "rollout.release": "released a profile of rollout",
    "rollout.retry": "tried failed devices again of rollout",
    "device.invite": "made an enrolment file for",
    "device.enrol": "enrolled",
    "device.renew": "renewed the certificate of",
    "device.approve": "let join",
    "device.reject": "turned away",
    "device.label": "changed the labels of",
    "device.deployment": "added a deployment to",
    "device.revoke": "took away the identity of",
    "device.decommission": "took out of service",
    "device.delete": "deleted",
    "device.retry": "told to try again",
    "device.duplicate": "found two machines under the name",
    "device.former": "heard an older board of",
    "device.hardware": "saw other hardware under the name",
    "device.command": "asked something of",
    "bundle.publish": "published",
    "bundle.publish-alternate": "published an alternate of",
    "bundle.lend": "lent to boards for measuring",
    "bundle.take-back": "took back what was lent for measuring:",
    "release.pick": "picked another bundle of",
    "release.block": "blocked",
    "release.unblock": "unblocked",
    "assignment.add": "assigned",
    "assignment.remove": "took back assignment",
    "samples.collect": "asked for samples in collection",
    "samples.stop": "stopped collection",
    "samples.delete": "deleted the samples of collection",
    "shadow.start": "started shadow",
    "shadow.stop": "stopped shadow",
    "experiment.start": "started experiment",
    "experiment.stop": "stopped experiment",
    "experiment.adopt": "adopted an arm of experiment",
    "batch.revoke": "withdrew batch",
    "fleet.init": "made the fleet",
    "fleet.freeze": "froze",
    "fleet.unfreeze": "thawed",
    "fleet.move": "moved the fleet to",
    "fleet.restore": "restored the fleet from",
    "alert-target.add": "added the alert target",
    "alert-target.remove": "removed the alert target",
    "alert.acknowledge": "has seen alert",
    "token.add": "made token",
    "token.revoke": "revoked token",
    "user.add": "added user",
    "user.change": "changed user",
    "user.role": "changed the role of",
    "user.remove": "removed user",
    "user.block": "blocked user",
    "user.unblock": "unblocked user",
    "user.password": "set the password of",
    "session.begin": "signed in",
    "session.end": "signed out",
    "session.refuse": "was refused",
    "metadata.publish": "published metadata",
    "metadata.order-key": "listed the order key",
    "metadata.online-key": "listed the online key",
}


class Change(NamedTuple):
    """A label, a role, a state before and after."""

    name: str
    before: str
    after: str


class Line(NamedTuple):
    """`to` is where the subject is shown, "" where nowhere."""

    entry: Entry
    who: str
    did: str
    subject: str
    to: str
    changes: tuple[Change, ...]


def lines(entries: Iterable[Entry]) -> list[Line]:
    return [line(entry) for entry in entries]


def gathered(entries: Iterable[Entry]) -> list[Line]:
    """The same, but what many devices did one after the other is one line: the newest, and how many more."""
    found = []
    for _, some in groupby(
        entries, key=lambda entry: (entry.action, entry.actor.partition(":")[0] == "device")
    ):
        alike = list(some)
        kind, _, name = alike[0].actor.partition(":")
        if kind != "device" or len(alike) < _MANY:
            found += lines(alike)
            continue
        others = words.devices(len({entry.actor for entry in alike} - {alike[0].actor}))
        found.append(line(alike[0])._replace(who=f"{name} and {others}", changes=()))
    return found


def line(entry: Entry) -> Line:
    kind, _, name = entry.actor.partition(":")
    who = {"token": f"token {name}", "device": name, "fleet": "the fleet"}.get(kind, name or kind)
    subject = "" if entry.action.startswith("session.") else entry.subject
    if kind == "device" and subject == name:
        subject = ""
    return Line(entry, who, DID.get(entry.action, entry.action), subject, _place(entry), _changes(entry))


def _place(entry: Entry) -> str:
    kind = entry.action.partition(".")[0]
    subject = entry.subject
    if kind in ("bundle", "release") and "@" in subject:
        return f"/releases/{subject.replace('@', '/', 1)}"
    base = {"rollout": "/rollouts", "device": "/devices", "experiment": "/experiments"}.get(kind, "")
    # A batch of devices has no page.
    return f"{base}/{subject}" if base and subject and " " not in subject else ""


def _changes(entry: Entry) -> tuple[Change, ...]:
    """What differs, where before and after are alike enough to be put side by side."""
    before, after = _decoded(entry.before), _decoded(entry.after)
    if not isinstance(before, dict) or not isinstance(after, dict):
        if before is None or after is None:
            return ()
        return (Change("", _text(before), _text(after)),)
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return tuple(Change(name, _text(before.get(name)), _text(after.get(name))) for name in names)


def _decoded(text: str) -> object:
    try:
        found: object = msgspec.json.decode(text) if text else None
    except msgspec.DecodeError:
        return None
    return found


def _text(value: object) -> str:
    if value is None:
        return words.NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= 80 else text[:79] + "…"


def _asked(
    who: Annotated[str, Query(max_length=64)] = "",
    what: Annotated[str, Query(max_length=64)] = "",
    subject: Annotated[str, Query(max_length=200)] = "",
    before: Annotated[int, Query(ge=1, le=2**31 - 1)] = 2**31 - 1,
) -> Look:
    return Look(who.strip(), what.strip(), subject.strip(), before)


@router.get("/audit", include_in_schema=False)
def listing(page: On, look: Annotated[Look, Depends(_asked)], verify: str = "") -> Response:
    with page.ctx.database.read() as connection:
        found = glance.entries(connection, look, ON_A_PAGE + 1)
    # Going over the whole log takes long where it is long: only when somebody asks.
    verdict = page.ctx.notary.examine(page.ctx.clock()) if verify else None
    return page.show(
        "audit.html.jinja",
        lines=lines(found[:ON_A_PAGE]),
        look=look,
        kinds=sorted({name.partition(".")[0] for name in DID}),
        older=found[ON_A_PAGE - 1].id if len(found) > ON_A_PAGE else 0,
        is_first=look.before == 2**31 - 1,
        verdict=verdict,
        moment=words.moment,
    )
