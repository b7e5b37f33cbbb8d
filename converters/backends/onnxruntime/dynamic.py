"""ONNX Runtime's dynamic int8: int8 weights of matrix products and LSTMs, activation ranges taken at run time.

Only models that are mostly such weights get it; convolutions stay in float, since what dynamic int8 saves is the
reading of large weights, and a convolution's are few for the work that it does.
"""

from functools import partial
from math import prod
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
from onnxruntime.quantization.quant_utils import QuantizationMode, save_and_reload_model_with_shape_infer

from converters.backends import Prepared, Unsupported
from converters.backends.onnxruntime import apart
from converters.backends.onnxruntime.qdq import check_layers, folded
from converters.recipes.knobs import Knob
from converters.recipes.recipes import Plan
from converters.source.onnx_weights import Writer
from edgekit.errors import ToolFailedError
from edgekit.manifest import Option
from edgekit.quiet import quietly

# Operator → positions of its weights.
PRODUCTS = {"MatMul": (1,), "Gemm": (1,), "LSTM": (1, 2)}
# Recurrent layers that it has in float alone (1.32).
FLOAT_ONLY = frozenset({"GRU", "RNN"})
# Share of the weights that a model computes with, in numbers, that must be in matrix products.
LEAST_SHARE = 0.5
SETTINGS = "per_channel, reduce_range"
# What a product or a recurrent layer becomes.
_IN_INTEGERS = frozenset({"MatMulInteger", "DynamicQuantizeLSTM"})


def knobs(plan: Plan) -> tuple[Knob, ...]:
    """What a search may turn."""
    return (Knob("per_channel", (None, False)),) if plan.constraints.per_channel else ()


def share(model: onnx.ModelProto) -> float:
    """Of all numbers that the model computes with, how many are weights of matrix products; 0..1.

    A table that rows are only looked up in (an embedding) costs no time, however large it is.
    """
    looked_up = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    sizes: dict[str, int] = {
        tensor.name: prod(tensor.dims) for tensor in model.graph.initializer if tensor.name not in looked_up
    }
    weights = {
        node.input[position]
        for node in model.graph.node
        for position in PRODUCTS.get(node.op_type, ())
        if node.input[position] in sizes
    }
    return sum(sizes[name] for name in weights) / max(1, sum(sizes.values()))


def quantized(prepared: Prepared, plan: Plan, folder: Path) -> onnx.ModelProto:
    """The model; weights that are kept apart go into `folder`.

    Raises: Unsupported if few weights are in matrix products, ToolFailedError for unknown names and settings.
    """
    settings: dict[str, Option] = dict(plan.tuning.settings)
    per_channel = bool(settings.pop("per_channel", plan.constraints.per_channel))
    reduce_range = bool(settings.pop("reduce_range", plan.constraints.reduce_range))
    if settings:
        raise ToolFailedError(f"onnxruntime: unknown setting {', '.join(settings)}; there are {SETTINGS}")
    if plan.constraints.symmetric_activations:
        raise Unsupported("ONNX Runtime's ranges at run time are not symmetric, which this profile asks for")
    form = onnx.load(str(prepared.canonical.path), load_external_data=False)
    found = share(form)
    if found < LEAST_SHARE:
        float_only = sorted({node.op_type for node in form.graph.node} & FLOAT_ONLY)
        why = f"; ONNX Runtime has no int8 kernel of {' and '.join(float_only)}" if float_only else ""
        raise Unsupported(f"not tried: few of the weights ({found:.0%}) are in matrix products{why}")
    if prepared.canonical.weights is not None:
        check_layers(plan.tuning.float_layers, form)
        left = frozenset(plan.tuning.float_layers)
        with Writer(folder) as writer:
            return apart.quantized(
                form, prepared.canonical, writer, left, per_channel=per_channel, reduce_range=reduce_range
            )
    model = folded(prepared)
    check_layers(plan.tuning.float_layers, model)
    made: onnx.ModelProto = quietly(
        partial(
            _quantized, model, plan.tuning.float_layers, per_channel=per_channel, reduce_range=reduce_range
        )
    )
    if not _IN_INTEGERS & {node.op_type for node in made.graph.node}:
        # ONNX Runtime's quantizer (1.32) passes over weights of float64.
        raise Unsupported(
            "not tried: no layer of this model becomes int8 (its weights are of no type that is quantized)"
        )
    return made


def _quantized(
    model: onnx.ModelProto, left: tuple[str, ...], *, per_channel: bool, reduce_range: bool
) -> onnx.ModelProto:
    quantizer = ONNXQuantizer(
        save_and_reload_model_with_shape_infer(model),
        per_channel,
        reduce_range,
        QuantizationMode.IntegerOps,
        False,
        QuantType.QInt8,
        QuantType.QUInt8,  # the only kind that DynamicQuantizeLinear makes
        None,
        [],
        # The quantizer makes each Gemm a MatMul of this name first.
        [name for layer in left for name in (layer, f"{layer}_MatMul")],
        ["MatMul", "LSTM"],
        {"MatMulConstBOnly": True},
    )
    quantizer.quantize_model()
    result: onnx.ModelProto = quantizer.model.model
    return result
