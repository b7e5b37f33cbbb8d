"""Bundles that boards may fetch to measure them, and that are in no release."""

from sqlalchemy import Connection, delete, insert, select

from edgekit.bundle import Bundle
from fleet.server.schema_commands import finalists
from fleet.server.store import audit
from fleet.server.store.audit import Who


def add(connection: Connection, bundle: Bundle, *, now: float, who: Who) -> bool:
    """Whether it was not there yet."""
    if connection.execute(select(finalists.c.sha256).where(finalists.c.sha256 == bundle.sha256)).scalar():
        return False
    manifest = bundle.manifest
    connection.execute(
        insert(finalists).values(
            sha256=bundle.sha256,
            name=manifest.name,
            version=manifest.version,
            profile=manifest.profile,
            recipe=manifest.recipe,
            length=bundle.size_bytes,
            published_at=now,
        )
    )
    after = {"profile": manifest.profile, "recipe": manifest.recipe, "sha256": bundle.sha256}
    audit.append(connection, now, who, "bundle.lend", manifest.title, after=after)
    return True


def remove(connection: Connection, sha256: str, *, now: float, who: Who) -> bool:
    """Whether it was there."""
    row = connection.execute(select(finalists).where(finalists.c.sha256 == sha256)).one_or_none()
    if row is None:
        return False
    connection.execute(delete(finalists).where(finalists.c.sha256 == sha256))
    audit.append(
        connection, now, who, "bundle.take-back", f"{row.name}@{row.version}", after={"sha256": sha256}
    )
    return True
