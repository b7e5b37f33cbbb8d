"""How large a drop may really be, given the samples that were seen: one-sided bounds, paired by sample.

Pure: arrays in, numbers out. Deterministic by seed.

Always true
 1. What is drawn are whole *groups*: sequences where there are any, otherwise samples; the same weights for source and
    candidate.
 2. No spread is no proof. One group that nobody saw stands beside the n that were seen, as bad as one can be (bounded
    metrics), or as bad as the worst seen or the source's own spread (unbounded ones; of counts of errors, its worst).
 3. For outcomes of 0 and 1 the bound is Clopper and Pearson's, to the noise of the draws: n groups of which k are worse
    and none better give the 1 - alpha quantile of Beta(k + 1, n - k).

A metric that is a ratio of sums is drawn with exponential weights (the Bayesian bootstrap): n seen groups and the unseen
one with Dirichlet(1, ..., 1) weights are Gaffke's bound, which holds for small n where a bootstrap's percentiles do not
(one harmful flip of 300: the percentile says .010 where .016 is right). For other metrics, which cost a call a draw, the
spread of few bootstrap draws goes into a bound of the same size: a gamma quantile by Cornish and Fisher's expansion.

Sources: Clopper, Pearson (1934), Biometrika 26(4); Rubin (1981), "The Bayesian Bootstrap", Ann. Statist. 9(1); Gaffke
(2005), "Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative variable", Math.
Methods Statist. 14(4); Learned-Miller, Thomas (2019), "A new confidence interval for the mean of a bounded random
variable", arXiv:1905.06208; Efron, Tibshirani (1993), "An Introduction to the Bootstrap", ch. 13.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from converters.judge.metrics import Metric
from edgekit.tensors import Array

# Draws of weights, where a draw is a row of a matrix product: at least and at most, by the weights that they take.
ROUNDS, _WEIGHTS = (2000, 10_000), 16_000_000
# Draws of samples, for a metric that must see whole outputs again each time, and for outputs of which a draw copies more.
DRAWS, FEWER_DRAWS, LARGE_BYTES = 500, 200, 4_000_000
# For the same where the question is a coarse one: on the search half, which every try and trial looks at and which decides
# nothing for good, on shifted samples, and of who is judged on a few samples only. The draws were most of it (PP-OCRv6's
# detector, 65 masks of 320 x 320: 200 draws take 8 s, clean and shifted 16).
COARSE_DRAWS = 50
# Draws that must lie beyond a percentile for it to mean something.
BEYOND = 5
# Weights that are made at a time, and the share of all groups up to which the distinct ones are few.
_BLOCK, FEW_KINDS = 2_000_000, 0.25
Floats = NDArray[np.float64]
# One row a sample where there are no sequences.
Groups = Sequence[NDArray[np.int64]] | NDArray[np.int64]


@dataclass(frozen=True)
class Own:
    """What one side of a comparison needs, the source's made once: sums of each group, (G, 2), or figures of each draw.
    `harm`: how far the figure falls, at most, were one group wrong, 0 where that is not known.
    """

    sums: Floats | None
    figures: Floats | None
    harm: float = 0.0


@dataclass(frozen=True)
class Bounds:
    """One-sided bounds of a drop. `strange` counts draws whose figure is not finite, of `draws`."""

    low: float
    high: float
    draws: int
    strange: int = 0


def own(
    metric: Metric,
    outputs: Mapping[str, Array],
    labels: Array,
    groups: Groups,
    *,
    seed: int,
    is_coarse: bool,
) -> Own:
    """Of the source, or of a candidate. Raises: DataError if the labels do not fit; MetricError."""
    if metric.parts is not None:
        parts = metric.shares(outputs, labels)
        if isinstance(groups, np.ndarray):
            return Own(parts, None)
        return Own(np.add.reduceat(parts, [group[0] for group in groups], axis=0), None)
    is_large = sum(array.nbytes for array in outputs.values()) > LARGE_BYTES
    rounds = (COARSE_DRAWS if is_coarse else FEWER_DRAWS) if is_large else DRAWS
    draws = np.random.default_rng(seed).integers(0, len(groups), (rounds, len(groups)))
    chosen = (_rows(groups, drawn) for drawn in draws)
    figures = np.array([metric.of_digest(Taken(outputs, rows), labels[rows]) for rows in chosen])
    harm = 0.0
    if metric.harms is not None:
        each = metric.harms(outputs, labels)
        harm = float(max(each[group].sum() for group in groups))
    return Own(None, figures, harm)


def _rows(groups: Groups, drawn: NDArray[np.int64]) -> NDArray[np.int64]:
    if isinstance(groups, np.ndarray):
        return np.asarray(groups[drawn, 0], np.int64)
    return np.concatenate([groups[group] for group in drawn])


def bounds(
    metric: Metric,
    source: Own,
    candidate: Own,
    drop: float,
    *,
    groups: int,
    seed: int,
    alpha: float,
    is_unseen_counted: bool,
) -> Bounds:
    """The interval that holds the true drop but for a chance of `alpha` on each side.

    `is_unseen_counted` False leaves rule 2 out, for what is known to compute the same by other means.
    """
    if source.sums is not None and candidate.sums is not None:
        return _by_weights(
            metric,
            (source.sums, candidate.sums),
            drop,
            seed=seed,
            alpha=alpha,
            is_unseen_counted=is_unseen_counted,
        )
    assert source.figures is not None
    assert candidate.figures is not None
    harm = 0.0
    if is_unseen_counted:
        # The source's spread over draws is sigma / sqrt(n), and a group of one sigma moves a mean by sigma / n; its own
        # errors may be rarer and larger than that. A source without any spread tells no scale: then a group counts for
        # its whole share.
        with np.errstate(invalid="ignore"):
            spread = float(np.std(source.figures))
            error = _size(-source.figures if metric.higher_is_better else source.figures)
        share = 1 / groups if metric.is_bounded or not spread else 0.0
        harm = max(spread / math.sqrt(groups), share, source.harm, error)
    drops = _drops(metric, source.figures, candidate.figures)
    return _by_moments(drops, drop, harm=harm, alpha=alpha)


def _by_weights(
    metric: Metric,
    sums: tuple[Floats, Floats],
    drop: float,
    *,
    seed: int,
    alpha: float,
    is_unseen_counted: bool,
) -> Bounds:
    with np.errstate(invalid="ignore", over="ignore"):
        drawn, weights = _drawn(np.hstack(sums), seed)
    found = []
    for side in (1, -1):
        total = drawn
        if is_unseen_counted:
            total = drawn + weights[:, None] * _unseen(metric, sums, side)
        if side < 0 and min(own_sums[:, 0].min() for own_sums in sums) >= 0:
            # What cannot be negative is not made so by a group that is better than any.
            total = np.maximum(total, 0)
        found.append(_drops(metric, _figures(metric, total[:, :2]), _figures(metric, total[:, 2:])))
    strange = int(sum(np.sum(~np.isfinite(drops)) for drops in found))
    if strange:
        return Bounds(-math.inf, math.inf, 2 * len(found[0]), strange)
    high = float(np.quantile(found[0], 1 - alpha, method="higher"))
    low = float(np.quantile(found[1], alpha, method="lower"))
    return Bounds(min(low, drop), max(high, drop), 2 * len(found[0]))


def _unseen(metric: Metric, sums: tuple[Floats, Floats], side: int) -> Floats:
    """The group that nobody saw, (4,): source's and candidate's share. `side` 1 makes the candidate worse, -1 better."""
    source, candidate = sums
    width = float(source[:, 1].mean())
    sign = 1 if metric.higher_is_better else -1
    best, worst = ((width, width), (0.0, width))[::sign]
    if metric.is_bounded:
        return np.array([*best, *worst] if side > 0 else [*worst, *best])
    # How much worse each group makes the candidate, and how far the source's own groups lie apart, in the figure's unit.
    ours, theirs = _influences(source), _influences(candidate)
    harms = side * sign * (ours - theirs)
    place = int(np.argmax(harms))
    spread = float(np.std(ours))
    if all(np.array_equal(each, np.rint(each)) for each in sums):
        # Counts of errors: many groups have none, and few have many, of which a spread says little. So the worst that the
        # source itself does; where neither errs, a whole group of errors.
        spread = float(np.max(-sign * ours)) if ours.any() else 0.0 if harms.any() else 1.0
    if harms[place] >= spread:
        return np.array([*source[place], *candidate[place]])
    moved = candidate.mean(axis=0)
    moved[0] -= side * sign * spread * moved[1]
    return np.array([*source.mean(axis=0), *moved])


def _influences(sums: Floats) -> Floats:
    """What each group adds to the ratio of sums beyond its share, (G,), had it the mean weight."""
    total = sums.sum(axis=0)
    if not total[1]:
        return np.zeros(len(sums))
    result: Floats = (sums[:, 0] - total[0] / total[1] * sums[:, 1]) / sums[:, 1].mean()
    return result


def _by_moments(drops: Floats, drop: float, *, harm: float, alpha: float) -> Bounds:
    strange = int(np.sum(~np.isfinite(drops)))
    if strange:
        return Bounds(-math.inf, math.inf, len(drops), strange)
    variance = float(np.var(drops))
    skew = _size(drops)
    z = NormalDist().inv_cdf(1 - alpha)
    level = max(alpha, BEYOND / len(drops))

    def reach(size: float) -> float:
        unseen = size if harm else 0.0
        return unseen + z * math.sqrt(variance + unseen**2) + (z * z - 1) / 3 * size

    high = drop + reach(max(harm, skew, 0.0))
    low = drop - reach(max(harm, -skew, 0.0))
    percentiles = np.quantile(drops, [level, 1 - level])
    return Bounds(float(min(low, percentiles[0], drop)), float(max(high, percentiles[1], drop)), len(drops))


def _size(figures: Floats) -> float:
    """How large single rare events are that drawn figures are the sum of: those of size h, each as likely as rare, have a
    third moment of h times the second. Negative where they push downwards.
    """
    variance = float(np.var(figures))
    return float(np.mean((figures - figures.mean()) ** 3)) / variance if variance else 0.0


def _drawn(sums: Floats, seed: int) -> tuple[Floats, Floats]:
    """Weighted sums over the groups seen, (rounds, columns), and the weight of the one unseen, (rounds,)."""
    kinds, counts = _kinds(sums)
    if len(kinds) <= len(sums) * FEW_KINDS:
        # Groups that are alike need one weight: n exponential ones sum to a gamma of shape n.
        rounds = int(np.clip(_WEIGHTS // len(kinds), *ROUNDS))
        weights = np.random.default_rng((seed, 1)).standard_gamma(counts, (rounds, len(kinds)))
        drawn = weights @ kinds
    else:
        groups = len(sums)
        rounds = int(np.clip(_WEIGHTS // groups, *ROUNDS))
        rows = max(1, _BLOCK // groups)
        starts = range(0, rounds, rows)
        drawn = np.concatenate(
            [_block(seed, start, min(rows, rounds - start), groups) @ sums for start in starts]
        )
    # Evenly over its distribution: where nothing differs this weight alone decides, and noise would be seen.
    shares = (np.random.default_rng(seed).permutation(rounds) + 0.5) / rounds
    return drawn, -np.log(shares)


def _kinds(sums: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """The distinct rows, and how many there are of each."""
    names = np.zeros(len(sums), np.int64)
    for column in sums.T:
        values, places = np.unique(column, return_inverse=True)
        # Renumbered each time, so that no product overflows.
        _, names = np.unique(names * len(values) + places, return_inverse=True)
    _, first, counts = np.unique(names, return_index=True, return_counts=True)
    return sums[first], counts


@lru_cache(maxsize=12)
def _block(seed: int, start: int, rows: int, groups: int) -> NDArray[np.float32]:
    """Kept for the next candidate: 8 MB each."""
    return np.random.default_rng((seed, start)).standard_exponential((rows, groups), np.float32)


def _figures(metric: Metric, sums: Floats) -> Floats:
    if metric.finish is Metric.finish and type(metric).of_sums is Metric.of_sums:
        # Nothing to do but divide, of ten thousand draws.
        with np.errstate(invalid="ignore"):
            return np.asarray(sums[:, 0] / np.maximum(sums[:, 1], 1e-12))
    return np.array([metric.of_sums(row) for row in sums], np.float64)


def _drops(metric: Metric, source: Floats, candidate: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        return np.array(
            [metric.drop(*pair) for pair in zip(source.tolist(), candidate.tolist(), strict=True)]
        )


class Taken(Mapping[str, Array]):
    """A digest of the chosen samples, of which an output is copied when somebody looks at it."""

    def __init__(self, outputs: Mapping[str, Array], chosen: NDArray[np.int64]) -> None:
        self._outputs, self._chosen = outputs, chosen
        self._copies: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name not in self._copies:
            self._copies[name] = self._outputs[name][self._chosen]
        return self._copies[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)
