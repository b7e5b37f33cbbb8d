"""Scores: one number per device and gate, positive where the device is worse than it may be.

Always true
 1. Each device has one score, and no score grows without bound with the traffic that the device claims.
 2. One that claims fifty times the requests it ever had is compared with nobody.
 3. A device's own past, where there is one, is taken off: its speed, its load and its hour do not enter.

`slope` turns the mean score back into the gate's own unit; `noise` is the variance that a score has for the few
requests behind it alone, so that equal scores (no error anywhere) are not taken for certainty.
"""

from dataclasses import dataclass

import numpy as np

from edgekit.sketch import ACCURACY
from fleet.rules.evalues import Floats
from fleet.rules.gates import Gate
from fleet.rules.table import Flags, Rows

# Requests by which a device's own past is drawn to the fleet's rate; how fast a device's weight saturates.
PRIOR_REQUESTS = 400
SPREAD = 0.3
# A quantile of so few requests, or a level of so few observations, counts half.
HALF_WEIGHT_REQUESTS = 60
HALF_WEIGHT_LEVELS = 3
# A change of traffic that so many requests tell of counts half.
HALF_WEIGHT_TRAFFIC = 100.0
# A device that claims so many times the requests that it ever had, where it had enough to say so, is not believed.
INCREDIBLE_RISE = 50.0
_KNOWN_REQUESTS = 30
# No device speaks for more than so many usual ones.
MOST_USUAL = 10.0


@dataclass(frozen=True)
class Scores:
    """Arrays over the devices of one arm; `profile` are indices."""

    score: Floats
    slope: Floats
    noise: Floats
    profile: Floats

    def __len__(self) -> int:
        return len(self.score)

    def take(self, which: Flags) -> "Scores":
        return Scores(self.score[which], self.slope[which], self.noise[which], self.profile[which])


def usable(gate: Gate, rows: Rows) -> Flags:
    """Who has data for this gate, and a past where the gate asks for one that makes it credible."""
    _, weight, _, past_weight = rows.of(gate)
    if not gate.reference:
        return weight > 0
    return (weight > 0) & (past_weight > 0) & ~_is_incredible(rows)


def _is_incredible(rows: Rows) -> Flags:
    usual = rows["past_requests"] / np.maximum(rows["past_windows"], 1)
    now = rows["requests"] / np.maximum(rows["windows"], 1)
    return (rows["past_requests"] >= _KNOWN_REQUESTS) & (now > INCREDIBLE_RISE * usual)


def share_above(gate: Gate, limit: float, rows: Rows) -> Scores:
    """Bad requests beyond `limit` (a share of them), without any past."""
    bad, requests = shares(gate, rows)
    expected = requests * limit
    return _shares_scored(bad, requests, expected, rows)


def share_change(gate: Gate, rows: Rows, rate: float) -> Scores:
    """Bad requests beyond those of the device's own past, which is drawn to the fleet's `rate`."""
    bad, requests = shares(gate, rows)
    past_bad, past_requests = _past_shares(gate, rows)
    own = (past_bad + PRIOR_REQUESTS * rate) / (past_requests + PRIOR_REQUESTS)
    return _shares_scored(bad, requests, requests * own, rows)


def _shares_scored(bad: Floats, requests: Floats, expected: Floats, rows: Rows) -> Scores:
    weight = 1 / (1 + SPREAD * expected)
    return Scores((bad - expected) * weight, requests * weight, expected * weight**2, rows["profile"])


def level_change(gate: Gate, rows: Rows, centre: float) -> Scores:
    """The change of a level (latency: of its logarithm) against the device's own past, beyond `centre`."""
    now, count, before, past_count = rows.of(gate)
    is_ratio = gate.about.kind == "ratio"
    half = HALF_WEIGHT_REQUESTS if is_ratio else HALF_WEIGHT_LEVELS
    weight = (count / (count + half)) * (past_count / (past_count + half))
    resolution = ACCURACY if is_ratio else 1e-9
    sign = -1.0 if gate.at_least else 1.0
    return Scores(
        sign * weight * (now - before - centre), weight, (weight * resolution) ** 2, rows["profile"]
    )


def traffic_change(rows: Rows, centre: float = 0.0) -> Floats:
    """By how much each device's requests per window changed against its own past (logarithm), beyond `centre`.

    Drawn to nothing where few requests tell of it; nothing where a device has no past.
    """
    now, past = rows["requests"] + 0.5, rows["past_requests"] + 0.5
    windows, past_windows = rows["windows"], rows["past_windows"]
    is_known = (windows > 0) & (past_windows > 0)
    change = np.log(now / np.maximum(windows, 1)) - np.log(past / np.maximum(past_windows, 1))
    known = now * past / (now + past)
    return np.where(is_known, (change - centre) * known / (known + HALF_WEIGHT_TRAFFIC), 0.0)


def level_above(gate: Gate, rows: Rows) -> Scores:
    """A level beyond the gate's limit, without any past."""
    sign = -1.0 if gate.at_least else 1.0
    one = np.ones(len(rows))
    return Scores(sign * (rows.of(gate)[0] - gate.limit), one, one * 1e-18, rows["profile"])


def shares(gate: Gate, rows: Rows) -> tuple[Floats, Floats]:
    """Bad requests and all requests, tamed."""
    bad, requests, _, _ = rows.of(gate)
    return _tamed(bad, requests)


def _past_shares(gate: Gate, rows: Rows) -> tuple[Floats, Floats]:
    _, _, bad, requests = rows.of(gate)
    return _tamed(bad, requests)


def _tamed(bad: Floats, requests: Floats) -> tuple[Floats, Floats]:
    """Both cut in proportion, so that no device speaks for more than `MOST_USUAL` usual ones (rule 1)."""
    busy = requests[requests > 0]
    if not len(busy):
        return bad, requests
    most = MOST_USUAL * max(1.0, float(np.median(busy)))
    cut = np.minimum(1.0, most / np.maximum(requests, 1e-9))
    return bad * cut, requests * cut


def usual_rate(gate: Gate, rows: Rows) -> float:
    """Errors per request of these devices' pasts."""
    bad, requests = _past_shares(gate, rows)
    return float(bad.sum() / max(1.0, requests.sum()))


def rate_now(gate: Gate, rows: Rows) -> float:
    bad, requests = shares(gate, rows)
    return float(bad.sum() / max(1.0, requests.sum()))


def middle_latency(gate: Gate, rows: Rows) -> float:
    """Of a latency with a number as its limit: the log quantile of the middle device."""
    return float(np.median(rows.of(gate)[2]))
