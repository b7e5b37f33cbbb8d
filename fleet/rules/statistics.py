"""One gate, device by device: how much worse the release is, how sure that is, and what it adds to the budget.

The unit is the device: windows of one device resemble each other, and counting them as independent stops good
releases. Against control, each device is compared with its own past, and the change of canaries with the change of
control over the same time, so that the hour, the weekday and the device's own speed cancel.

Always true
 1. One device decides nothing alone: scores saturate with traffic, and are pulled in to four usual deviations.
 2. A release no worse than control (or exactly at an absolute limit) gives an e-value with a mean of one.
 3. A gate passes only if an upper bound of the harm (95 %, one-sided) lies within it.

Source: design of the fleet, "Gates"; `evalues` lists those of the tests.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from fleet.rules import evalues, scores, traffic
from fleet.rules.evalues import Floats
from fleet.rules.gates import Gate
from fleet.rules.scores import Scores
from fleet.rules.table import Rows

SMALLEST_ARM = 5
SMALLEST_PROFILE_ARM = 3
# A release at the limit passes with at most this chance at one look; there are several between one soak and two.
PASS_CHANCE = 0.005
# Harms worth finding: ten percent of latency, one point of errors (or as much again as an absolute limit).
LATENCY_TAU = 0.10
ERROR_TAU = 0.01
# Error rates closer than a tenth of a point are not told apart.
ERROR_MARGIN = 0.001
_WINSOR_SDS = 4.0
# What trimming takes from the deviation of a normal sample.
_TRIMMED = 1.15
# So many devices show what is usual; a variance of fewer degrees of freedom than this is half the common one.
_ENOUGH_TO_KNOW = 20
_SHRINK = 24
Z_PASS = evalues.NORMAL.inv_cdf(1 - PASS_CHANCE)
_Z_PLAIN = evalues.NORMAL.inv_cdf(0.95)
Z_SURE = evalues.NORMAL.inv_cdf(0.999)


@dataclass(frozen=True)
class Finding:
    """`harm` and `se` in the gate's unit, above control (or above the limit, where there is none); `margin` is what the
    gate allows; `rate` what control has now, for the words.

    `e` is the evidence of any harm, counted where the harm is not shown to lie within the margin: an operator who
    allows a tenth is not stopped by a hundredth, however sure it is. `worst` is a profile that is surely beyond.
    """

    harm: float
    se: float
    margin: float
    e: float
    freedom: int
    canaries: int
    controls: int
    rate: float = 0.0
    worst: str = ""

    @property
    def is_beyond(self) -> bool:
        """Whether the harm, as far as can be seen, is more than the gate allows."""
        return self.harm > self.margin

    @property
    def z(self) -> float:
        """Of the harm above the margin, in standard errors."""
        if self.se <= 0:
            return math.copysign(math.inf, self.harm - self.margin) if self.harm != self.margin else 0.0
        return evalues.normal_score((self.harm - self.margin) / self.se, self.freedom)

    @property
    def is_within(self) -> bool:
        return self.z <= -Z_PASS and not self.worst

    @property
    def is_surely_beyond(self) -> bool:
        """Whether even a cautious lower bound (one in a thousand) is beyond the margin."""
        return self.z >= Z_SURE

    def with_earlier(self, earlier: Sequence[tuple[float, float]]) -> "Finding":
        """Drawn together with what closed stages found, by precision.

        The same devices stand in several stages, so their errors are taken for fully dependent: the common standard
        error is a mean of theirs, never smaller than the best.
        """
        known = [(harm, se) for harm, se in (*earlier, (self.harm, self.se)) if se > 0]
        if len(known) < 2:
            return self
        weights = np.array([1 / se**2 for _, se in known])
        weights /= weights.sum()
        harm = float(sum(w * k[0] for w, k in zip(weights, known, strict=True)))
        se = float(sum(w * k[1] for w, k in zip(weights, known, strict=True)))
        return replace(self, harm=harm, se=se)


def against_control(gate: Gate, canary: Rows, control: Rows) -> Finding:
    """Both arms have at least `SMALLEST_ARM` usable devices."""
    if gate.about.kind == "share":
        rate = scores.usual_rate(gate, canary.beside(control))
        now = scores.rate_now(gate, control)
        margin = gate.limit if gate.is_added else max((gate.limit - 1) * now, ERROR_MARGIN)
        moved, stayed = (
            scores.share_change(gate, canary, rate),
            scores.share_change(gate, control, rate),
        )
        found = _contrast(moved, stayed, ERROR_TAU, margin, canary.profiles)
        # What so few requests can show at the margin: equal arms without an error are not yet the same.
        least = math.sqrt(max(now + margin, ERROR_MARGIN) / max(1.0, _requests(gate, canary)))
        return replace(found, rate=now, se=max(found.se, least))
    usual = _robust_mean(scores.level_change(msgspec.structs.replace(gate, at_least=False), control, 0.0))
    moved, stayed = scores.level_change(gate, canary, usual), scores.level_change(gate, control, usual)
    if gate.about.kind == "ratio":
        moved, stayed = traffic.taken_off(moved, stayed, traffic.changes(canary, control))
    found = _contrast(moved, stayed, tau_of(gate, control), margin_of(gate, control), canary.profiles)
    return replace(found, rate=usual)


def against_limit(gate: Gate, canary: Rows) -> Finding:
    """Without control: the devices' own scores beyond the limit."""
    if gate.about.kind == "level":
        moved, tau = scores.level_above(gate, canary), max(abs(gate.limit) * 0.5, 1e-9)
    else:
        limit = allowed_share(gate)
        moved, tau = scores.share_above(gate, limit, canary), limit
        if len(canary) < SMALLEST_ARM:
            return _few(gate, canary, limit)
    return _alone(moved, tau)


