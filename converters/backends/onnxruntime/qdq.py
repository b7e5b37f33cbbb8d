"""ONNX Runtime's static int8: Q/DQ pairs where a kernel takes them, calibrated ranges, and a model that loads.

Always true
 1. A layer's name is its node's name in the canonical graph after folding; the same source gives the same names.
 2. What is returned was loaded by ONNX Runtime and ran on one calibration sample; a layer that breaks the model was
    found, left in float and named in the notes, in a bounded number of tries.
"""

import difflib
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

from converters.backends import Prepared, Unsupported, settling
from converters.backends.onnxruntime import graph
from converters.backends.settling import Part
from converters.graph import canonical, tidy
from converters.quantize import calibration
from converters.quantize.calibration import METHODS, Spread
from converters.recipes.knobs import Knob
from converters.recipes.recipes import Plan
from edgekit.errors import ToolFailedError
from edgekit.gaps import largest_gap
from edgekit.manifest import Option
from edgekit.quiet import quietly
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
    wanted = prepared.source.reference.run(sample)
    endless = _endless(model, ranges)
    left = frozenset(plan.tuning.float_layers) | endless

    def attempt(skipped: frozenset[str]) -> onnx.ModelProto:
        made = quietly(partial(_with_pairs, model, ranges, chosen, left | skipped))
        quietly(partial(_run, made, sample, wanted))
        return made

    layers = {node.name: node for node in model.graph.node if node.op_type in chosen.ops}
    if not any(node.op_type not in MOVES for node in layers.values()):
        raise Unsupported(
            "not tried: no layer that ONNX Runtime has in int8 stands outside of branches (If, Loop) in this model"
        )
    made, notes = settle(attempt, {name: node for name, node in layers.items() if name not in left})
    if not any(node.op_type == "QuantizeLinear" for node in made.graph.node):
        raise Unsupported(
            "not tried: no layer of this model becomes int8 (its values are of no type that is quantized)"
        )
    told = sorted(endless & set(layers))
    if told:
        notes = (f"left in float, since infinity has no place in int8: {', '.join(told)}", *notes)
    return made, notes


def _endless(model: onnx.ModelProto, ranges: Mapping[str, calibration.Range]) -> frozenset[str]:
    """Names of the nodes that take or give a tensor whose values have no finite range, such as a mask."""
    without = {
        name for node in model.graph.node for name in node.output if name and name not in ranges
    } & calibration.floats(model)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor)
            if values.size and not float(np.abs(values).max()) < calibration.ENDLESS:
                without.add(tensor.name)
    # The limits of a Clip are no values of its own.
    return frozenset(
        node.name
        for node in model.graph.node
        if without & {*node.output, *(node.input[:1] if node.op_type == "Clip" else node.input)}
    )


def settle(
    attempt: Callable[[frozenset[str]], onnx.ModelProto], layers: Mapping[str, onnx.NodeProto]
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """As `settling.settle`, by nodes."""
    parts = {name: Part(node.op_type, (*node.output, *node.input)) for name, node in layers.items()}
    return settling.settle(attempt, parts, "ONNX Runtime")


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
    result: onnx.ModelProto = quantizer.model.model
    # Not by its own sort (1.32), which does not see what a loop or a branch reads from outside.
    tidy.sort_nodes(result.graph)
    onnx.checker.check_model(result)
    return result


def _run(model: onnx.ModelProto, sample: Mapping[str, Array], wanted: Mapping[str, Array]) -> None:
    """Raises: whatever ONNX Runtime raises; ToolFailedError if an output is not finite where the source's is."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for value, array in zip(session.get_outputs(), session.run(None, dict(sample)), strict=True):
        source = wanted.get(value.name)
        if not np.all(np.isfinite(array)) and (source is None or largest_gap(array, source) == float("inf")):
            raise ToolFailedError(f"output {value.name} is not finite")
