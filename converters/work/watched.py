"""What is kept of a model's outputs for the histograms that devices are held against: a few values of a few samples."""

from dataclasses import dataclass, field

import numpy as np

from converters.data.datasets import spread
from edgekit import confidence
from edgekit.tensors import Array

# Samples that are looked at, and values of one sample.
SAMPLES, VALUES = 256, 1024


@dataclass
class Watched:
    """One output: of each sample that is looked at some values, and the highest probability, where it may be classes, by
    softmax (`top`) and as it stands (`peak`).
    """

    values: list[Array] = field(default_factory=list)
    top: list[Array] = field(default_factory=list)
    peak: list[Array] = field(default_factory=list)

    def add(self, output: Array) -> None:
        self.values.append(sampled(output))
        if confidence.has_classes(output):
            self.top.append(confidence.top(output, is_probability=False))
            self.peak.append(confidence.top(output, is_probability=True))


def looked_at(count: int) -> list[int]:
    """Which of so many samples."""
    found: list[int] = spread(np.arange(count), SAMPLES).tolist()
    return found


def sampled(array: Array) -> Array:
    """A copy of up to `VALUES` values, each as likely as any other: even steps would meet one channel of an image only."""
    flat = array.ravel()
    if flat.size <= VALUES:
        return flat.copy()
    return flat[np.random.default_rng(flat.size).integers(0, flat.size, VALUES)]
