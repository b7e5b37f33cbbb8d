"""Keeping a fleet: a copy of it while it runs, a fleet from a copy, a fleet in another database."""
