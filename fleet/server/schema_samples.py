"""The tables of samples, beside those of `schema`. Times are of the wall clock: devices go by them."""

from sqlalchemy import BigInteger, Boolean, Column, Float, ForeignKey, Index, Integer, String, Table, Text

from fleet.server.schema import metadata

# What an operator asked for (`fleet.api.NewCollection`); `reasons` is `fleet.rules.collecting.Reasons`. `taken` counts what
# came, also what was deleted since. `ended` says how it ended before its time; empty while it goes on. `is_due`: that is
# still to be said to its devices.
collections = Table(
    "collections",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("deployment", String(64), nullable=False),
    Column("selector", String(500), nullable=False),
    Column("reasons", Text, nullable=False),
    Column("most", Integer, nullable=False),
    Column("per_device", Integer, nullable=False),
    Column("bytes_a_day", BigInteger, nullable=False),
    Column("until_at", Float, nullable=False, index=True),
    Column("ended", String(20), nullable=False),
    Column("is_due", Boolean, nullable=False, index=True),
    Column("taken", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("created_by", String(100), nullable=False),
    # Numbers of rows that are gone never come again: a device may still hold a policy of that name.
    sqlite_autoincrement=True,
)

# Its devices; `is_due`: an order that says what changed is still to be written.
collection_devices = Table(
    "collection_devices",
    metadata,
    Column("collection", Integer, ForeignKey("collections.id"), primary_key=True),
    Column("device", String(64), primary_key=True, index=True),
    Column("taken", Integer, nullable=False),
    Column("is_due", Boolean, nullable=False, index=True),
)

# One row a file of `samples/`, committed after it.
samples = Table(
    "samples",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("collection", Integer, ForeignKey("collections.id"), nullable=False),
    Column("device", String(64), nullable=False, index=True),
    Column("deployment", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("reason", String(20), nullable=False),
    Column("kind", String(20), nullable=False),
    Column("confidence", Float),
    Column("label", String(200), nullable=False),
    Column("taken_at", Float, nullable=False),
    Column("received_at", Float, nullable=False, index=True),
    Column("length", Integer, nullable=False),
    Index("ix_samples_of", "collection", "received_at", "sha256"),
)
