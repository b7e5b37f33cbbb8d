"""The tables of alerts, of whom they are told, and of drift; beside those of `schema`."""

from sqlalchemy import BigInteger, Column, Float, ForeignKey, Index, Integer, String, Table, Text

from fleet.server.schema import metadata

# `fleet.rules.alerts.Alert`: `since` and `ended` are wall time, what ends in `_at` is steady. One that was never opened is
# pending. `reached` are the names of targets that have it.
alerts = Table(
    "alerts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("subject", String(300), nullable=False),
    Column("topic", String(64), nullable=False),
    Column("severity", String(16), nullable=False),
    Column("words", Text, nullable=False),
    Column("since", Float, nullable=False),
    Column("found_at", Float, nullable=False),
    Column("seen_at", Float, nullable=False),
    Column("opened_at", Float),
    Column("ended", Float, index=True),
    Column("how_many", Integer, nullable=False),
    Column("told", Integer, nullable=False),
    Column("told_at", Float),
    Column("few_at", Float),
    Column("acknowledged_by", String(100), nullable=False),
    Column("acknowledged_at", Float),
    Column("reached", Text, nullable=False, default="[]"),
    Column("about", Text, nullable=False),
    # Their numbers stand in messages, and never come again.
    sqlite_autoincrement=True,
)

# Who is told. `sealed` is the address with its secrets, encrypted with a key of the fleet's home (`sealing`); `shown` is
# what may be seen of it.
alert_targets = Table(
    "alert_targets",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("shown", String(500), nullable=False),
    Column("sealed", Text, nullable=False),
    Column("severity", String(16), nullable=False),
    Column("events", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("created_by", String(100), nullable=False),
    Column("last_sent_at", Float),
    Column("last_error", String(300), nullable=False, default=""),
)

# What is to be told to whom: written with what it tells of, in one transaction. `message` is the id that a receiver knows
# it by; `state` is waiting, sent or failed. `alerts` are the numbers of those that it opens. Times are wall time but for
# `due_at`, which is steady; `tries` counts, and is how one sender takes a message from another.
messages = Table(
    "messages",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("target", String(64), ForeignKey("alert_targets.name"), nullable=False, index=True),
    Column("message", String(40), nullable=False),
    Column("body", Text, nullable=False),
    Column("alerts", Text, nullable=False),
    Column("state", String(8), nullable=False),
    Column("tries", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("due_at", Float, nullable=False),
    Column("sent_at", Float),
    Index("ix_messages_state", "state", "due_at"),
    sqlite_autoincrement=True,
)

# Blocks of a device's drift on one bundle (`fleet.rules.drift.Track`), and what was found of it when all were last looked
# at together: `found_since` (wall) is None while it is not named. `seen_at` is steady.
drift = Table(
    "drift",
    metadata,
    Column("device", String(64), primary_key=True),
    Column("deployment", String(64), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("track", Text, nullable=False),
    Column("blocks", Integer, nullable=False),
    Column("seen_at", Float, nullable=False),
    Column("chance", Float),
    Column("level", Float),
    Column("found_since", Float),
)

# Dropped messages, by the worker that counted them and the reason.
drops = Table(
    "drops",
    metadata,
    Column("worker", String(64), primary_key=True),
    Column("reason", String(100), primary_key=True),
    Column("dropped", BigInteger, nullable=False),
)
