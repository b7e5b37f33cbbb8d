"""What quantizing one layer costs: the words in which every backend's analysis answers.

Pure: outputs in, figures out.
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from edgekit.tensors import Array

# Ratio given where there is no noise at all.
MAX_SNR_DB = 200.0


class LayerError(msgspec.Struct, frozen=True):
    """One quantized layer. `name` is the engine's own; `snr_db` the signal-to-noise ratio of the model's outputs when
    this layer alone is quantized, in decibels: the smaller, the more harm.
    """

    name: str
    op_type: str
    snr_db: float


def snr_db(wanted: Sequence[Mapping[str, Array]], have: Sequence[Mapping[str, Array]]) -> float:
    """Power of the float outputs over the power of the difference, in decibels; the worst output counts.

    `MAX_SNR_DB` where there is no difference, -`MAX_SNR_DB` where a result is not finite.
    """
    return min(_snr([one[name] for one in wanted], [one[name] for one in have]) for name in wanted[0])


def _snr(wanted: Sequence[Array], have: Sequence[Array]) -> float:
    signal = sum(float(np.square(array.astype(np.float64)).sum()) for array in wanted)
    noise = sum(
        float(np.square(ours.astype(np.float64) - theirs.astype(np.float64)).sum())
        for ours, theirs in zip(wanted, have, strict=True)
    )
    if not np.isfinite(noise):
        return -MAX_SNR_DB
    if not noise:
        return MAX_SNR_DB
    return float(np.clip(10 * np.log10(max(signal, 1e-300) / noise), -MAX_SNR_DB, MAX_SNR_DB))
