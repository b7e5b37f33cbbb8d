"""The tables of commands, and of bundles that are here only to be measured, beside those of `schema`."""

from sqlalchemy import BigInteger, Column, Float, ForeignKey, Index, Integer, LargeBinary, String, Table, Text

from fleet.server.schema import metadata

# What was asked of a device once (`action` is JSON of `edgekit.wire.commands`), signed in the transaction that wrote the
# row; the row is its own place in the outbox. `published_at` is steady: when it went out last.
commands = Table(
    "commands",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("device", String(64), ForeignKey("devices.id"), nullable=False),
    Column("enrolment", Integer, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("action", Text, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    Column("actor", String(100), nullable=False),
    Column("issued_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("published_at", Float),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("payload", Text),
    Column("changed_at", Float, nullable=False),
    Index("ix_commands_device", "device", "issued_at"),
    Index("ix_commands_state", "state", "issued_at"),
)

# Bundles that boards may fetch for a measurement and for nothing else; they are in no release.
finalists = Table(
    "finalists",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("profile", String(64), nullable=False),
    Column("recipe", String(200), nullable=False),
    Column("length", BigInteger, nullable=False),
    Column("published_at", Float, nullable=False),
)
