"""Post-processing operations: an output array in, what the caller is told out.

Exponentials are computed in float64 and rounded to float32, which hides the last-bit differences between math
libraries but is not proven to.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from edgekit.tensors import Array
from edgekit.transforms.base import JSON, Operation, Size, checked_axis


class PostOperation(Operation, frozen=True):
    """Works on the output called `output`."""

    output: str

    def apply(self, value: Array) -> Array:
        """The changed array; as it is, unless the operation computes."""
        return value

    def answer(self, value: Array) -> JSON:
        """What the caller is told about the (changed) array."""
        return as_json(value)

    def misfit(self, last_axis: int | None) -> str:  # noqa: ARG002  # only some operations look at it
        """What is wrong with the arguments for an output of that last axis; empty if nothing."""
        return ""


class Softmax(PostOperation, frozen=True):
    """Probabilities along `axis`, float32."""

    axis: int = -1
    example: ClassVar[str] = 'output = "logits", axis = -1'

    def apply(self, value: Array) -> Array:
        axis = checked_axis(value, self.axis, "softmax")
        real = value.astype(np.float64)
        powers = np.exp(real - real.max(axis=axis, keepdims=True))
        probabilities: Array = (powers / powers.sum(axis=axis, keepdims=True)).astype(np.float32)
        return probabilities


class Sigmoid(PostOperation, frozen=True):
    """1 / (1 + exp(-value)), float32."""

    example: ClassVar[str] = 'output = "logit"'

    def apply(self, value: Array) -> Array:
        # exp of a negative magnitude only, so that nothing overflows.
        real = value.astype(np.float64)
        power = np.exp(-np.abs(real))
        positive = 1 / (1 + power)
        return np.where(real >= 0, positive, power * positive).astype(np.float32)


class TopK(PostOperation, frozen=True):
    """The `k` largest entries of the last axis, best first, equal ones by index; leading axes of one are dropped."""

    k: Size = 1
    labels: tuple[str, ...] = ()
    example: ClassVar[str] = 'output = "logits", k = 5, labels = ["cat", "dog"]'

    def misfit(self, last_axis: int | None) -> str:
        if last_axis is None or not self.labels or len(self.labels) == last_axis:
            return ""
        return f"{len(self.labels)} labels for {last_axis} entries of output {self.output!r}"

    def answer(self, value: Array) -> JSON:
        return self._ranked(_squeezed(value, keep=1))

    def _ranked(self, rows: Array) -> JSON:
        if rows.ndim > 1:
            return [self._ranked(row) for row in rows]
        best = np.argsort(-rows.astype(np.float64), kind="stable")[: self.k]
        return [self._entry(int(index), rows[index]) for index in best]

    def _entry(self, index: int, score: Any) -> JSON:
        entry: dict[str, JSON] = {"index": index, "score": as_json(np.asarray(score))}
        if self.labels:
            entry["label"] = self.labels[index] if index < len(self.labels) else str(index)
        return entry


class Threshold(PostOperation, frozen=True):
    """Each entry with whether it reaches `at`; `labels` names below and reached."""

    at: float = 0.5
    labels: tuple[str, str] | None = None
    example: ClassVar[str] = 'output = "score", at = 0.5, labels = ["silence", "speech"]'

    def answer(self, value: Array) -> JSON:
        return self._judged(_squeezed(value, keep=0))

    def _judged(self, values: Array) -> JSON:
        if values.ndim:
            return [self._judged(part) for part in values]
        reached = bool(values.item() >= self.at)
        entry: dict[str, JSON] = {"value": as_json(values), "reached": reached}
        if self.labels is not None:
            entry["label"] = self.labels[reached]
        return entry


def as_json(value: Array) -> JSON:
    """Numbers as (nested lists of) Python numbers; what JSON cannot hold (NaN, infinities) becomes null."""
    if value.ndim:
        return [as_json(part) for part in value]
    number = value.item()
    if isinstance(number, float) and not np.isfinite(number):
        return None
    plain: JSON = number
    return plain


def _squeezed(value: Array, *, keep: int) -> Array:
    """Without leading axes of one entry, down to `keep` axes."""
    while value.ndim > keep and value.shape[0] == 1:
        value = value[0]
    return value


POST: Mapping[str, type[PostOperation]] = {
    "softmax": Softmax,
    "sigmoid": Sigmoid,
    "top_k": TopK,
    "threshold": Threshold,
}
