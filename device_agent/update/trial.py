"""Judging a release by its live traffic: what counts against it, and when enough was seen.

Pure. Every verdict against a release needs a minimum count: one error, one death or a slow minute is no evidence.
"""

import msgspec
from msgspec.structs import replace

from device_agent.update.events import Observed
from edgekit import sketch
from edgekit.sketch import Sketch
from edgekit.wire.messages import OrderOptions

PROBATION_S = 60.0
# A self-test admits latency up to the contract times this; probation judges by the same bound.
LATENCY_MARGIN = 1.25
# Fewer requests say nothing about a 95th percentile.
LATENCY_MIN_REQUESTS = 20
MIN_ERRORS = 5
MAX_ERROR_SHARE = 0.02


class Trial(msgspec.Struct, frozen=True):
    """What was seen since the candidate serves; kept in memory only, so a restart begins it anew."""

    started: float | None = None
    requests: int = 0
    errors: int = 0
    infer_ms: Sketch = Sketch()
    limit_ms: float | None = None
    is_acknowledged: bool = False


def observed(trial: Trial, seen: Observed) -> Trial:
    return replace(
        trial,
        requests=trial.requests + seen.requests,
        errors=trial.errors + seen.errors,
        infer_ms=sketch.merge((trial.infer_ms, seen.infer_ms)),
    )


def complaint(trial: Trial) -> str:
    """What speaks against the release; empty if nothing does."""
    if trial.errors >= MIN_ERRORS and trial.errors > MAX_ERROR_SHARE * trial.requests:
        return f"{trial.errors} of {trial.requests} requests failed"
    p95 = trial.infer_ms.quantile(0.95)
    if p95 is None or trial.limit_ms is None or trial.infer_ms.count < LATENCY_MIN_REQUESTS:
        return ""
    if p95 > trial.limit_ms * LATENCY_MARGIN:
        return f"latency p95 is {p95:.2f} ms, the contract says {trial.limit_ms:g} ms"
    return ""


def is_over(trial: Trial, options: OrderOptions, now: float) -> bool:
    """After the set time, or the set number of requests where one is set, whichever comes first."""
    if trial.started is None:
        return False
    seconds = PROBATION_S if options.probation_s is None else options.probation_s
    enough = options.probation_requests
    return now - trial.started >= seconds or bool(enough and trial.requests >= enough)
