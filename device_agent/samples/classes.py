"""The model's best class and its probability, of outputs as the engine gives them."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from edgekit import confidence
from edgekit.manifest import Manifest
from edgekit.tensors import Array

# Post-processing that says of an output that it holds scores of classes.
_OF_CLASSES = ("softmax", "top_k", "threshold", "sigmoid")
# So far from 1 may the sum of probabilities be that were computed in few bits.
_SUM_SLACK = 0.02


class Best(NamedTuple):
    """A class, and its probability in [0, 1]."""

    label: str
    confidence: float


class Classes:
    """Which output of a model holds its classes: the one that post-processing treats so, else the only one that can."""

    def __init__(self, manifest: Manifest) -> None:
        named = [step for step in manifest.postprocess if step.op in _OF_CLASSES and "output" in step.args]
        self._output = str(named[0].args["output"]) if named else _only(manifest)
        self._labels: tuple[str, ...] = next(
            (tuple(step.args["labels"]) for step in named if step.args.get("labels")), ()
        )

    def best(self, outputs: Mapping[str, Array]) -> Best | None:
        """None where no output holds the classes of one input.

        Scores that are no probabilities are taken for logits: softmax of several, the logistic function of one.
        """
        scores = outputs.get(self._output)
        if scores is None or scores.dtype.kind != "f" or scores.size != (scores.shape or (1,))[-1]:
            return None
        values = scores.ravel().astype(np.float64)
        if not values.size or not np.isfinite(values).all():
            return None
        if values.size == 1:
            one = float(values[0])
            share = one if 0 <= one <= 1 else float(1 / (1 + np.exp(-np.clip(one, -500, 500))))
            return Best(self._name(int(share >= 0.5)), max(share, 1 - share))
        is_probability = values.min() >= 0 and abs(values.sum() - 1) <= _SUM_SLACK
        (share,) = confidence.top(values, is_probability=bool(is_probability))
        return Best(self._name(int(values.argmax())), min(1.0, float(share)))

    def _name(self, index: int) -> str:
        return self._labels[index] if index < len(self._labels) else str(index)


def _only(manifest: Manifest) -> str:
    """The one output whose values all lie on its last axis."""
    states = {pair.output for pair in manifest.state}
    fit = [
        spec.name
        for spec in manifest.outputs
        if spec.name not in states and spec.shape and all(dim == 1 for dim in spec.shape[:-1])
    ]
    return fit[0] if len(fit) == 1 else ""
