"""The tables of shadows, beside those of `schema`. Times are of the wall clock."""

from sqlalchemy import BigInteger, Boolean, Column, Float, ForeignKey, Integer, String, Table, Text

from fleet.server.schema import metadata

# A release that devices compare with what they serve. `status` is running or stopped; `reason` says how it ended.
shadows = Table(
    "shadows",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("status", String(20), nullable=False, index=True),
    Column("deployment", String(64), nullable=False),
    Column("name", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("selector", String(500), nullable=False),
    Column("share", Float, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("created_by", String(100), nullable=False),
)

# Its devices, each with the bundle of its profile; `is_due`: an order that says what changed is still to be written. `sums`
# are `fleet.rules.shadowing.Sums` of all its windows.
shadow_devices = Table(
    "shadow_devices",
    metadata,
    Column("shadow", Integer, ForeignKey("shadows.id"), primary_key=True),
    Column("device", String(64), primary_key=True, index=True),
    Column("sha256", String(64), nullable=False),
    Column("is_due", Boolean, nullable=False, index=True),
    Column("compared", BigInteger, nullable=False),
    Column("dropped", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("sums", Text, nullable=False),
)
