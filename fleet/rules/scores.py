"""Scores: one number per device and gate, positive where the device is worse than it may be.

Always true
 1. Each device has one score, and no score grows without bound with the traffic that the device claims.
 2. A device's own past, where there is one, is taken off: its speed, its load and its hour do not enter.

`slope` turns the mean score back into the gate's own unit; `noise` is the variance that a score has for the few
requests behind it alone, so that equal scores (no error anywhere) are not taken for certainty.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.sketch import ACCURACY, Sketch, index_of, middle_of
from edgekit.wire.messages import Moments
from fleet.rules.evalues import Floats
from fleet.rules.evidence import DeviceEvidence, Sums
from fleet.rules.gates import Gate

# Requests by which a device's own past is drawn to the fleet's rate; how fast a device's weight saturates.
PRIOR_REQUESTS = 400
SPREAD = 0.3
# A quantile of so few requests counts half.
HALF_WEIGHT_REQUESTS = 60
# No device speaks for more than so many usual ones.
MOST_USUAL = 10.0


@dataclass(frozen=True)
class Scores:
    """Arrays over the devices of one arm; `value` is in the gate's unit (a share, a log ratio, a level)."""

    score: Floats
    slope: Floats
    noise: Floats
    profile: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.score)

    def take(self, which: NDArray[np.bool_]) -> "Scores":
        names = tuple(name for name, is_in in zip(self.profile, which, strict=True) if is_in)
        return Scores(self.score[which], self.slope[which], self.noise[which], names)


def share_above(gate: Gate, limit: float, devices: Sequence[DeviceEvidence]) -> Scores:
    """Bad requests beyond `limit` (a share of them), without any past."""
    bad, requests = tamed(*shares(gate, devices))
    expected = requests * limit
    weight = 1 / (1 + SPREAD * expected)
    return Scores(
        (bad - expected) * weight, requests * weight, expected * weight**2, tuple(d.profile for d in devices)
    )


def share_change(gate: Gate, devices: Sequence[DeviceEvidence], rate: float) -> Scores:
    """Bad requests beyond those of the device's own past, which is drawn to the fleet's `rate`."""
    bad, requests = tamed(*shares(gate, devices))
    past_bad, past_requests = tamed(*_past_shares(devices))
    own = (past_bad + PRIOR_REQUESTS * rate) / (past_requests + PRIOR_REQUESTS)
    expected = requests * own
    weight = 1 / (1 + SPREAD * expected)
    return Scores(
        (bad - expected) * weight, requests * weight, expected * weight**2, tuple(d.profile for d in devices)
    )


def level_change(gate: Gate, devices: Sequence[DeviceEvidence], centre: float) -> Scores:
    """The change of a level (latency: of its logarithm) against the device's own past, beyond `centre`."""
    now, before = levels(gate, devices), past_levels(gate, devices)
    count, past_count = _counts(gate, devices)
    half = HALF_WEIGHT_REQUESTS if gate.about.kind == "ratio" else 3
    weight = (count / (count + half)) * (past_count / (past_count + half))
    resolution = ACCURACY if gate.about.kind == "ratio" else 1e-9
    sign = -1.0 if gate.at_least else 1.0
    return Scores(
        sign * weight * (now - before - centre),
        weight,
        (weight * resolution) ** 2,
        tuple(d.profile for d in devices),
    )


def level_above(gate: Gate, devices: Sequence[DeviceEvidence]) -> Scores:
    """A level beyond the gate's limit, without any past."""
    sign = -1.0 if gate.at_least else 1.0
    one = np.ones(len(devices))
    return Scores(
        sign * (levels(gate, devices) - gate.limit), one, one * 1e-18, tuple(d.profile for d in devices)
    )


def tamed(bad: Floats, requests: Floats) -> tuple[Floats, Floats]:
    """Both cut in proportion, so that no device speaks for more than `MOST_USUAL` usual ones (rule 1)."""
    busy = requests[requests > 0]
    if not len(busy):
        return bad, requests
    most = MOST_USUAL * max(1.0, float(np.median(busy)))
    cut = np.minimum(1.0, most / np.maximum(requests, 1e-9))
    return bad * cut, requests * cut