def against_before(gate: Gate, canary: Rows) -> Finding:
    """Each device against its own past. Weak: the hour and the weekday are in it."""
    if gate.about.kind == "share":
        rate = scores.usual_rate(gate, canary)
        margin = gate.limit if gate.is_added else max((gate.limit - 1) * rate, ERROR_MARGIN)
        found = _alone(scores.share_change(gate, canary, rate), ERROR_TAU)
        return replace(found, margin=margin, rate=rate)
    found = _alone(scores.level_change(gate, canary, 0.0), tau_of(gate, canary))
    return replace(found, margin=margin_of(gate, canary))


def allowed_share(gate: Gate) -> float:
    """Of requests: the p-quantile lies above the limit when more than 1-p of the requests do."""
    quantile = gate.about.quantile
    return gate.limit if quantile is None else 1 - quantile


def margin_of(gate: Gate, usual: Rows) -> float:
    if gate.about.kind == "ratio":
        return math.log(gate.limit)
    return abs(gate.limit - 1) * _usual_level(gate, usual)


def tau_of(gate: Gate, usual: Rows) -> float:
    return LATENCY_TAU if gate.about.kind == "ratio" else 0.1 * _usual_level(gate, usual)


def _usual_level(gate: Gate, devices: Rows) -> float:
    return max(abs(float(np.median(devices.of(gate)[2]))), 1e-9)


def _requests(gate: Gate, devices: Rows) -> float:
    return float(scores.shares(gate, devices)[1].sum())


def _robust_mean(own: Scores) -> float:
    """The weighted mean of what `own` holds, outliers pulled in."""
    tame = _winsorized(own.score, _reach(own))
    return float(tame.sum() / max(1e-12, own.slope.sum()))


@dataclass(frozen=True)
class _Part:
    """A contrast of all devices, or of one profile's."""

    harm: float
    se: float
    e: float
    freedom: int

    def z(self, margin: float) -> float:
        return evalues.normal_score((self.harm - margin) / self.se, self.freedom)

    def counted(self, margin: float) -> float:
        return self.e if self.z(margin) > -Z_PASS else min(1.0, self.e)


def _contrast(canary: Scores, control: Scores, tau: float, margin: float, names: Sequence[str]) -> Finding:
    """Canary minus control, in the gate's unit; half of the evidence is that of profiles on their own."""
    usual = _usual_spread(canary, control)
    everyone = _part(canary, control, usual, tau)
    parts = _profiles(canary, control, usual, tau, names)
    apart = {name: part.counted(margin) for name, part in parts.items()}
    e = everyone.counted(margin)
    if apart:
        e = (e + float(np.mean(list(apart.values())))) / 2
    worst = max(parts, key=lambda name: parts[name].z(margin), default="")
    is_sure = bool(worst) and parts[worst].z(margin) >= Z_SURE + 0.1 * len(parts)
    return Finding(
        everyone.harm,
        everyone.se,
        margin,
        e,
        everyone.freedom,
        len(canary),
        len(control),
        worst=worst if is_sure else "",
    )


