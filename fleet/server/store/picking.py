"""Another pick: of the bundles that were published of a release for one profile, the one that orders name from now on.

Always true
 1. The pick and the alternates stay the same bundles; only which of them is the pick changes, and what was measured of them.
 2. No device's order changes by it: a bundle that any is ordered to run, or a rollout may order, stays the pick.
"""

from collections.abc import Callable, Mapping

from sqlalchemy import Connection, delete, select, update

from edgekit.bundle import Bundle
from edgekit.errors import ConflictError, NotFoundError, UsageError
from edgekit.evidence import decode
from fleet.server.schema import alternates, bundles, desired, evidence
from fleet.server.schema_history import references
from fleet.server.store import audit, experiments, releases, rollouts
from fleet.server.store.audit import Who


def pick(
    connection: Connection,
    key: tuple[str, str, str],
    sha256: str,
    statements: Mapping[str, bytes],
    read: Callable[[str], Bundle],
    *,
    now: float,
    who: Who,
) -> None:
    """`key` is (name, version, profile); `statements` the new evidence by digest.

    Raises: NotFoundError, ConflictError, UsageError, BundleError; nothing is changed then.
    """
    name, version, profile = key
    title = releases.title(name, version)
    own = releases.existing(connection, name, version, profile)
    if own is None:
        raise NotFoundError(f"{title} for {profile} is not published here")
    query = select(alternates.c.sha256).where(
        alternates.c.name == name, alternates.c.version == version, alternates.c.profile == profile
    )
    others = set(connection.execute(query).scalars())
    if sha256 != own.sha256 and sha256 not in others:
        raise NotFoundError(f"{title} for {profile} has no bundle with sha256 {sha256[:12]}…")
    if strange := set(statements) - others - {own.sha256}:
        raise UsageError(f"evidence about {min(strange)[:12]}…, which is no bundle of {title} for {profile}")
    for digest, statement in statements.items():
        decode(statement, sha256=digest)
        _keep(connection, digest, statement, is_alternate=digest in others)
    if sha256 != own.sha256:
        _check_unused(connection, own.sha256, title)
        _exchange(connection, read(own.sha256), read(sha256), now=now, who=who)
    before, after = {"sha256": own.sha256}, {"profile": profile, "sha256": sha256}
    audit.append(connection, now, who, "release.pick", title, before=before, after=after)


def _keep(connection: Connection, sha256: str, statement: bytes, *, is_alternate: bool) -> None:
    if is_alternate:
        change = update(alternates).where(alternates.c.sha256 == sha256)
        connection.execute(change.values(statement=statement))
        return
    connection.execute(delete(evidence).where(evidence.c.sha256 == sha256))
    connection.execute(evidence.insert().values(sha256=sha256, statement=statement))


def _check_unused(connection: Connection, sha256: str, title: str) -> None:
    """Raises: ConflictError."""
    ordered = connection.execute(select(desired.c.device).where(desired.c.sha256 == sha256).limit(1)).scalar()
    if ordered is not None:
        raise ConflictError(
            f"{ordered} is ordered to run {title} as it is picked now; what runs in the field changes by a rollout:"
            " build it under a new version"
        )
    under_way = [rollouts.load(connection, number) for number in rollouts.active_ids(connection)]
    if any(title in {part.title for part in one.spec.parts} for one in under_way):
        raise ConflictError(f"a rollout of {title} is under way; end it first")
    arms = (
        (releases.title(one.name_a, one.version_a), releases.title(one.name_b, one.version_b))
        for one in experiments.running(connection)
    )
    if any(title in both for both in arms):
        raise ConflictError(f"an experiment with {title} is under way; end it first")


def _exchange(connection: Connection, old: Bundle, new: Bundle, *, now: float, who: Who) -> None:
    """Both are published anew, each as what the other was, with the evidence that they have."""
    statements = {one.sha256: _statement(connection, one.sha256) for one in (old, new)}
    for table in (evidence, references):
        connection.execute(delete(table).where(table.c.sha256 == old.sha256))
    connection.execute(delete(bundles).where(bundles.c.sha256 == old.sha256))
    connection.execute(delete(alternates).where(alternates.c.sha256 == new.sha256))
    releases.publish(connection, new, statements[new.sha256], now=now, who=who)
    releases.publish_alternate(connection, old, statements[old.sha256], now=now, who=who)


def _statement(connection: Connection, sha256: str) -> bytes | None:
    try:
        return releases.statement(connection, sha256)
    except NotFoundError:
        return None
