"""Evidence that survives looking: e-values, and the small-sample scores that go into them.

An e-value is non-negative and has a mean of at most one while nothing is wrong, so 20 is reached with a chance of at
most one in twenty, however often one looks; weighted means of e-values are e-values.

Sources: Robbins (1970), "Statistical Methods Related to the Law of the Iterated Logarithm" (normal mixture);
Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas (2024), "Time-uniform central limit theory and asymptotic confidence
sequences"; Grünwald, Ly, Perez-Ortiz, ter Schure (2020), "The safe logrank test"; Wallace (1959), "Bounds on normal
approximations to Student's and the chi-square distributions"; Robinson (1982), "Saddlepoint approximations for
permutation tests and confidence intervals"; Skovgaard (1987), "Saddlepoint expansions for conditional distributions".
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NORMAL = NormalDist()
# How much more often a broken release may fall silent, and shares of devices that may fail to install it.
# With the weights of a mixture: what kills a fifth of devices within minutes kills some fifteen times as many as usual.
HAZARDS = {4.0: 0.1, 15.0: 0.75, 50.0: 0.15}
SHARES = (0.1, 0.3, 0.6, 0.95)
_HIGHEST = 500.0
# A permutation's pool is thinned to so many representative scores; a mean is normal without help beyond `_LARGE`.
_POOL = 400
_LARGE = 300
_WORTH_REFINING = 2.0


def of_normal(z: float, tau: float, se: float) -> float:
    """The one-sided normal mixture: evidence that a mean with standard error `se` and score `z` lies above zero.

    `tau` is the size of a harm that is worth finding, in the unit of `se`.
    """
    if se <= 0:
        return 1.0
    v = (tau / se) ** 2
    exponent = z * z * v / (2 * (1 + v))
    return 2 / math.sqrt(1 + v) * math.exp(min(exponent, _HIGHEST)) * NORMAL.cdf(z * math.sqrt(v / (1 + v)))


def of_share(bad: float, total: float, limit: float) -> float:
    """Evidence that more than `limit` of devices go bad: a mixture of likelihood ratios over `SHARES` above it."""
    limit = max(limit, 1e-6)
    worse = [share for share in SHARES if share > limit] or [(1 + limit) / 2]
    return math.fsum(_likelihood_ratio(bad, total, share, limit) for share in worse) / len(worse)


def of_rate(bad: float, total: float, limit: float) -> float:
    """Evidence that bad requests come at more than `limit`, from few devices: Poisson, 2 to 16 times the limit."""
    worse = [min(1.0, limit * times) for times in (2.0, 4.0, 16.0)]
    logs = [bad * math.log(rate / limit) - (rate - limit) * total for rate in worse]
    return math.fsum(math.exp(min(log, _HIGHEST)) for log in logs) / len(logs)


def _likelihood_ratio(bad: float, total: float, share: float, limit: float) -> float:
    log = bad * math.log(share / limit) + (total - bad) * math.log((1 - share) / (1 - limit))
    return math.exp(min(log, _HIGHEST))


def of_silence(
    canary: Sequence[float], control: Sequence[float], at_risk: tuple[int, int], entered: Floats | None = None
) -> float:
    """The safe log-rank test: evidence that canaries fall silent more often than control.

    `canary` and `control` are the moments at which devices fell silent, `at_risk` how many of each could have. Canaries
    that move one after another are at risk each from its own moment: `entered`, sorted (None: all from the beginning).
    """
    events = sorted([(moment, 0) for moment in control] + [(moment, 1) for moment in canary])
    gone = [0, 0]
    logs = [0.0] * len(HAZARDS)
    for moment, arm in events:
        there = at_risk[0] if entered is None else int(np.searchsorted(entered, moment, side="right"))
        canaries, controls = there - gone[1], at_risk[1] - gone[0]
        if canaries > 0 and controls > 0:
            for at, hazard in enumerate(HAZARDS):
                whole = hazard * canaries + controls
                logs[at] += math.log((hazard if arm else 1.0) * (canaries + controls) / whole)
        gone[arm] += 1
    weighted = zip(HAZARDS.values(), logs, strict=True)
    return math.fsum(weight * math.exp(min(log, _HIGHEST)) for weight, log in weighted)


def chance_at_least(bad: int, total: int, share: float) -> float:
    """P(X >= bad) for X binomial(total, share): exact up to 400 trials, beyond that Chernoff's upper bound.

    Source: Hoeffding (1963), "Probability Inequalities for Sums of Bounded Random Variables", theorem 1.
    """
    if bad <= total * share:
        return 1.0
    if share <= 0:
        return 0.0
    if total <= 400:
        return math.fsum(
            math.comb(total, k) * share**k * (1 - share) ** (total - k) for k in range(bad, total + 1)
        )
    seen = bad / total
    divergence = seen * math.log(seen / share)
    if seen < 1:
        divergence += (1 - seen) * math.log((1 - seen) / (1 - share))
    return math.exp(-total * divergence)


def normal_score(t: float, freedom: int) -> float:
    """The standard normal z with about the tail of Student's t (Wallace's approximation)."""
    if freedom < 1:
        return 0.0
    shrink = (8 * freedom + 1) / (8 * freedom + 3)
    return math.copysign(shrink * math.sqrt(freedom * math.log1p(t * t / freedom)), t)


def skew_factor(canary: Floats, control: Floats, t: float) -> float:
    """By how much a normal tail has to be corrected for the skewness of the scores, at most by a third upwards.

    Errors and latencies are skewed, and a normal tail would stop good releases. `t` is the plain statistic.
    """
    plain = normal_score(t, len(canary) + len(control) - 2)
    if plain < _WORTH_REFINING:
        return 1.0
    return min(permutation_score(canary, control, t) / plain, 4 / 3)


def permutation_score(canary: Floats, control: Floats, t: float) -> float:
    """The z of the canaries' sum among all ways to draw as many devices from both arms.

    `t` is the plain statistic: it is returned as a z where refining changes nothing (small, or both arms large) or the
    saddlepoint does not converge.
    """
    plain = normal_score(t, len(canary) + len(control) - 2)
    if plain < _WORTH_REFINING or min(len(canary), len(control)) >= _LARGE:
        return plain
    pool, counts = _pool(canary, control)
    found = _double_saddlepoint(pool, counts, len(canary), float(canary.sum()))
    return plain if found is None else found


def _pool(canary: Floats, control: Floats) -> tuple[Floats, Floats]:
    """Scores and how many devices each stands for."""
    if len(control) <= _POOL:
        return np.concatenate([canary, control]), np.ones(len(canary) + len(control))
    parts = np.array_split(np.sort(control), _POOL)
    means = np.array([part.mean() for part in parts])
    sizes = np.array([len(part) for part in parts], dtype=float)
    if len(canary) > _POOL:
        own = np.array_split(np.sort(canary), _POOL)
        means = np.concatenate([means, [part.mean() for part in own]])
        return means, np.concatenate([sizes, [float(len(part)) for part in own]])
    return np.concatenate([canary, means]), np.concatenate([np.ones(len(canary)), sizes])


def _double_saddlepoint(pool: Floats, counts: Floats, drawn: int, total: float) -> float | None:
    """r* of drawing `drawn` of the pool without replacement with a sum of at least `total`."""
    whole = float(counts.sum())
    spread = float(pool.std())
    if spread <= 0 or not 0 < drawn < whole:
        return None
    centre = float((pool * counts).sum() / whole)
    scores, target = (pool - centre) / spread, (total - drawn * centre) / spread
    share = drawn / whole
    theta = alpha = 0.0
    for _ in range(40):
        tilt = np.exp(np.clip(alpha + theta * scores, -50.0, 50.0))
        chance = share * tilt / (1 - share + share * tilt)
        gaps = (float((counts * scores * chance).sum()) - target, float((counts * chance).sum()) - drawn)
        spreads = counts * chance * (1 - chance)
        a, b = float((spreads * scores * scores).sum()), float((spreads * scores).sum())
        c = float(spreads.sum())
        determinant = a * c - b * b
        if determinant <= 1e-12:
            return None
        step = ((c * gaps[0] - b * gaps[1]) / determinant, (a * gaps[1] - b * gaps[0]) / determinant)
        scale = min(1.0, 2.0 / max(1e-9, abs(step[0]), abs(step[1])))
        theta, alpha = theta - scale * step[0], alpha - scale * step[1]
        if abs(step[0]) + abs(step[1]) < 1e-8:
            break
    else:
        return None
    tilt = np.exp(np.clip(alpha + theta * scores, -50.0, 50.0))
    cumulant = float((counts * np.log(1 - share + share * tilt)).sum())
    square = 2 * (theta * target + alpha * drawn - cumulant)
    if theta <= 0 or square <= 0:
        return None
    w = math.sqrt(square)
    u = theta * math.sqrt(determinant / (whole * share * (1 - share)))
    return w + math.log(u / w) / w if u > 0 else None
