"""The tables of the API itself, beside those of `schema`."""

from sqlalchemy import Column, Float, Integer, LargeBinary, String, Table, Text

from fleet.server.schema import metadata

# Requests that carried an `Idempotency-Key`: `name` and what `sealed` is sealed with follow from the caller's secret and
# the key, `request` is the sha256 of what was asked. Without `sealed` it is being answered.
repeats = Table(
    "repeats",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("request", String(64), nullable=False),
    Column("began_at", Float, nullable=False, index=True),
    Column("sealed", LargeBinary),
)

# What changed, for whoever watches (`fleet.server.events`); `ids` is a JSON list, empty for "any of that kind".
events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("ids", Text, nullable=False),
    # Numbers of rows that are gone never come again.
    sqlite_autoincrement=True,
)
