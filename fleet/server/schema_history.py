"""The tables of the past, beside those of `schema`: bounded, because older rows are drawn together (`store.history`).

`at` is when an interval began, in wall time; `level` is `fleet.rules.history.Level`; `sums` are of `fleet.rules.history`,
as MessagePack. A transaction of ingest only ever adds rows, and refers to none of another table: writers never wait, be
it for each other or for the controller.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    Table,
)

from fleet.server.schema import metadata

# 64 bits; SQLite numbers rows only in a column of exactly its own type.
_NUMBER = BigInteger().with_variant(Integer, "sqlite")

# Each arm of each stage while it is judged (`ArmSums`).
arm_history = Table(
    "arm_history",
    metadata,
    Column("id", _NUMBER, primary_key=True),
    Column("rollout", Integer, nullable=False),
    Column("stage", Integer, nullable=False),
    Column("arm", String(8), nullable=False),
    Column("level", SmallInteger, nullable=False),
    Column("at", Float, nullable=False),
    Column("sums", LargeBinary, nullable=False),
    Index("ix_arm_history_of", "rollout", "at"),
    Index("ix_arm_history_level", "level", "at"),
)

# All devices on one bundle (`ReleaseSums`).
release_history = Table(
    "release_history",
    metadata,
    Column("id", _NUMBER, primary_key=True),
    Column("deployment", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("level", SmallInteger, nullable=False),
    Column("at", Float, nullable=False),
    Column("sums", LargeBinary, nullable=False),
    Index("ix_release_history_of", "digest", "deployment", "at"),
    Index("ix_release_history_level", "level", "at"),
)

# Of a bundle, what its data looked like when it was judged (`edgekit.manifest.Reference`, as JSON): what devices see and
# give lies beside it.
references = Table(
    "drift_references",
    metadata,
    Column("sha256", String(64), ForeignKey("bundles.sha256"), primary_key=True),
    Column("reference", LargeBinary, nullable=False),
)

# What a device had done with a bundle by the end of an interval (`DeviceSums`); that of the newest is in `totals`.
device_history = Table(
    "device_history",
    metadata,
    Column("id", _NUMBER, primary_key=True),
    Column("device", String(64), nullable=False),
    Column("deployment", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("level", SmallInteger, nullable=False),
    Column("at", Float, nullable=False),
    Column("sums", LargeBinary, nullable=False),
    Index("ix_device_history_of", "device", "at"),
    Index("ix_device_history_level", "level", "at"),
)
