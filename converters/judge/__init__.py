"""Judging candidates: accuracy, latency, memory, and the choice between them."""
