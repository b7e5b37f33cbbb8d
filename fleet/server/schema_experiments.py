"""The tables of experiments, beside those of `schema`."""

from sqlalchemy import BigInteger, Boolean, Column, Float, ForeignKey, Integer, String, Table, Text

from fleet.server.schema import metadata

# Two releases on a fixed split of devices (`fleet.rules.experiment`). `goal` is its text, `share` that of A, `planned` how
# many devices it began with. Times are steady.
experiments = Table(
    "experiments",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("status", String(20), nullable=False, index=True),
    Column("deployment", String(64), nullable=False),
    Column("name_a", String(64), nullable=False),
    Column("version_a", String(64), nullable=False),
    Column("name_b", String(64), nullable=False),
    Column("version_b", String(64), nullable=False),
    Column("selector", String(500), nullable=False),
    Column("share", Float, nullable=False),
    Column("goal", String(100), nullable=False),
    Column("planned", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
)

# Its devices: what its arm runs (`target`), what it ran before, what it is to run now (`wanted`, "" for no model) and
# whether the order for that is still to be written; and what it did on `target` since it joined.
units = Table(
    "units",
    metadata,
    Column("experiment", Integer, ForeignKey("experiments.id"), primary_key=True),
    Column("device", String(64), primary_key=True, index=True),
    Column("arm", String(1), nullable=False),
    Column("target", String(64), nullable=False),
    Column("previous", String(64)),
    Column("wanted", String(64), nullable=False),
    Column("is_due", Boolean, nullable=False, index=True),
    Column("joined_at", Float, nullable=False),
    Column("windows", BigInteger, nullable=False, server_default="0"),
    Column("requests", BigInteger, nullable=False, server_default="0"),
    Column("errors", BigInteger, nullable=False, server_default="0"),
    Column("observed", Float, nullable=False, server_default="0"),
    Column("total", Float, nullable=False, server_default="0"),
)

# What was known of the difference at a look (`fleet.rules.experiment.Verdict`), less often the longer it runs; `at` is wall
# time. Of the difference of latencies it is the logarithm's that was judged, and its ratio less one that is kept.
points = Table(
    "experiment_points",
    metadata,
    Column("experiment", Integer, ForeignKey("experiments.id"), primary_key=True),
    Column("at", Float, primary_key=True),
    Column("difference", Float, nullable=False),
    Column("low", Float, nullable=False),
    Column("high", Float, nullable=False),
    Column("devices", Integer, nullable=False),
)
