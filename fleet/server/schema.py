"""The tables. JSON documents are text that `msgspec` wrote. Times are unix seconds: of the wall clock where a person, a
signature or the audit log needs them; the fleet's steady ones (`clock`) where durations are measured, which is noted.

The database is the only truth (fleet.md): nothing that matters lives in memory only.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)

from fleet.rules.facts import NOTHING

metadata = MetaData()

settings = Table(
    "settings", metadata, Column("key", String(64), primary_key=True), Column("value", Text, nullable=False)
)

devices = Table(
    "devices",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("labels", Text, nullable=False),
    Column("deployments", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    # `enrolment` counts how often this id has enrolled; `enrolled_for` are the deployments that its enrolment file
    # named, and `is_confirmed` says that it has used what it got by enrolling.
    Column("enrolment", Integer, nullable=False, default=0),
    Column("enrolled_at", Float),
    Column("enrolled_for", Text, nullable=False, default="[]", server_default="[]"),
    Column("is_confirmed", Boolean, nullable=False, default=False, server_default=false()),
    Column("credential_hash", String(64), index=True),
    Column("fingerprint", String(64), nullable=False, default="", server_default=""),
    Column("decommissioned_at", Float),
    # A deleted one is only its name, what its identities and orders counted up to, and their revocation.
    Column("deleted_at", Float),
    # An older board was heard under this name, with the identity of `former_enrolment`.
    Column("former_enrolment", Integer, nullable=False, default=0, server_default="0"),
    Column("former_at", Float),
    Column("profile", String(64), nullable=False, default=""),
    Column("agent_version", String(200), nullable=False, default=""),
    # What it says of itself, and the (incarnation, nonce, seq) of the message that said so.
    Column("is_online", Boolean, nullable=False, default=False),
    Column("is_duplicate", Boolean, nullable=False, default=False),
    Column("incarnation", BigInteger, nullable=False, default=-1),
    Column("nonce", String(16), nullable=False, default=""),
    Column("reported_seq", BigInteger, nullable=False, default=-1),
    Column("reported", Text),
    Column("reported_counter", BigInteger, nullable=False, default=0, server_default="0"),
    # What searches and alerts ask of `reported` (`fleet.rules.facts.Kept`), written with it.
    Column("troubles", Text, nullable=False, default="", server_default=""),
    Column("facts", Text, nullable=False, default="", server_default=""),
    Column("trouble", Text, nullable=False, default="", server_default=""),
    Column("gravity", Integer, nullable=False, default=NOTHING.gravity, server_default=str(NOTHING.gravity)),
    # Steady.
    Column("last_seen_at", Float),
    Column("last_report_at", Float),
    Column("offline_at", Float),
    Column("window_s", Float),
    # What its link has carried (`fleet.rules.links.Link`).
    Column("traffic", Text, nullable=False, default="", server_default=""),
    # The counter of the newest order issued to it.
    Column("order_counter", BigInteger, nullable=False, default=0),
    # What filters and counts read, without the wide rows: SQLite goes over this instead of the table. Nothing in it
    # changes with a report. (PostgreSQL has wider pages for such, and takes no entry as long as a text may be.)
    Index(
        "ix_devices_search",
        "id", "decommissioned_at", "is_duplicate", "enrolment", "is_online", "reported_counter", "order_counter",
        "profile", "labels", "facts",
    ).ddl_if(dialect="sqlite"),
)  # fmt: skip

# Deployments of devices that are to be placed again, although they run something (`fleet.rules.placing`).
to_place = Table(
    "to_place",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("device", String(64), ForeignKey("devices.id"), nullable=False, index=True),
    Column("deployment", String(64), nullable=False),
    # Numbers of rows that are gone never come again.
    sqlite_autoincrement=True,
)

# Who may enrol: one device by name, or with an empty `device` a batch. Only the sha256 of the secret is kept.
enrolment_tokens = Table(
    "enrolment_tokens",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("device", String(64), nullable=False, index=True),
    Column("labels", Text, nullable=False),
    Column("deployments", Text, nullable=False),
    # Names that a batch is for; empty for any.
    Column("serials", Text, nullable=False),
    Column("needs_approval", Boolean, nullable=False),
    Column("max_uses", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("revoked_at", Float),
)

# What came of a token, by device: the key that came first is the only one that gets the answer.
enrolment_uses = Table(
    "enrolment_uses",
    metadata,
    Column("token", Integer, ForeignKey("enrolment_tokens.id"), primary_key=True),
    Column("device", String(64), primary_key=True),
    Column("public_key", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("profile", String(64), nullable=False),
    Column("first_at", Float, nullable=False),
    Column("enrolment", Integer, nullable=False, default=0),
    Index("ix_enrolment_uses_state", "state"),
)

# Every certificate that the fleet's authority gave to a device.
certificates = Table(
    "certificates",
    metadata,
    Column("serial", String(32), primary_key=True),
    Column("device", String(64), ForeignKey("devices.id"), nullable=False, index=True),
    Column("enrolment", Integer, nullable=False),
    Column("public_key", String(64), nullable=False),
    Column("issued_at", Float, nullable=False),
    Column("not_after", Float, nullable=False),
    Column("pem", Text, nullable=False),
    Column("revoked_at", Float),
    Column("reason", String(64), nullable=False, default=""),
)

releases = Table(
    "releases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("version", String(64), primary_key=True),
    Column("published_at", Float, nullable=False),
)

bundles = Table(
    "bundles",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("profile", String(64), nullable=False),
    Column("length", BigInteger, nullable=False),
    Column("engine", String(64), nullable=False),
    Column("engine_versions", String(200), nullable=False),
    # Of the manifest: an agent must read it.
    Column("format", Integer, nullable=False, server_default="1"),
    # What a process takes with it at most, as measured at build or promised by the contract.
    Column("peak_memory_mb", Float, nullable=True),
    Column("published_at", Float, nullable=False),
    UniqueConstraint("name", "version", "profile"),
)

evidence = Table(
    "evidence",
    metadata,
    Column("sha256", String(64), ForeignKey("bundles.sha256"), primary_key=True),
    Column("statement", LargeBinary, nullable=False),
)

# Bundles that lie beside a release's own of the same profile until real hardware has compared them; nothing orders one.
alternates = Table(
    "alternates",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("profile", String(64), nullable=False),
    Column("recipe", String(200), nullable=False),
    Column("length", BigInteger, nullable=False),
    Column("engine", String(64), nullable=False),
    Column("engine_versions", String(200), nullable=False),
    Column("statement", LargeBinary, nullable=True),
    Column("published_at", Float, nullable=False),
    UniqueConstraint("name", "version", "profile", "recipe"),
)

# Bundles that no new order may name, by digest; a whole release is each of its bundles, and its name, for those to come.
blocked = Table(
    "blocked",
    metadata,
    Column("subject", String(130), primary_key=True),
    Column("reason", String(500), nullable=False),
    Column("actor", String(64), nullable=False),
    Column("at", Float, nullable=False),
)

# What each (device, deployment) is to run, and on whose account (`rollout r3`, `assignment`).
desired = Table(
    "desired",
    metadata,
    Column("device", String(64), ForeignKey("devices.id"), primary_key=True),
    Column("deployment", String(64), primary_key=True),
    Column("sha256", String(64), ForeignKey("bundles.sha256"), nullable=False),
    Column("because", String(200), nullable=False),
    Column("set_at", Float, nullable=False),
    # Whether a device runs what it should is asked of all of them.
    Index("ix_desired_runs", "device", "deployment", "sha256"),
)

# The newest row whose selector matches a device holds; taking a rollout's rows away brings the older ones back.
# `rollout` is 0 where a person assigned it.
assignments = Table(
    "assignments",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("deployment", String(64), nullable=False),
    Column("selector", String(500), nullable=False),
    Column("name", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("rollout", Integer, nullable=False),
    Column("probation_s", Float),
    Column("set_at", Float, nullable=False),
)

# `state` is the rollout without its members. What ingest needs to know of an open stage stands beside it: `judged_from`
# (steady) is None while none is open. `revision` goes up with every change, of members too. `wanted` is the request
# (`fleet.api.NewRollout`) that it was planned from; one that waits in the queue is planned from it again. `deployment` is
# the first that moves, `beside` are the others (names, separated by spaces).
rollouts = Table(
    "rollouts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("status", String(20), nullable=False, index=True),
    Column("deployment", String(64), nullable=False, server_default=""),
    Column("stage", Integer, nullable=False, server_default="-1"),
    Column("judged_from", Float),
    Column("cold_windows", Integer, nullable=False, server_default="1"),
    Column("revision", BigInteger, nullable=False, server_default="0"),
    Column("state", LargeBinary, nullable=False),
    Column("wanted", Text, nullable=False, server_default=""),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("beside", Text, nullable=False, server_default=""),
)

# Every device of every rollout (`fleet.rules.members.Member`). Times are steady.
members = Table(
    "members",
    metadata,
    Column("rollout", Integer, ForeignKey("rollouts.id"), primary_key=True),
    Column("device", String(64), primary_key=True, index=True),
    Column("profile", String(64), nullable=False),
    Column("key", String(64), nullable=False),
    Column("target", String(64), nullable=False),
    Column("previous", String(64)),
    Column("previous_title", String(200), nullable=False),
    Column("site", String(64), nullable=False, server_default=""),
    Column("zone", String(64), nullable=False, server_default=""),
    Column("is_held", Boolean, nullable=False),
    Column("state", String(20), nullable=False),
    Column("reason", Text, nullable=False),
    Column("stage", Integer),
    Column("order_counter", BigInteger, nullable=False),
    Column("ordered_at", Float),
    Column("notified_at", Float),
    Column("online_since", Float),
    Column("seen_enrolment", BigInteger, nullable=False),
    Column("seen_incarnation", BigInteger, nullable=False),
    Column("seen_seq", BigInteger, nullable=False),
    Column("refused_before", Text, nullable=False),
    Column("is_excused", Boolean, nullable=False),
    Column("is_leaving", Boolean, nullable=False),
    Column("is_returning", Boolean, nullable=False),
    # Counting by state, which every look at a rollout does.
    Index("ix_members_state", "rollout", "state"),
    # What moves together with the first deployment (JSON); empty where nothing does.
    Column("beside", Text, nullable=False, server_default=""),
)

# What each device did since its stage is judged (`fleet.rules.sums.StageSums`); `judged_from` is steady.
stage_sums = Table(
    "stage_sums",
    metadata,
    Column("rollout", Integer, primary_key=True),
    Column("stage", Integer, primary_key=True),
    Column("device", String(64), primary_key=True),
    Column("judged_from", Float, nullable=False),
    Column("sums", Text, nullable=False),
)

# Devices that something is new about, a row per transaction of ingest; the controller takes the rows away. An empty
# list means any device.
changes = Table(
    "changes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("devices", Text, nullable=False),
)

# Every order ever signed, and beside it the newest one of each device as something to (re)publish.
orders = Table(
    "orders",
    metadata,
    Column("device", String(64), ForeignKey("devices.id"), primary_key=True),
    Column("counter", BigInteger, primary_key=True),
    Column("envelope", LargeBinary, nullable=False),
    Column("issued_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    # Whose signature it is: after a rotation of the order key the newest ones are signed again.
    Column("keyid", String(16), nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("device", String(64), ForeignKey("devices.id"), primary_key=True),
    Column("counter", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("published_at", Float, index=True),
)

# The unique key that makes a report count once, however often it arrives.
reports = Table(
    "reports",
    metadata,
    Column("device", String(64), primary_key=True),
    Column("enrolment", Integer, primary_key=True),
    Column("incarnation", BigInteger, primary_key=True),
    Column("nonce", String(16), primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("received_at", Float, nullable=False, index=True),
)

# The sums of all windows a device ever sent for one digest, of its newest ones (`fleet.rules.sums.Recent`), and of what
# else they said (`fleet.rules.history.Gauges`); changed in the transaction that takes the report.
totals = Table(
    "totals",
    metadata,
    Column("device", String(64), primary_key=True),
    Column("deployment", String(64), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("windows", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("infer_ms", Text, nullable=False),
    Column("recent", Text, nullable=False, server_default="{}"),
    Column("gauges", Text, nullable=False, server_default="[]"),
)

# The workers that take reports in (`fleet.server.worker`), by a name of their own; times are steady.
workers = Table(
    "workers",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("seen_at", Float, nullable=False),
    Column("is_hearing", Boolean, nullable=False),
    Column("stored", BigInteger, nullable=False),
)
