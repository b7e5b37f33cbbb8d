"""Activation ranges for ONNX Runtime's quantizer, from a stream.

ONNX Runtime's own calibrater keeps what it collects from every sample; this one keeps a minimum, a maximum and a
histogram for each tensor.

Always true
 1. Memory does not grow with the number of samples.
 2. A range holds zero: a quantized zero is exact.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from converters.recipes import facts
from edgekit.errors import DataError, ToolFailedError
from edgekit.tensors import Array

BINS = 2048
# Share of values that a percentile range keeps.
KEPT = 0.9999
# Values of one tensor of one sample that a histogram counts, evenly spaced; extremes see all.
COUNTED = 1 << 16
Range = tuple[float, float]
# Fractions of the extremes that are tried as ranges.
SHARES = tuple(float(share) for share in np.linspace(1.0, 0.1, 46))
LEVELS = 256
# Magnitudes from here on stand for infinity: masks are written with the lowest float, or one near to it.
ENDLESS = 1e30


@dataclass
class Spread:
    """Running extremes and a histogram over (-limit, limit), whose width doubles as larger values come.

    Doubling merges bins in pairs, so counts stay exact.
    """

    low: float = float("inf")
    high: float = float("-inf")
    limit: float = 0.0
    # Zeros that came before anything else, while no width was known.
    zeros: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: Array) -> None:
        """Raises: ValueError for a value that is not finite."""
        flat = values.ravel()
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not np.isfinite(low) or not np.isfinite(high):
            raise ValueError("not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(-low, high))
        counted = flat[:: -(-flat.size // COUNTED)].astype(np.float64)
        if not self.limit:
            self.zeros += counted.size
        else:
            # Scaled by a power of two and rounded down before the middle is added: exact, so that a tiny negative value
            # lands below zero whatever the width.
            counted *= BINS / 2 / self.limit
            np.floor(counted, out=counted)
            counted += BINS // 2
            self.counts += np.bincount(counted.astype(np.int64), minlength=BINS)

    def extremes(self) -> Range:
        return min(self.low, 0.0), max(self.high, 0.0)

    def percentile(self, kept: float = KEPT) -> Range:
        """The range that holds `kept` of all values, half of the rest cut at each end."""
        total = int(self.counts.sum())
        if not total or not self.limit:
            return self.extremes()
        cut = total * (1 - kept) / 2
        seen = np.cumsum(self.counts)
        first = int(np.searchsorted(seen, cut, side="right"))
        last = int(np.searchsorted(seen, total - cut, side="left"))
        width = 2 * self.limit / BINS
        low, high = -self.limit + first * width, -self.limit + (last + 1) * width
        return max(min(low, 0.0), min(self.low, 0.0)), min(max(high, 0.0), max(self.high, 0.0))

    def least_error(self) -> Range:
        """The range, a fraction of the extremes, whose 256 levels lose least in the mean square: what is cut off
        against the width of a level.
        """
        return self._best(self._squared_error)

    def least_divergence(self) -> Range:
        """The range, a fraction of the extremes, whose 256 levels keep the distribution best (Kullback-Leibler).

        Source: Migacz (2017), "8-bit Inference with TensorRT", GTC.
        """
        return self._best(self._divergence)

    def _best(self, cost: Callable[[float, float], float]) -> Range:
        low, high = self.extremes()
        if not int(self.counts.sum()) or not self.limit:
            return low, high
        return min(((low * share, high * share) for share in SHARES), key=lambda range_: cost(*range_))

    def _centres(self) -> NDArray[np.float64]:
        return np.linspace(-self.limit, self.limit, BINS, endpoint=False) + self.limit / BINS

    def _squared_error(self, low: float, high: float) -> float:
        centres = self._centres()
        beyond = np.maximum(centres - high, 0) + np.maximum(low - centres, 0)
        rounding = ((high - low) / LEVELS) ** 2 / 12
        return float((self.counts * (beyond**2 + rounding)).sum())

    def _divergence(self, low: float, high: float) -> float:
        inside = (self._centres() >= low) & (self._centres() <= high)
        if not inside.any():
            return float("inf")
        counts = self.counts[inside].astype(np.float64)
        kept = counts.copy()
        first, last = np.flatnonzero(inside)[[0, -1]]
        kept[0] += self.counts[:first].sum()
        kept[-1] += self.counts[last + 1 :].sum()
        # Bins that share a level become as likely as each other, save those that held nothing.
        levels = np.arange(counts.size) * min(LEVELS, counts.size) // counts.size
        filled = np.bincount(levels, counts > 0)
        spread = np.bincount(levels, counts) / np.maximum(filled, 1)
        told = np.where(counts > 0, spread[levels], 0.0)
        wanted, given = kept / kept.sum(), (told + 1e-9) / (told + 1e-9).sum()
        seen = wanted > 0
        return float((wanted[seen] * np.log(wanted[seen] / given[seen])).sum())

    def _widen(self, reach: float) -> None:
        if reach and not self.limit:
            self.limit = float(2.0 ** np.ceil(np.log2(reach * (1 + 1e-9))))
            self.counts[BINS // 2] += self.zeros
        while reach >= self.limit > 0:
            # Pairs of bins become one, counted from the middle outwards.
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = merged
            self.limit *= 2


# How a range is chosen, by name; each takes the spread and the share of values that `percentile` keeps.
METHODS: Mapping[str, Callable[[Spread, float], Range]] = {
    "minmax": lambda spread, _: spread.extremes(),
    "percentile": lambda spread, kept: spread.percentile(kept),
    "mse": lambda spread, _: spread.least_error(),
    "entropy": lambda spread, _: spread.least_divergence(),
}


def spreads(model: onnx.ModelProto, feeds: Iterable[Mapping[str, Array]]) -> dict[str, Spread]:
    """Spreads of every float tensor that the graph computes or takes, over all feeds.

    A tensor that holds infinities, or numbers that stand for them (a mask), has none. Raises: DataError if there is no
    feed; ToolFailedError if an input is not finite, or the model computes NaN.
    """
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    watched = _computed(probed)
    known = {value.name for value in probed.graph.output}
    probed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in watched if name not in known)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Fusions would remove the tensors whose ranges are wanted.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Other processes convert beside this one.
    for key, value in facts.of("onnxruntime").beside.items():
        options.add_session_config_entry(key, str(value))
    session = ort.InferenceSession(probed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: dict[str, Spread] = {}
    endless: set[str] = set()
    count = 0
    for feed in feeds:
        count += 1
        values = dict(zip(watched, session.run(watched, dict(feed)), strict=True))
        for name, array in (*feed.items(), *values.items()):
            # What is no array is a sequence of them.
            if not isinstance(array, np.ndarray) or array.dtype != np.float32 or name in endless:
                continue
            if name in values and _is_endless(array):
                endless.add(name)
                continue
            try:
                found.setdefault(name, Spread()).add(array)
            except ValueError as error:
                raise ToolFailedError(
                    f"calibration sample {count}: tensor {name} is not finite; look at that sample"
                ) from error
    if not count:
        raise DataError("the calibration data holds no sample")
    return {name: spread for name, spread in found.items() if name not in endless}


def _is_endless(array: Array) -> bool:
    """False of what holds NaN, which is no smaller or larger than anything."""
    return bool(array.size) and bool(max(-array.min(), array.max()) >= ENDLESS)


def floats(model: onnx.ModelProto) -> set[str]:
    """Names of the tensors that the graph computes and that are known to be float32."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }


def _computed(model: onnx.ModelProto) -> list[str]:
    return [name for node in model.graph.node for name in node.output if name]
