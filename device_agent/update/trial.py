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
# A link that is lost this soon after the switch may have been lost to it.
SUSPECT_S = 180.0
# Without an acknowledgement a trial ends after so much time connected, or so much time in all; nothing is blamed.
LONGEST_CONNECTED_S = 6 * 3600.0
LONGEST_S = 7 * 24 * 3600.0


class Trial(msgspec.Struct, frozen=True):
    """What was seen since the candidate serves; kept in memory only, so a restart begins it anew."""

    started: float | None = None
    requests: int = 0
    errors: int = 0
    infer_ms: Sketch = Sketch()
    limit_ms: float | None = None
    is_acknowledged: bool = False
    # Whether the link was up when the candidate was switched to, and the seconds that it was since.
    was_linked: bool = False
    connected_s: float = 0.0
    seen: float | None = None


def observed(trial: Trial, seen: Observed, *, is_linked: bool) -> Trial:
    passed_s = 0.0 if trial.seen is None else max(0.0, seen.now - trial.seen)
    return replace(
        trial,
        requests=trial.requests + seen.requests,
        errors=trial.errors + seen.errors,
        infer_ms=sketch.merge((trial.infer_ms, seen.infer_ms)),
        connected_s=trial.connected_s + (passed_s if is_linked else 0.0),
        seen=seen.now,
    )


def is_suspect(trial: Trial, now: float) -> bool:
    """Whether a link that is lost now may have been lost to the candidate."""
    return trial.was_linked and (trial.started is None or now - trial.started <= SUSPECT_S)


def overdue(trial: Trial, now: float) -> str:
    """Why a trial that nobody acknowledges is given up for now; empty while it may go on."""
    if trial.is_acknowledged or trial.started is None:
        return ""
    if trial.connected_s > LONGEST_CONNECTED_S:
        return f"the fleet did not acknowledge it in {LONGEST_CONNECTED_S / 3600:.0f} hours of connection"
    if now - trial.started > LONGEST_S:
        return f"the fleet could not be reached for {LONGEST_S / 86400:.0f} days"
    return ""


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
