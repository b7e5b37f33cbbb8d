"""ONNX Runtime's static int8: Q/DQ pairs where a kernel takes them, calibrated ranges, and a model that loads.

Always true
 1. A layer's name is its node's name in the canonical graph after folding; the same source gives the same names.
 2. What is returned was loaded by ONNX Runtime and ran on one calibration sample; a layer that breaks the model was
    found, left in float and named in the notes, in a bounded number of tries.
"""

import difflib
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process

from converters.backends import Prepared, Unsupported
from converters.backends.onnxruntime import graph
from converters.graph import canonical
from converters.quantize import calibration
from converters.quantize.calibration import METHODS, Spread
from converters.recipes.knobs import Knob
from converters.recipes.recipes import Plan
from converters.source.quiet import first_line, quietly
from edgekit.errors import ToolFailedError
from edgekit.manifest import Option
from edgekit.tensors import Array

# Operators with an int8 kernel that gains by it. Data movement follows the tensors that it moves; what is quantized
# for itself alone (Softmax, LayerNormalization, a lone Add) buys nothing and costs range.
OPS = (
    "AveragePool", "Clip", "Conv", "ConvTranspose", "Flatten", "Gather", "Gemm", "MatMul", "MaxPool", "Pad", "Relu",
    "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
# What an int8 kernel gains most by.
PRODUCTS_ONLY = "Conv,ConvTranspose,Gemm,MatMul"
# These compute nothing of their own: they follow the layers around them, so leaving one in float means nothing.
MOVES = frozenset(
    {"Clip", "Flatten", "Gather", "MaxPool", "Pad", "Relu", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
     "Unsqueeze"}
)  # fmt: skip
# Conversions tried before a model that does not load is given up.
MAX_TRIES = 16
SETTINGS = "calibration, percentile, per_channel, reduce_range, signed_activations, ops"


@dataclass(frozen=True)
class Choices:
    """A plan's recipe, constraints and settings as the quantizer takes them. `percentile` is a share, 0..1."""

    calibration: str
    percentile: float
    per_channel: bool
    reduce_range: bool
    symmetric: bool
    signed: bool
    ops: tuple[str, ...]


def choices(plan: Plan) -> Choices:
    """Raises: ToolFailedError for a setting that is unknown or has an impossible value."""
    given: dict[str, Option] = dict(plan.tuning.settings)
    constraints = plan.constraints
    percentile = given.pop("percentile", 100 * calibration.KEPT)
    method = given.pop("calibration", "percentile" if plan.recipe.scheme == "percentile" else "minmax")
    found = Choices(
        calibration=str(method),
        percentile=float(percentile) / 100,
        per_channel=bool(given.pop("per_channel", constraints.per_channel)),
        reduce_range=bool(given.pop("reduce_range", constraints.reduce_range)),
        symmetric=constraints.symmetric_activations,
        signed=bool(given.pop("signed_activations", constraints.signed_activations)),
        ops=tuple(str(given.pop("ops", ",".join(OPS))).split(",")),
    )
    if given:
        raise ToolFailedError(f"onnxruntime: unknown setting {', '.join(given)}; there are {SETTINGS}")
    if found.calibration not in METHODS:
        raise ToolFailedError(
            f"onnxruntime: calibration = {found.calibration!r}; there are {', '.join(METHODS)}"
        )
    if not 0.5 < found.percentile <= 1:
        raise ToolFailedError(f"onnxruntime: percentile = {percentile}; give one above 50, at most 100")
    return found


def knobs(plan: Plan) -> tuple[Knob, ...]:
    """What a search may turn. What the target's ISA decides (`reduce_range`, signs) is not among it."""
    scales = (Knob("per_channel", (None, False)),) if plan.constraints.per_channel else ()
    return (
        Knob("calibration", (None, "percentile", "mse", "entropy")),
        Knob("percentile", (99.0, 99.9, 99.99, 99.999), only=("calibration", "percentile")),
        Knob("ops", (None, PRODUCTS_ONLY)),
        *scales,
    )


def folded(prepared: Prepared) -> onnx.ModelProto:
    """The canonical model with constants folded, BatchNormalization in the weights and its patterns recognised; every
    node has a name.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "folded.onnx"
        quietly(
            partial(quant_pre_process, str(prepared.canonical.path), str(target), skip_symbolic_shape=True)
        )
        model = graph.for_int8(onnx.load(str(target)))
    canonical.name_nodes(model.graph)
    return model


def check_layers(names: Sequence[str], model: onnx.ModelProto) -> None:
    """Raises: ToolFailedError for a name that no node has, with close ones."""
    known = [node.name for node in model.graph.node]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=4, cutoff=0.4)
            raise ToolFailedError(
                f"onnxruntime: float_layers: no layer {name!r}"
                + (f"; close are {', '.join(near)}" if near else "")
            )


def quantized(prepared: Prepared, plan: Plan) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The QDQ model, and notes on what had to stay float.

    Raises: Unsupported if there is nothing to quantize, ToolFailedError.
    """
    assert prepared.calibration is not None
    chosen = choices(plan)
    model = folded(prepared)
    check_layers(plan.tuning.float_layers, model)
    ranges = _ranges(prepared, model, chosen)
    sample = next(islice(prepared.calibration(), 1))
    left = frozenset(plan.tuning.float_layers)

    def attempt(skipped: frozenset[str]) -> onnx.ModelProto:
        made = quietly(partial(_with_pairs, model, ranges, chosen, left | skipped))
        quietly(partial(_run, made, sample))
        return made

    layers = {node.name: node for node in model.graph.node if node.op_type in chosen.ops}
    if not any(node.op_type not in MOVES for node in layers.values()):
        raise Unsupported(
            "not tried: no layer that ONNX Runtime has in int8 stands outside of branches (If, Loop) in this model"
        )
    return settle(attempt, {name: node for name, node in layers.items() if name not in left})


def settle(
    attempt: Callable[[frozenset[str]], onnx.ModelProto], layers: Mapping[str, onnx.NodeProto]
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Quantize without as few layers as it takes to get a model that runs.

    The layer that an error names goes first; where it names none, one kind of operator after the other is tried,
    rarest first, and the guilty kind is halved until no half suffices.

    Raises: ToolFailedError after `MAX_TRIES`, with the first error.
    """
    tries = _Tries(attempt)
    skipped: frozenset[str] = frozenset()
    while (made := tries.make(skipped)) is None and tries.count < MAX_TRIES:
        blamed = _blamed(str(tries.last), layers) - skipped
        if not blamed:
            made, skipped = _by_kind(tries, skipped, layers)
            break
        skipped |= blamed
    if made is None:
        assert tries.first is not None
        raise ToolFailedError(
            f"ONNX Runtime's int8 model does not run: {first_line(tries.first)} ({tries.count} ways tried)"
        )
    return made, _told(skipped, tries.first)


@dataclass
class _Tries:
    """Attempts that are counted; `make` gives None where one failed or none is left."""

    attempt: Callable[[frozenset[str]], onnx.ModelProto]
    count: int = 0
    first: Exception | None = None
    last: Exception | None = None

    def make(self, skipped: frozenset[str]) -> onnx.ModelProto | None:
        if self.count >= MAX_TRIES:
            return None
        self.count += 1
        try:
            return self.attempt(skipped)
        except Exception as error:  # noqa: BLE001  # quantizer, checker and engine raise anything; all mean: not so
            self.first = self.first or error
            self.last = error
            return None


def _by_kind(
    tries: _Tries, skipped: frozenset[str], layers: Mapping[str, onnx.NodeProto]
) -> tuple[onnx.ModelProto | None, frozenset[str]]:
    kinds: dict[str, list[str]] = {}
    for name, node in layers.items():
        kinds.setdefault(node.op_type, []).append(name)
    for names in sorted(kinds.values(), key=len):
        made = tries.make(skipped | frozenset(names))
        if made is not None:
            return _halved(tries, skipped, names, made)
    return None, skipped


def _halved(
    tries: _Tries, skipped: frozenset[str], names: Sequence[str], made: onnx.ModelProto
) -> tuple[onnx.ModelProto, frozenset[str]]:
    """The smallest part of `names`, by halving, without which the model runs."""
    part = list(names)
    while len(part) > 1:
        middle = len(part) // 2
        for half in (part[:middle], part[middle:]):
            smaller = tries.make(skipped | frozenset(half))
            if smaller is not None:
                part, made = half, smaller
                break
        else:
            break
    return made, skipped | frozenset(part)


def _told(skipped: frozenset[str], error: Exception | None) -> tuple[str, ...]:
    if error is None:
        return ()
    return (f"left in float, since int8 broke the model: {', '.join(sorted(skipped))} ({first_line(error)})",)


def _blamed(message: str, layers: Mapping[str, onnx.NodeProto]) -> frozenset[str]:
    """Layers that an error names, by themselves or by a tensor of theirs; the longest names count alone."""
    found: dict[str, int] = {}
    for name, node in layers.items():
        words = [word for word in (name, *node.output, *node.input) if _names(message, word)]
        if words:
            found[name] = max(map(len, words))
    longest = max(found.values(), default=0)
    return frozenset(name for name, length in found.items() if length == longest)


def _names(message: str, word: str) -> bool:
    """Whether the name stands in the message by itself, not inside a longer one; `x` and the like prove nothing."""
    return len(word) > 2 and re.search(rf"(?<![\w./]){re.escape(word)}(?![\w/])", message) is not None


def _ranges(prepared: Prepared, model: onnx.ModelProto, chosen: Choices) -> dict[str, calibration.Range]:
    """Calibrated once for all schemes of a source: the spreads are kept in `prepared.memo`."""
    assert prepared.calibration is not None
    name = "onnxruntime spreads"
    if name not in prepared.memo:
        prepared.memo[name] = calibration.spreads(model, prepared.calibration())
    spreads: dict[str, Spread] = prepared.memo[name]
    method = METHODS[chosen.calibration]
    return {tensor: method(spread, chosen.percentile) for tensor, spread in spreads.items()}


def _with_pairs(
    model: onnx.ModelProto,
    ranges: Mapping[str, calibration.Range],
    chosen: Choices,
    left: frozenset[str],
) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    data = TensorsData(
        CalibrationMethod.MinMax,
        {
            name: TensorData(lowest=np.float32(low), highest=np.float32(high))
            for name, (low, high) in ranges.items()
        },
    )
    quantizer = QDQQuantizer(
        copy,
        chosen.per_channel,
        chosen.reduce_range,
        QuantType.QInt8,
        QuantType.QInt8 if chosen.symmetric or chosen.signed else QuantType.QUInt8,
        data,
        [],
        sorted(left),
        list(chosen.ops),
        {"ActivationSymmetric": chosen.symmetric, "WeightSymmetric": True},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    result: onnx.ModelProto = quantizer.model.model
    onnx.checker.check_model(result)
    return result


def _run(model: onnx.ModelProto, sample: Mapping[str, Array]) -> None:
    """Raises: whatever ONNX Runtime raises; ToolFailedError if an output is not finite."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for value, array in zip(session.get_outputs(), session.run(None, dict(sample)), strict=True):
        if not np.all(np.isfinite(array)):
            raise ToolFailedError(f"output {value.name} is not finite")
