"""An estimate for hardware that is not here: work and traffic of the graph against the profile's figures.

The low end is the roofline itself, max(MACs / speed, bytes / bandwidth), which nothing beats; the high end assumes
that an engine reaches a tenth of it and spends some time on each operator. It is a range for planning, never a
measurement.

Source: Williams, Waterman, Patterson (2009), "Roofline", CACM 52(4).
"""

from dataclasses import dataclass

from converters.source.work import Work
from edgekit.profile import Profile

LEAST_EFFICIENCY = 0.1
OPERATOR_US = 5.0


@dataclass(frozen=True)
class Estimate:
    """`by` is what made the estimate."""

    low_ms: float
    high_ms: float
    by: str = "roofline of the profile"


def estimate(done: Work, profile: Profile, precision: str) -> Estimate:
    """Milliseconds of one inference."""
    is_int8 = precision == "int8"
    speed = profile.gmacs_int8 if is_int8 else profile.gmacs_fp32
    width = {"int8": 1, "bf16": 2, "fp16": 2}.get(precision, 4)
    compute_ms = done.macs / (speed * 1e9) * 1e3
    traffic_ms = (done.weights + 2 * done.activations) * width / (profile.mem_gbps * 1e9) * 1e3
    low = max(compute_ms, traffic_ms)
    return Estimate(low, low / LEAST_EFFICIENCY + done.operators * OPERATOR_US / 1e3)
