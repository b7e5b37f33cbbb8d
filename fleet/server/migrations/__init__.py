"""Alembic revisions: how a database of an older EdgeKit becomes one of this."""
