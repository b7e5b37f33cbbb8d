"""What quantizing one layer costs: the words in which every backend's analysis answers.

Pure: outputs in, figures out.
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from edgekit.gaps import agreed
from edgekit.tensors import Array

# Ratio given where there is no noise at all.
MAX_SNR_DB = 200.0
# Divergence given where a result is not finite, far above what `_LEAST` allows between probabilities; infinity has no
# place in JSON, where findings are kept.
MAX_DIVERGENCE = 100.0
# Added to probabilities before their logarithm is taken.
_LEAST = 1e-9
# Rounding below zero that a probability may show.
_ROUNDING = 1e-6


class LayerError(msgspec.Struct, frozen=True):
    """One quantized layer. `name` is the engine's own; `snr_db` the signal-to-noise ratio of the model's outputs when
    this layer alone is quantized, in decibels: the smaller, the more harm. `divergence`, where an output holds
    probabilities and the backend looked, is what this layer alone does to them (Kullback-Leibler, in nats).
    """

    name: str
    op_type: str
    snr_db: float
    divergence: float | None = None

    @property
    def harm(self) -> float:
        """To rank layers of one model by."""
        return -self.snr_db if self.divergence is None else self.divergence


def divergence(wanted: Sequence[Mapping[str, Array]], have: Sequence[Mapping[str, Array]]) -> float | None:
    """Mean Kullback-Leibler divergence of the float outputs' distributions from the others', in nats; the worst output
    counts. None where no output is one of probabilities along its last axis; `MAX_DIVERGENCE` where a result is not
    finite.
    """
    found = [
        float(np.mean([_divergence(one[name], other[name]) for one, other in zip(wanted, have, strict=True)]))
        for name in wanted[0]
        if all(_is_distribution(one[name]) for one in wanted)
    ]
    return max(found, default=None)


def _is_distribution(array: Array) -> bool:
    if array.ndim < 1 or array.shape[-1] < 2 or not np.issubdtype(array.dtype, np.floating):
        return False
    sums = array.astype(np.float64).sum(axis=-1)
    return bool(float(array.min()) >= -_ROUNDING and np.allclose(sums, 1, atol=1e-3))


def _divergence(wanted: Array, have: Array) -> float:
    if not np.isfinite(have).all():
        return MAX_DIVERGENCE
    ours, theirs = (np.maximum(array.astype(np.float64), 0) + _LEAST for array in (wanted, have))
    return float((ours * np.log(ours / theirs)).sum(axis=-1).mean())


def snr_db(wanted: Sequence[Mapping[str, Array]], have: Sequence[Mapping[str, Array]]) -> float:
    """Power of the float outputs over the power of the difference, in decibels; the worst output counts.

    `MAX_SNR_DB` where there is no difference, -`MAX_SNR_DB` where a result is not finite and the float model's is, or is
    another infinity. Infinities that both have count for nothing.
    """
    return min(_snr([one[name] for one in wanted], [one[name] for one in have]) for name in wanted[0])


def _snr(wanted: Sequence[Array], have: Sequence[Array]) -> float:
    pairs = [agreed(ours, theirs) for ours, theirs in zip(wanted, have, strict=True)]
    signal = sum(float(np.square(ours).sum()) for ours, _ in pairs)
    noise = sum(float(np.square(ours - theirs).sum()) for ours, theirs in pairs)
    if not np.isfinite(noise) or not np.isfinite(signal):
        return -MAX_SNR_DB
    if not noise:
        return MAX_SNR_DB
    return float(np.clip(10 * np.log10(max(signal, 1e-300) / noise), -MAX_SNR_DB, MAX_SNR_DB))
