"""What is known of a shadow by what its devices compared. Pure.

Always true
 1. The unit is the device: inputs of one are alike. With fewer than `FEW` devices the interval is of the inputs, and
    says nothing of devices that are not among them (`is_of_devices`).
"""

import math
from collections.abc import Mapping, Sequence
from statistics import stdev

import msgspec

from edgekit import intervals, sketch
from edgekit.sketch import Sketch
from edgekit.wire.messages import Moments, ShadowWindow

FEW = 3


class Sums(msgspec.Struct, frozen=True):
    """What one device compared, all windows together."""

    agreement: dict[str, Moments] = {}
    cpu_ms: Sketch = Sketch()
    served_ms: Sketch = Sketch()


class Agreement(msgspec.Struct, frozen=True):
    """Of one output: the mean figure between 0 and 1, with its 95 % interval."""

    output: str
    mean: float
    low: float
    high: float
    devices: int
    inputs: int
    is_of_devices: bool


def added(sums: Sums, window: ShadowWindow) -> Sums:
    """With one window more."""
    agreement = dict(sums.agreement)
    for name, more in window.agreement.items():
        have = agreement.get(name, Moments())
        agreement[name] = Moments(have.count + more.count, have.total + more.total)
    return Sums(
        agreement,
        sketch.merge((sums.cpu_ms, window.cpu_ms)),
        sketch.merge((sums.served_ms, window.served_ms)),
    )


def agreements(devices: Sequence[Sums]) -> tuple[Agreement, ...]:
    """Of each output, in the order of their names."""
    names = sorted({name for one in devices for name in one.agreement})
    return tuple(_agreement(name, [one.agreement.get(name, Moments()) for one in devices]) for name in names)


def _agreement(name: str, found: Sequence[Moments]) -> Agreement:
    told = [each for each in found if each.count]
    count, total = sum(each.count for each in told), sum(each.total for each in told)
    if len(told) < FEW:
        low, high = intervals.of_share(total, count)
        return Agreement(
            name, total / count if count else 0.0, low, high, len(told), count, is_of_devices=False
        )
    means = [each.mean for each in told]
    mean = sum(means) / len(means)
    reach = intervals.Z95 * stdev(means) / math.sqrt(len(means))
    return Agreement(
        name, mean, max(0.0, mean - reach), min(1.0, mean + reach), len(told), count, is_of_devices=True
    )


def latency_ratio(devices: Sequence[Sums]) -> float | None:
    """Median processor time of the shadow's call over the served one's median on the same inputs; None without any."""
    own = sketch.merge(one.cpu_ms for one in devices).quantile(0.5)
    served = sketch.merge(one.served_ms for one in devices).quantile(0.5)
    return own / served if own is not None and served else None


def words(found: Mapping[str, int], agreed: Sequence[Agreement]) -> str:
    """For a person."""
    if not found.get("compared"):
        return "nothing is compared yet"
    worst = min(agreed, key=lambda one: one.low, default=None)
    told = f"{found['compared']} inputs compared, {found['dropped']} served without a copy"
    if worst is None:
        return told
    unit = (
        f"{worst.devices} devices" if worst.is_of_devices else "so few devices that only inputs are counted"
    )
    return f"{told}; {worst.output} agrees {worst.mean:.1%} ({worst.low:.1%} to {worst.high:.1%}, {unit})"
