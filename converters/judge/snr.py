"""Signal to noise of an output against the float source's, for each group of channels of its own range.

Pure. Entries are (N, C, K): of each sample up to `KEPT` entries, K of each of its C channels (C is 1 where all entries
share one scale), so that whatever is kept knows its channel; ragged arrays where K differs between samples.

Always true
 1. Signal is what tells samples apart: an entry's variation around its mean over the samples. What 25 +- 0.5 is worth
    is 0.5, not 25. Entries that do not vary are measured apart, by their magnitude; so is everything of a lone sample.
 2. A large channel never hides a small one: channels further apart than `SPREAD` are measured apart, and a channel
    that is lost among others of its range is named by itself.
 3. A channel that is silent in the source costs nothing while it stays silent.
 4. Equal infinities (or NaN) at equal places are agreement; any other non-finite value is a bad sample.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError
from edgekit.samples import is_ragged
from edgekit.tensors import Array

# Entries of a sample's output that are looked at.
KEPT = 16_384
# Samples whose entries are worth keeping: more would not change a figure in dB.
SAMPLES = 256
# No figure lies beyond, so that it can be written as a number.
CAP_DB = 100.0
# Channels of one group: the largest range is at most this many times the smallest.
SPREAD = 8.0
# A channel with less signal to noise than this is lost: noise of half its power.
LOST_DB = 3.0
# Of channels that compete on one scale, those count as lost that reach this share of the largest range: what never
# comes near winning may vanish in the noise of the others.
COMPETES = 0.5
# What is rare among them (a class of few pixels, a label of few samples) weighs nothing in their common noise. Where it is
# seen at least so often, losing a tenth of it is told.
RARE_EVENTS, RARE_DB = 20, 10.0
# An entry whose variation is a smaller share of its mean does not vary: float rounding must not pass for a signal.
CONSTANT = 1e-3
# An entry that does not vary and is a smaller share of its channel's largest value is a zero, not a constant.
SMALL = 0.1
# Channels below this share of the largest are silent.
SILENT = 1e-6

Floats = NDArray[np.float64]


class Scale(msgspec.Struct, frozen=True):
    """How one output's entries fall into channels.

    `axis` of a sample's shape, counted from its end; None where all entries share one scale. `own` leading channels
    have ranges of their own and are grouped by them (None: all), the others compete on one scale.
    """

    axis: int | None = None
    own: int | None = None


ONE_SCALE = Scale()


class Group(msgspec.Struct, frozen=True):
    """Channels measured together: `label` names output and channels, `snr_db` lies within +-`CAP_DB`. `bad_sample` is
    the first one (of those whose entries are given) with a non-finite value where the source has none, or the other way round.
    """

    label: str
    snr_db: float
    bad_sample: int | None = None


def decibel(signal: float, noise: float) -> float:
    """10 log10(signal / noise), powers, within +-`CAP_DB`; without noise, `CAP_DB`."""
    if noise <= 0:
        return CAP_DB
    if signal <= 0 or not math.isfinite(noise):
        return -CAP_DB
    return max(-CAP_DB, min(CAP_DB, 10 * (math.log10(signal) - math.log10(noise))))


def of_ratio(ratio: float) -> float:
    """The same of a ratio of powers."""
    return decibel(ratio, 1.0)


@lru_cache(maxsize=64)
def chosen(count: int, kept: int) -> NDArray[np.int64]:
    """`kept` of `count` places, ascending, spread evenly without a period that could meet rows or columns only.

    Source: Knuth (1998), "The Art of Computer Programming" 3, §6.4 (multiplicative hashing by the golden ratio).
    """
    if kept >= count:
        return np.arange(count, dtype=np.int64)
    hashed = np.arange(count, dtype=np.uint64) * np.uint64(2_654_435_769) % np.uint64(2**32)
    return np.sort(np.argsort(hashed, kind="stable")[:kept]).astype(np.int64)


def entries(sample: Array, scale: Scale) -> Array:
    """(C, K) kept entries of one sample's output: float32, or float64 where that is needed to be exact.

    What is not finite is kept even where its place is not: it takes the first place.
    """
    values = sample.astype(np.float32 if sample.dtype.kind == "f" and sample.itemsize < 8 else np.float64)
    channels = (
        values.reshape(1, -1)
        if scale.axis is None or not values.ndim
        else np.moveaxis(values, scale.axis, 0).reshape(values.shape[scale.axis], -1)
    )
    found: Array = channels[:, chosen(channels.shape[1], max(1, KEPT // max(len(channels), 1)))].copy()
    if found.size < channels.size and found.size and np.isfinite(found).all():
        others = channels[~np.isfinite(channels)]
        found.flat[:1] = others[:1] if others.size else found.flat[:1]
    return found


def mismatches(source: Array, candidate: Array) -> NDArray[np.bool_]:
    """(N,) whether a sample holds something non-finite that the other side has not at the same place."""
    return np.array([_differs(*pair) for pair in zip(source, candidate, strict=True)], np.bool_)


def _differs(source: Array, candidate: Array) -> bool:
    if source.shape != candidate.shape:
        raise DataError(f"an output of shape {candidate.shape} cannot be compared with {source.shape}")
    odd = ~(np.isfinite(source) & np.isfinite(candidate))
    return not np.array_equal(source[odd], candidate[odd], equal_nan=True)


def powers(source: Array, candidate: Array) -> Floats:
    """Signal and noise of each sample, (N, 2), all channels together."""
    means, is_still = _still(source)
    found = []
    for mine, other in zip(source, candidate, strict=True):
        values = mine.astype(np.float64)
        with np.errstate(invalid="ignore"):
            signal = np.where(is_still, values, values - means)
        found.append((np.sum(np.where(np.isfinite(values), signal, 0) ** 2), _noise(mine, other).sum()))
    return np.array(found, np.float64).reshape(-1, 2)


def _still(source: Array) -> tuple[Floats, NDArray[np.bool_]]:
    """Means over the samples, and what does not vary and counts by its magnitude: of each entry, (C, K); of each channel,
    (C, 1), where samples differ in shape.
    """
    values = (_joined(source) if is_ragged(source) else source).astype(np.float64)
    means = _mean(values)
    if len(source) < 2:
        return means, np.ones_like(means, np.bool_)
    is_finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        off = np.where(is_finite, values - means, 0.0)
    spread = np.sqrt((off**2).sum(axis=0) / np.maximum(is_finite.sum(axis=0), 1))
    peaks = np.abs(np.where(is_finite, values, 0.0)).max(axis=0)
    channel = peaks.max(axis=-1, keepdims=True) if peaks.ndim else peaks
    return means, (spread <= CONSTANT * np.abs(means)) & (peaks >= SMALL * channel) & (peaks > 0)


def signal_and_noise(source: Floats, candidate: Floats) -> Floats:
    """The same of plain rows (N, E), in units of the largest source value: small values may not vanish when squared."""
    scale = float(np.abs(source).max(initial=0.0, where=np.isfinite(source))) or 1.0
    return powers(source[:, None] / scale, candidate[:, None] / scale)


def _noise(source: Array, candidate: Array) -> Floats:
    is_finite = np.isfinite(source) & np.isfinite(candidate)
    with np.errstate(invalid="ignore"):
        difference = candidate.astype(np.float64) - source.astype(np.float64)
    found: Floats = np.where(is_finite, difference, 0.0) ** 2
    return found


def _joined(ragged: Array) -> Array:
    """Each place of each sample as a sample of its own, (places, C, 1)."""
    together: Array = np.concatenate(list(ragged), axis=-1).T[:, :, None]
    return together


def _mean(values: Array) -> Floats:
    is_finite = np.isfinite(values)
    total = np.where(is_finite, values, 0).sum(axis=0, dtype=np.float64)
    found: Floats = total / np.maximum(is_finite.sum(axis=0), 1)
    return found


class _Channels(msgspec.Struct, frozen=True):
    """Of each channel, (C,): power, noise and range of what varies, and of what does not; `events` is the number of
    entries that reach half the range.
    """

    power: Floats
    noise: Floats
    reach: Floats
    events: NDArray[np.int64]
    still_power: Floats
    still_noise: Floats
    still_reach: Floats
    peak: Floats


def groups(name: str, scale: Scale, source: Array, candidate: Array) -> tuple[Group, ...]:
    """Of two digests of the same samples, one at least.

    Raises: DataError where shapes differ.
    """
    bad = np.flatnonzero(mismatches(source, candidate))
    found = [Group(name, -CAP_DB, int(bad[0]))] if len(bad) else []
    if is_ragged(source):
        source, candidate = _joined(source), _joined(candidate)
    if not source.size:
        return tuple(found) or (Group(name, CAP_DB),)
    channels = _measured(source, candidate)
    loudest = channels.peak.max()
    silent = channels.peak <= SILENT * loudest if loudest > 0 else np.ones(len(channels.peak), bool)
    found += _of_silent(name, channels, silent)
    for members, is_shared in _clusters(channels.reach, ~silent & (channels.reach > 0), scale):
        label = _label(name, members, len(silent))
        found.append(Group(label, decibel(channels.power[members].sum(), channels.noise[members].sum())))
        found += _lost(name, channels, members, is_shared=is_shared)
    for members, _ in _clusters(channels.still_reach, ~silent & (channels.still_reach > 0), scale):
        ratio = decibel(channels.still_power[members].sum(), channels.still_noise[members].sum())
        found.append(Group(f"{_label(name, members, len(silent))} (constant)", ratio))
    return tuple(found) or (Group(name, CAP_DB),)


def _measured(source: Array, candidate: Array) -> _Channels:
    means, is_still = _still(source)
    is_finite = np.isfinite(source)
    values = np.where(is_finite, source, 0.0).astype(np.float64)
    noise = _noise(source, candidate)
    off = np.where(is_finite, values - means, 0.0)
    if len(source) < 2:
        off, is_still = values, np.zeros_like(is_still)
    peaks = np.abs(values).max(axis=0)
    reach = np.where(is_still, 0.0, np.abs(off).max(axis=0)).max(axis=-1)

    def summed(squares: Floats, mask: NDArray[np.bool_]) -> Floats:
        total: Floats = np.where(mask, squares.sum(axis=0), 0.0).sum(axis=-1)
        return total

    return _Channels(
        power=summed(off**2, ~is_still),
        noise=summed(noise, ~is_still),
        reach=reach,
        events=(np.where(is_still, 0.0, np.abs(off)) >= reach[:, None] / 2).sum(axis=(0, 2)),
        still_power=summed(values**2, is_still),
        still_noise=summed(noise, is_still),
        still_reach=np.where(is_still, peaks, 0.0).max(axis=-1),
        peak=peaks.max(axis=-1),
    )


def _of_silent(name: str, channels: _Channels, silent: NDArray[np.bool_]) -> list[Group]:
    """Their noise against the power that the others have on average; nothing where they stay silent."""
    noise = float((channels.noise + channels.still_noise)[silent].sum())
    if noise <= 0:
        return []
    members = np.flatnonzero(silent)
    power = channels.power.sum() or channels.still_power.sum()
    share = float(power) / max(int((~silent).sum()), 1) * len(members)
    return [Group(f"{_label(name, members, len(silent))} (silent)", decibel(share, noise))]


def _clusters(reach: Floats, there: NDArray[np.bool_], scale: Scale) -> list[tuple[NDArray[np.int64], bool]]:
    """Channels in groups, and whether a group competes on one scale."""
    own = len(reach) if scale.own is None else scale.own
    left = [index for index in np.argsort(-reach, kind="stable").tolist() if there[index]]
    shared = [index for index in left if index >= own]
    free = [index for index in left if index < own]
    made: list[tuple[NDArray[np.int64], bool]] = []
    while free:
        members = [index for index in free if reach[index] * SPREAD >= reach[free[0]]]
        free = free[len(members) :]
        made.append((np.array(sorted(members), np.int64), False))
    if shared:
        made.append((np.array(sorted(shared), np.int64), True))
    return made


def _lost(name: str, channels: _Channels, members: NDArray[np.int64], *, is_shared: bool) -> list[Group]:
    """The worst of the channels whose content is gone while their group may still look well."""
    if len(members) < 2:
        return []
    least = COMPETES * channels.reach[members].max() if is_shared else 0.0
    ratios: list[tuple[float, int]] = []
    for index in members.tolist():
        ratio = decibel(float(channels.power[index]), float(channels.noise[index]))
        is_known = is_shared and channels.events[index] >= RARE_EVENTS
        if channels.reach[index] >= least and ratio < (RARE_DB if is_known else LOST_DB):
            ratios.append((ratio, index))
    return [Group(f"{name}[{index}] (lost)", ratio) for ratio, index in sorted(ratios)[:1]]


def _label(name: str, members: NDArray[np.int64], count: int) -> str:
    """`name[0-3,7]`, or the name alone where it is all of them."""
    if len(members) == count:
        return name
    runs = _runs(members.tolist())
    more = ",…" if len(runs) > 4 else ""
    told = ",".join(f"{low}-{high}" if high > low else f"{low}" for low, high in runs[:4])
    return f"{name}[{told}{more}]"


def _runs(indices: Sequence[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and runs[-1][1] == index - 1:
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    return runs
