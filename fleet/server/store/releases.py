"""Releases, their bundles and the evidence about them.

A version of a profile is one bundle for ever: the same digest again is no change, another digest is refused.
"""

import re
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, exists, insert, select, update

from edgekit import evidence as evidences
from edgekit.bundle import Bundle
from edgekit.errors import ConflictError, NotFoundError, UsageError
from edgekit.manifest import Reference
from fleet.api import BundleView, ReleaseView
from fleet.server.schema import alternates, bundles, evidence, releases
from fleet.server.schema_history import references
from fleet.server.store import audit
from fleet.server.store.audit import Who

BundleRow = Row[Any]


_DIGEST = re.compile(r"[0-9a-f]{64}")
_TITLE = re.compile(r"([a-z0-9][a-z0-9._-]{0,63})@([0-9A-Za-z][0-9A-Za-z.+_-]{0,63})")


def title(name: str, version: str) -> str:
    return f"{name}@{version}"


def parse_title(text: str) -> tuple[str, str]:
    """(name, version) of `NAME@VERSION`. Raises: UsageError."""
    found = _TITLE.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} is no release; write NAME@VERSION, e.g. digits@1.2.0")
    return found[1], found[2]


def check_digest(text: str) -> None:
    """Raises: NotFoundError of what no bundle can be called."""
    if not _DIGEST.fullmatch(text):
        raise NotFoundError(f"{text[:80]!r} is no sha256")


def existing(connection: Connection, name: str, version: str, profile: str) -> BundleRow | None:
    query = select(bundles).where(
        bundles.c.name == name, bundles.c.version == version, bundles.c.profile == profile
    )
    return connection.execute(query).one_or_none()


def check_free(connection: Connection, name: str, version: str, profile: str, sha256: str) -> bool:
    """True if exactly this bundle is published already. Raises: ConflictError if another one is."""
    row = existing(connection, name, version, profile)
    if row is not None and row.sha256 != sha256:
        raise ConflictError(
            f"{title(name, version)} for {profile} is published already with sha256 {row.sha256[:12]}…, "
            f"this file has {sha256[:12]}…; a version never changes: build it under a new version"
        )
    return row is not None


def publish(
    connection: Connection,
    bundle: Bundle,
    statement: bytes | None,
    *,
    now: float,
    who: Who,
) -> bool:
    """Register a checked bundle; True if it was there already. Raises: ConflictError."""
    manifest = bundle.manifest
    was_there = check_free(connection, manifest.name, manifest.version, manifest.profile, bundle.sha256)
    if not was_there:
        _ensure_release(connection, manifest.name, manifest.version, now)
        connection.execute(insert(bundles).values(format=manifest.format, **_columns(bundle, now)))
        after = {"profile": manifest.profile, "sha256": bundle.sha256}
        audit.append(connection, now, who, "bundle.publish", manifest.title, after=after)
    _keep_reference(connection, bundle)
    has_statement = connection.execute(
        select(evidence.c.sha256).where(evidence.c.sha256 == bundle.sha256)
    ).scalar()
    if statement is not None and has_statement is None:
        connection.execute(insert(evidence).values(sha256=bundle.sha256, statement=statement))
    peak_mb = peak_memory_mb(bundle, statement)
    if peak_mb is not None and (statement is not None or not was_there):
        connection.execute(
            update(bundles).where(bundles.c.sha256 == bundle.sha256).values(peak_memory_mb=peak_mb)
        )
    return was_there


def _keep_reference(connection: Connection, bundle: Bundle) -> None:
    """Also of one that an older fleet published, when it is published again."""
    known = connection.execute(
        select(references.c.sha256).where(references.c.sha256 == bundle.sha256)
    ).scalar()
    if known is None:
        data = msgspec.json.encode(bundle.manifest.reference)
        connection.execute(insert(references).values(sha256=bundle.sha256, reference=data))


def reference_of(connection: Connection, sha256: str) -> Reference | None:
    """What a bundle was judged on; None of one that an older fleet published."""
    data = connection.execute(select(references.c.reference).where(references.c.sha256 == sha256)).scalar()
    return None if data is None else msgspec.json.decode(data, type=Reference)


def peak_memory_mb(bundle: Bundle, statement: bytes | None) -> float | None:
    """What a process takes with it at most: as measured at build, else as its contract promises, else not known.

    The measured figure is the evidence's, not the manifest's: the same source gives a bundle of the same bytes.
    """
    if statement is not None:
        measured = evidences.decode(statement, sha256=bundle.sha256).predicate.memory_mb
        if measured is not None and measured.value > 0:
            return measured.value
    return bundle.manifest.contract.memory_mb


def publish_alternate(
    connection: Connection,
    bundle: Bundle,
    statement: bytes | None,
    *,
    now: float,
    who: Who,
) -> bool:
    """Register a checked bundle beside the release's own of its profile; True if it was there already.

    Raises: ConflictError without that one, if it is that one, or for another of the same recipe.
    """
    manifest = bundle.manifest
    where = f"{title(manifest.name, manifest.version)} for {manifest.profile}"
    own = existing(connection, manifest.name, manifest.version, manifest.profile)
    if own is None:
        raise ConflictError(f"{where} is not published here yet; an alternate needs the picked bundle first")
    if own.sha256 == bundle.sha256:
        raise ConflictError(f"{where} has this bundle as its picked one already")
    key = (manifest.name, manifest.version, manifest.profile, manifest.recipe)
    columns = (alternates.c.name, alternates.c.version, alternates.c.profile, alternates.c.recipe)
    query = select(alternates).where(*(column == value for column, value in zip(columns, key, strict=True)))
    row = connection.execute(query).one_or_none()
    if row is not None:
        if row.sha256 != bundle.sha256:
            raise ConflictError(
                f"{where} has another alternate of {manifest.recipe}, sha256 {row.sha256[:12]}…;"
                " a version never changes: build it under a new version"
            )
        return True
    connection.execute(
        insert(alternates).values(recipe=manifest.recipe, statement=statement, **_columns(bundle, now))
    )
    after = {"profile": manifest.profile, "recipe": manifest.recipe, "sha256": bundle.sha256}
    audit.append(connection, now, who, "bundle.publish-alternate", manifest.title, after=after)
    return False