def _profiles(
    canary: Scores, control: Scores, usual: float, tau: float, names: Sequence[str]
) -> dict[str, _Part]:
    """The profiles with enough devices in both arms; with control enough, each has its own idea of what is usual."""
    parts = {}
    for at, name in enumerate(names):
        left, right = canary.take(canary.profile == at), control.take(control.profile == at)
        if min(len(left), len(right)) >= SMALLEST_PROFILE_ARM:
            own = _usual_spread(left, right) if len(right) >= _ENOUGH_TO_KNOW else usual
            parts[name] = _part(left, right, own, tau)
    return parts if len(parts) > 1 else {}


def _part(canary: Scores, control: Scores, usual: float, tau: float) -> _Part:
    """Both arms in the gate's own unit, so that one that was seen for longer weighs no more."""
    left, right = _in_unit(canary, usual), _in_unit(control, usual)
    n, m = len(left), len(right)
    freedom = n + m - 2
    squares = (float(((left - left.mean()) ** 2).sum()), float(((right - right.mean()) ** 2).sum()))
    pooled = sum(squares) / max(1, freedom)
    # The arms were not seen for equally long, and so do not vary alike: each has its own variance, drawn to the common.
    variance = [
        max((own + _SHRINK * pooled) / (count - 1 + _SHRINK), _noise(arm))
        for own, count, arm in ((squares[0], n, canary), (squares[1], m, control))
    ]
    se = math.sqrt(variance[0] / n + variance[1] / m)
    difference = float(left.mean() - right.mean())
    z = evalues.normal_score(difference / se, freedom)
    if pooled > 0 and z > 0:
        z *= evalues.skew_factor(left, right, difference / math.sqrt(pooled * (1 / n + 1 / m)))
    return _Part(difference, se, evalues.of_normal(z, tau, se), freedom)


def _in_unit(own: Scores, usual: float) -> Floats:
    """Scores in the gate's unit, pulled in around their own median: a real shift of all must not be cut off."""
    reach = _WINSOR_SDS * max(usual, math.sqrt(_noise(own)))
    return _winsorized(own.score / float(own.slope.mean()), reach)


def _noise(own: Scores) -> float:
    return float(own.noise.mean()) / float(own.slope.mean()) ** 2


def _usual_spread(canary: Scores, control: Scores) -> float:
    """The usual deviation in the gate's unit: control's, or that of both arms where control alone is too small to know.

    The outermost devices have no say in it.
    """
    arms = [control] if len(control) >= _ENOUGH_TO_KNOW else [canary, control]
    inner = [own.score / float(own.slope.mean()) for own in arms]
    return _trimmed_sd(np.concatenate([values - np.median(values) for values in inner]))


def _alone(own: Scores, tau: float) -> Finding:
    """The mean of one arm, above zero."""
    tame = _winsorized(own.score, _reach(own)) if len(own) >= SMALLEST_ARM else own.score
    slope, count = float(own.slope.mean()), len(own)
    spread = float(tame.var(ddof=1)) if count > 1 else 0.0
    se = math.sqrt(max(spread, float(own.noise.mean())) / count)
    freedom = max(1, count - 1)
    mean = float(tame.mean())
    z = evalues.normal_score(mean / se, freedom) if se > 0 else 0.0
    e = evalues.of_normal(z, tau * slope, se)
    return Finding(mean / slope, se / slope, 0.0, e, freedom, count, 0)


def _few(gate: Gate, canary: Rows, limit: float) -> Finding:
    """Fewer devices than can show how devices differ: they are judged for themselves, by their requests."""
    bad, requests = scores.shares(gate, canary)
    total = max(1.0, float(requests.sum()))
    worse = float(bad.sum()) / total - limit
    return Finding(
        worse,
        few_se(limit, total),
        0.0,
        evalues.of_rate(float(bad.sum()), total, limit),
        10**6,
        len(canary),
        0,
    )


def few_se(limit: float, requests: float) -> float:
    """Passing takes a plain 95 % bound where devices are few: three over the limit, in requests without an error."""
    return math.sqrt(limit / max(1.0, requests)) * _Z_PLAIN / Z_PASS


def _reach(own: Scores) -> float:
    return _WINSOR_SDS * max(_trimmed_sd(own.score), math.sqrt(float(own.noise.mean())))


def _trimmed_sd(values: Floats) -> float:
    """The standard deviation without the outermost two percent of each side, at least one device."""
    count = len(values)
    cut = max(1, count // 50) if count >= SMALLEST_ARM else 0
    return float(np.sort(values)[cut : count - cut].std()) * _TRIMMED


def _winsorized(values: Floats, reach: float) -> Floats:
    centre = float(np.median(values))
    return np.clip(values, centre - reach, centre + reach)
