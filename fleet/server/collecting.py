"""Collections of samples: begun, ended, told to devices; and their files.

Always true
 1. A file is kept only where a row names it: what was deleted, or never came to be, is swept away.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from sqlalchemy import Connection

from edgekit.errors import ConflictError, NotPossibleError
from fleet import api
from fleet.rules import collecting as rules
from fleet.rules import selectors
from fleet.rules.collecting import Reasons
from fleet.server.clock import Now
from fleet.server.store import audit, collecting, devices, groups, known, orders
from fleet.server.store.audit import Who
from fleet.server.store.orders import Issuer

ORDERS_AT_ONCE = 200
# A file without a row may be one whose transaction is still to commit.
_YOUNG_S = 600.0
_LOOKED_AT_ONCE = 500


def begin(connection: Connection, wanted: api.NewCollection, to: str, *, now: float, who: Who) -> int:
    """A new collection's number. Raises: UsageError, NotPossibleError, ConflictError."""
    reasons = Reasons(
        wanted.low_confidence,
        rules.parse_percent(wanted.random),
        wanted.labels,
        wanted.drifted,
        wanted.guard,
    )
    reasons.check()
    lasts_s, size = rules.parse_lasts(wanted.lasts), rules.parse_size(wanted.per_day)
    selector = selectors.parse(to)
    everyone = [(row, devices.labels_of(row)) for row in devices.everyone(connection)]
    labels = {name for _, found in everyone for name in found} | {*groups.BUILT_IN}
    selectors.check_names(selector, labels)
    chosen = [
        row.id
        for row, found in everyone
        if row.enrolment and selector.matches(found) and wanted.deployment in devices.deployments_of(row)
    ]
    if not chosen:
        raise NotPossibleError(
            f"no enrolled device that matches {to!r} has the deployment {wanted.deployment!r};"
            " 'edgekit fleet devices' shows what there is"
        )
    values = {
        "deployment": wanted.deployment,
        "selector": to,
        "reasons": msgspec.json.encode(reasons).decode(),
        "most": wanted.most,
        "per_device": wanted.per_device,
        "bytes_a_day": size,
        "until_at": now + lasts_s,
        "created_at": now,
        "created_by": who.name,
    }
    number = collecting.add(connection, values, chosen)
    detail = f"{wanted.deployment} of {len(chosen)} devices ({to}): {reasons.words}; at most {wanted.most}"
    audit.append(connection, now, who, "samples.collect", collecting.label(number), detail, after=wanted)
    return number


def stop(connection: Connection, number: int, *, now: float, who: Who) -> bool:
    """Whether it was active. Raises: NotFoundError."""
    row = collecting.get(connection, number, lock=True)
    if not collecting.is_active(row, now):
        return False
    collecting.end(connection, number, collecting.STOPPED)
    audit.append(
        connection,
        now,
        who,
        "samples.stop",
        collecting.label(number),
        before={"samples": row.taken},
        after={},
    )
    return True


def delete(connection: Connection, number: int, *, now: float, who: Who) -> int:
    """Forget it and its samples; how many. Raises: NotFoundError, ConflictError while it goes on."""
    row = collecting.get(connection, number, lock=True)
    if collecting.is_active(row, now):
        label = collecting.label(number)
        raise ConflictError(f"{label} goes on; stop it first: 'edgekit fleet samples stop {label}'")
    if not collecting.is_told(connection, row):
        raise ConflictError(
            f"{collecting.label(number)} has just ended, and its devices are still being told"
        )
    gone = collecting.remove(connection, number)
    audit.append(
        connection, now, who, "samples.delete", collecting.label(number), before={"samples": gone}, after={}
    )
    return gone


def mark(connection: Connection) -> None:
    """Those that have ended are to be told; a transaction of its own."""
    collecting.mark_ended(connection)


def step(connection: Connection, issuer: Issuer, now: Now) -> bool:
    """Write some of the orders that are due, in a transaction after `mark`; whether there may be more."""
    waiting = collecting.due(connection, ORDERS_AT_ONCE)
    if waiting:
        found = known.lock(connection, waiting)
        rows = {name: row for name, row in found.items() if row.get("decommissioned_at") is None}
        orders.issue_all(connection, issuer, rows, now.wall)
        collecting.written(connection, waiting)
    return len(waiting) == ORDERS_AT_ONCE


# -- files -----------------------------------------------------------------------------------------------------------


def path_of(folder: Path, sha256: str) -> Path:
    return folder / sha256[:2] / f"{sha256}.sample"


def files(folder: Path) -> Iterator[Path]:
    yield from folder.glob("??/*.sample")


def sweep(connection: Connection, folder: Path, *, young_s: float = _YOUNG_S) -> int:
    """Delete files that no row names; how many."""
    found = list(files(folder))
    gone = 0
    for start in range(0, len(found), _LOOKED_AT_ONCE):
        some = found[start : start + _LOOKED_AT_ONCE]
        here = collecting.known(connection, [path.stem for path in some])
        for path in some:
            with contextlib.suppress(FileNotFoundError):
                if path.stem not in here and time.time() - path.stat().st_mtime >= young_s:
                    path.unlink()
                    gone += 1
    return gone
