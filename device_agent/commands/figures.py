"""A self-test's verdict as the wire says it."""

from device_agent.update.selftest import Verdict
from edgekit.manifest import Sha256
from edgekit.wire.commands import Tested


def figures_of(verdict: Verdict, sha256: Sha256, deployment: str = "") -> Tested:
    """A verdict as the wire says it."""
    return Tested(
        sha256=sha256,
        passed=verdict.passed,
        deployment=deployment,
        reason=verdict.reason[:2000],
        agreement=verdict.agreement,
        max_error=verdict.max_error,
        latency_p50_ms=verdict.latency_p50_ms,
        latency_p95_ms=verdict.latency_p95_ms,
    )
