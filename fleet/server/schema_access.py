"""The tables of who may use the API: machines by token, people, and who is signed in; beside those of `schema`. Times are of
the wall clock.
"""

from sqlalchemy import Column, Float, Integer, String, Table

from fleet.server.schema import metadata

# Tokens of machines: only the sha256 is kept. They carry 256 random bits, so there is nothing that trying words could
# find, and a hash that is slow on purpose would only slow down every request.
access_tokens = Table(
    "access_tokens",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("name", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("scope", String(200), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("created_by", String(100), nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
    Column("last_used_at", Float),
    Column("last_used_from", String(64), nullable=False, default=""),
)

# People; `password` is scrypt with its salt and costs (`fleet.server.passwords`).
users = Table(
    "users",
    metadata,
    Column("name", String(64), primary_key=True),
    # Empty for people whom an OpenID provider vouches for; they have a `subject`: its issuer, and who they are to it.
    Column("password", String(200), nullable=False),
    Column("role", String(16), nullable=False),
    Column("scope", String(200), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("created_by", String(100), nullable=False),
    Column("last_used_at", Float),
    Column("last_used_from", String(64), nullable=False, default=""),
    Column("subject", String(460), unique=True),
    Column("blocked_at", Float),
    Column("expires_at", Float),
)

# Who is signed in, on the page or at a terminal (`kind`): only the sha256 of the secret is kept.
sessions = Table(
    "sessions",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("name", String(64), nullable=False, index=True),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("last_used_at", Float, nullable=False),
    Column("kind", String(8), nullable=False),
)