def usual_rate(devices: Sequence[DeviceEvidence]) -> float:
    """Errors per request of these devices' pasts."""
    bad, requests = tamed(*_past_shares(devices))
    return float(bad.sum() / max(1.0, requests.sum()))


def rate_now(gate: Gate, devices: Sequence[DeviceEvidence]) -> float:
    bad, requests = tamed(*shares(gate, devices))
    return float(bad.sum() / max(1.0, requests.sum()))


def shares(gate: Gate, devices: Sequence[DeviceEvidence]) -> tuple[Floats, Floats]:
    if gate.metric == "error_rate":
        return _array(devices, lambda d: d.errors), _array(devices, lambda d: d.requests)
    edge = index_of(gate.limit) if gate.limit > 0 else -(10**9)
    return (
        _array(devices, lambda d: sum(n for at, n in d.sketch.bins.items() if at > edge)),
        _array(devices, lambda d: d.sketch.count),
    )


def _past_shares(devices: Sequence[DeviceEvidence]) -> tuple[Floats, Floats]:
    return _array(devices, lambda d: past_of(d).errors), _array(devices, lambda d: past_of(d).requests)


def levels(gate: Gate, devices: Sequence[DeviceEvidence]) -> Floats:
    return _array(devices, lambda d: _level(gate, d.sketch, d.metrics))


def past_levels(gate: Gate, devices: Sequence[DeviceEvidence]) -> Floats:
    return _array(devices, lambda d: _level(gate, past_of(d).infer_ms, past_of(d).metrics))


def _level(gate: Gate, sketch: Sketch, metrics: Mapping[str, Moments]) -> float:
    if gate.about.kind != "ratio":
        found = metrics.get(gate.metric)
        return found.mean if found is not None else math.nan
    return _log_level(sketch, gate.about.quantile)


def _counts(gate: Gate, devices: Sequence[DeviceEvidence]) -> tuple[Floats, Floats]:
    if gate.about.kind == "ratio":
        return (
            _array(devices, lambda d: d.sketch.count),
            _array(devices, lambda d: past_of(d).infer_ms.count),
        )
    name = gate.metric
    return (
        _array(devices, lambda d: d.metrics[name].count if name in d.metrics else 0),
        _array(devices, lambda d: past_of(d).metrics[name].count if name in past_of(d).metrics else 0),
    )


def past_of(device: DeviceEvidence) -> Sums:
    return device.past or _NOTHING


def is_usable(gate: Gate, device: DeviceEvidence) -> bool:
    """It has data for this gate, and a past where the gate asks for one; latency waits for the cold start to end."""
    past = past_of(device)
    kind = gate.about.kind
    if kind == "level":
        has_now, has_past = gate.metric in device.metrics, gate.metric in past.metrics
    elif kind == "ratio":
        has_now, has_past = _has_values(device.sketch), _has_values(past.infer_ms)
    else:
        has_now, has_past = device.requests > 0, past.requests > 0
    return has_now and (has_past or not gate.reference)


def _has_values(sketch: Sketch) -> bool:
    return bool(sketch.bins or sketch.zeros)


def _array(devices: Sequence[DeviceEvidence], value: Callable[[DeviceEvidence], float]) -> Floats:
    return np.array([value(device) for device in devices], dtype=np.float64)


def _log_level(sketch: Sketch, quantile: float | None) -> float:
    """The logarithm of a quantile, or the mean logarithm; kept for sketches that are the same object as before."""
    key = (id(sketch), quantile)
    known = _levels_known.get(key)
    if known is not None and known[0] is sketch:
        return known[1]
    if quantile is not None:
        level = math.log(max(sketch.quantile(quantile) or 0.0, 1e-9))
    else:
        level = math.fsum(n * math.log(middle_of(at)) for at, n in sketch.bins.items()) / max(1, sketch.count)
    if len(_levels_known) >= _MOST_KNOWN:
        _levels_known.clear()
    _levels_known[key] = (sketch, level)
    return level


_NOTHING = Sums()
# A tick at a hundred thousand devices works out only what is new: unchanged devices keep their objects (evidence, 5).
_MOST_KNOWN = 1_000_000
_levels_known: dict[tuple[int, float | None], tuple[Sketch, float]] = {}