def _columns(bundle: Bundle, now: float) -> dict[str, Any]:
    """What is kept of any published bundle, the picked one or an alternate."""
    manifest = bundle.manifest
    return {
        "sha256": bundle.sha256,
        "name": manifest.name,
        "version": manifest.version,
        "profile": manifest.profile,
        "length": bundle.size_bytes,
        "engine": manifest.engine.name,
        "engine_versions": manifest.engine.versions,
        "published_at": now,
    }


def view_alternate(connection: Connection, sha256: str) -> BundleView:
    return _alternate_view(connection.execute(select(alternates).where(alternates.c.sha256 == sha256)).one())


def _alternate_view(row: BundleRow) -> BundleView:
    return _view(row, has_evidence=row.statement is not None, alternate=row.recipe)


def _ensure_release(connection: Connection, name: str, version: str, now: float) -> None:
    query = select(releases.c.name).where(releases.c.name == name, releases.c.version == version)
    if connection.execute(query).scalar() is None:
        connection.execute(insert(releases).values(name=name, version=version, published_at=now))


def bundle(connection: Connection, sha256: str) -> BundleRow:
    """Raises: NotFoundError."""
    row = connection.execute(select(bundles).where(bundles.c.sha256 == sha256)).one_or_none()
    if row is None:
        raise NotFoundError(f"no bundle with sha256 {sha256[:12]}… is published here")
    return row


def is_published(connection: Connection, sha256: str) -> bool:
    """Whether it is some release's, picked or alternate."""
    return any(
        connection.execute(select(table.c.sha256).where(table.c.sha256 == sha256)).scalar() is not None
        for table in (bundles, alternates)
    )


def titles(connection: Connection, digests: list[str]) -> dict[str, str]:
    """Digest → NAME@VERSION, of those of these bundles that are published here."""
    query = select(bundles.c.sha256, bundles.c.name, bundles.c.version).where(bundles.c.sha256.in_(digests))
    return {row.sha256: title(row.name, row.version) for row in connection.execute(query)}


def statement(connection: Connection, sha256: str) -> bytes:
    """The evidence of a bundle. Raises: NotFoundError."""
    found = connection.execute(select(evidence.c.statement).where(evidence.c.sha256 == sha256)).scalar()
    if found is None:
        found = connection.execute(
            select(alternates.c.statement).where(alternates.c.sha256 == sha256)
        ).scalar()
    if found is None:
        raise NotFoundError(f"no evidence was published with {sha256[:12]}…")
    return bytes(found)


def by_profile(connection: Connection, name: str, version: str) -> dict[str, BundleRow]:
    """The bundles of a release, by profile. Raises: NotFoundError."""
    query = select(bundles).where(bundles.c.name == name, bundles.c.version == version)
    found = {row.profile: row for row in connection.execute(query)}
    if not found:
        raise NotFoundError(
            f"no release {title(name, version)} is published here; 'edgekit fleet releases' lists them"
        )
    return found


def view(connection: Connection, sha256: str) -> BundleView:
    row = connection.execute(_views().where(bundles.c.sha256 == sha256)).one()
    return _view(row, has_evidence=bool(row.has_evidence))


def everything(connection: Connection) -> tuple[ReleaseView, ...]:
    """All releases, newest first, with their bundles by profile."""
    by_release: dict[tuple[str, str], list[BundleView]] = {}
    for row in connection.execute(_views().order_by(bundles.c.profile)):
        by_release.setdefault((row.name, row.version), []).append(
            _view(row, has_evidence=bool(row.has_evidence))
        )
    beside: dict[tuple[str, str], list[BundleView]] = {}
    for row in connection.execute(select(alternates).order_by(alternates.c.profile, alternates.c.recipe)):
        beside.setdefault((row.name, row.version), []).append(_alternate_view(row))
    query = select(releases).order_by(releases.c.published_at.desc(), releases.c.name)
    return tuple(
        ReleaseView(
            name=row.name,
            version=row.version,
            published=datetime.fromtimestamp(row.published_at, UTC),
            bundles=tuple(by_release.get((row.name, row.version), ())),
            alternates=tuple(beside.get((row.name, row.version), ())),
        )
        for row in connection.execute(query)
    )


def _views() -> Any:
    has_evidence = exists().where(evidence.c.sha256 == bundles.c.sha256).label("has_evidence")
    return select(bundles, has_evidence)


def _view(row: BundleRow, *, has_evidence: bool, alternate: str = "") -> BundleView:
    return BundleView(
        name=row.name,
        version=row.version,
        profile=row.profile,
        sha256=row.sha256,
        length=row.length,
        engine=f"{row.engine} {row.engine_versions}",
        published=datetime.fromtimestamp(row.published_at, UTC),
        has_evidence=has_evidence,
        alternate=alternate,
    )
