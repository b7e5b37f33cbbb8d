"""The tables of the audit log (see `fleet.audit`), beside those of `schema`."""

from sqlalchemy import Column, Float, Integer, LargeBinary, String, Table, Text

from fleet.server.schema import metadata

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("actor", String(100), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(200), nullable=False, index=True),
    Column("detail", Text, nullable=False),
    Column("before", Text, nullable=False, default="", server_default=""),
    Column("after", Text, nullable=False, default="", server_default=""),
    Column("origin", String(64), nullable=False, default="", server_default=""),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)

audit_heads = Table(
    "audit_heads",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("entry", Integer, nullable=False),
    Column("hash", String(64), nullable=False),
    Column("count", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
)
