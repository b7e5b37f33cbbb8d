"""NNCF's post-training quantization, with what a tuning changes about it.

Always true
 1. A setting or layer that does not exist is an error that names close ones; nothing is left out silently.
 2. Samples stream: NNCF goes over them more than once, and each time they are made anew.
 3. A graph with attention is quantized as a transformer unless a setting says otherwise. Without that, NNCF 3.4
    quantizes inside the softmax's surroundings and smooths nothing, whatever the smoothing setting says.

Settings: `preset` (`mixed`: activations may be asymmetric; `performance`), `model_type` (`transformer`, `plain`),
`smooth_quant_alpha` (0 to 1 for matrix products, -1 for none), `fast_bias_correction` (false: slower, layer after
layer), `percentile` (share of a sample's values, in percent, that an activation's range keeps; the ends are averaged over
samples, and at 100 the outermost of all), `subset_size`. NNCF's default averages each sample's extremes, which cuts off
what few samples reach: on two small linear layers it left 8.6 dB of signal to noise, the outermost ends 32.4.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from converters.backends import Prepared, Unsupported, settling
from converters.backends.openvino import graph
from converters.backends.openvino.facts import FACTS
from converters.backends.openvino.nncf_alone import nncf_loaded
from converters.recipes.knobs import Knob
from converters.recipes.recipes import Plan, Tuning
from edgekit.engines.openvino import core
from edgekit.errors import EdgeKitError, ToolFailedError
from edgekit.gaps import largest_gap
from edgekit.manifest import Option
from edgekit.quiet import first_line, quietly
from edgekit.tensors import Array

# NNCF looks at no more samples than this unless told; the stream ends there.
SUBSET = 300
# Weights in eight bits that leave more of a model's size than this gain nothing.
WORTH = 0.9
WIDE: Mapping[str, Option] = {"percentile": 100.0}
_KINDS: Mapping[str, tuple[Callable[[Option], bool], str]] = {
    "preset": (lambda value: value in ("mixed", "performance"), "mixed or performance"),
    "model_type": (lambda value: value in ("transformer", "plain"), "transformer or plain"),
    "smooth_quant_alpha": (lambda value: _is_number(value, -1, 1), "a number from 0 to 1, or -1 for none"),
    "fast_bias_correction": (lambda value: isinstance(value, bool), "true or false"),
    "percentile": (lambda value: _is_number(value, 90, 100), "a share in percent, 90 to 100"),
    "subset_size": (
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value > 0,
        "a positive whole number",
    ),
}


def knobs(plan: Plan) -> tuple[Knob, ...]:
    """What a search may turn. Slow bias correction is not among it: minutes a try, on large models hours."""
    presets = () if plan.constraints.symmetric_activations else (Knob("preset", (None, "performance")),)
    return (
        *presets,
        Knob("model_type", (None, "plain", "transformer")),
        Knob("smooth_quant_alpha", (None, -1, 0.5, 0.95), only=("model_type", "transformer")),
        Knob("percentile", (None, 99.0, 99.9, 99.99, 100.0)),
    )


class Stream:
    """Calibration samples as NNCF wants them: by the index of the model's input, afresh for each pass."""

    def __init__(self, model: Any, calibration: Callable[[], Iterator[Mapping[str, Array]]]) -> None:
        self._names = [set(port.get_names()) for port in model.inputs]
        self._calibration = calibration

    def __iter__(self) -> Iterator[dict[int, Array]]:
        for feed in self._calibration():
            yield {
                index: next(array for name, array in feed.items() if name in known)
                for index, known in enumerate(self._names)
            }


def quantized(model: Any, prepared: Prepared, plan: Plan) -> tuple[Any, tuple[str, ...]]:
    """The model with int8 weights and activations, and notes on what was decided.

    What NNCF or OpenVINO breaks on stays in float and is named (`backends.settling`).

    Raises: ToolFailedError; Unsupported where nothing becomes int8.
    """
    assert prepared.calibration is not None
    check_settings(plan.tuning)
    graph.settle_recurrent(model)
    names, activations = graph.split_names(plan.tuning.float_layers)
    ignored = graph.resolve_operators(model, names)
    is_transformer = _is_transformer(model, plan.tuning)
    stream = Stream(model, prepared.calibration)
    sample = next(prepared.calibration())
    wanted = prepared.source.reference.run(sample)

    def quantize(skipped: frozenset[str]) -> Any:
        nncf = nncf_loaded()
        settings = plan.tuning.settings
        return nncf.quantize(
            model.clone(),
            nncf.Dataset(stream),
            subset_size=settings.get("subset_size", SUBSET),
            preset=nncf.QuantizationPreset(_preset(plan)),
            fast_bias_correction=settings.get("fast_bias_correction", True),
            model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
            # Checked above. NNCF's own check knows no close names.
            ignored_scope=nncf.IgnoredScope(
                names=[*ignored, *graph.resolve_operators(model, sorted(skipped))]
            ),
            target_device=nncf.TargetDevice.NPU if plan.constraints.accelerator else nncf.TargetDevice.CPU,
            advanced_parameters=_advanced(plan),
        )

    def attempt(skipped: frozenset[str]) -> Any:
        made = _run(partial(quantize, skipped))
        graph.float_first_states(made)
        for quantizer in graph.resolve_activations(made, activations, (*names, *skipped)):
            graph.bypass(quantizer)
        made.validate_nodes_and_infer_types()
        _check_runs(made, sample, wanted)
        return made

    made, notes = settling.settle(attempt, graph.parts(model, names), "OpenVINO")
    if not plan.tuning.float_layers and not graph.activation_quantizers(made):
        raise Unsupported("not tried: no layer that NNCF makes int8 stands outside of loops in this model")
    if is_transformer:
        notes = ("quantized as a transformer: attention stays exact, outliers are smoothed", *notes)
    return made, notes


def _check_runs(model: Any, sample: Mapping[str, Array], wanted: Mapping[str, Array]) -> None:
    """Raises: whatever OpenVINO raises; ToolFailedError if an output is not finite where the source's is."""
    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **FACTS.beside})
    for port, array in compiled(dict(sample)).items():
        source = next((wanted[name] for name in port.get_names() if name in wanted), None)
        if not np.all(np.isfinite(array)) and (source is None or largest_gap(array, source) == float("inf")):
            raise ToolFailedError(f"output {port.get_any_name()} is not finite")


def with_small_weights(model: Any) -> Any:
    """The model with weights in eight bits (asymmetric, one scale a channel) that are computed with in float.

    Raises: ToolFailedError; Unsupported where nothing is large enough to be stored so.
    """
    before = _bytes_of_constants(model)

    def compress() -> Any:
        nncf = nncf_loaded()
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)

    model = _run(compress)
    after = _bytes_of_constants(model)
    if after > WORTH * before:
        raise Unsupported(
            f"not tried: weights in eight bits would leave {100 * after / before:.0f} % of the model's size"
        )
    return model


def _bytes_of_constants(model: Any) -> int:
    return sum(node.get_byte_size() for node in model.get_ops() if node.get_type_name() == "Constant")


def check_settings(tuning: Tuning) -> None:
    """Raises: ToolFailedError for a setting that does not exist or has no such value."""
    for name, value in tuning.settings.items():
        if name not in _KINDS:
            raise graph.unknown("setting of NNCF", name, _KINDS)
        is_right, expected = _KINDS[name]
        if not is_right(value):
            raise ToolFailedError(f"{name} = {value!r}: expected {expected}")


def _is_number(value: Option, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _is_transformer(model: Any, tuning: Tuning) -> bool:
    chosen = tuning.settings.get("model_type")
    return graph.attends(model) if chosen is None else chosen == "transformer"


def _preset(plan: Plan) -> str:
    if plan.constraints.symmetric_activations:
        return "performance"
    return str(plan.tuning.settings.get("preset", "mixed"))


def _run(call: Callable[[], Any]) -> Any:
    try:
        return quietly(call)
    except EdgeKitError:
        raise
    except Exception as error:
        raise ToolFailedError(f"NNCF failed: {first_line(error)}") from error


def _advanced(plan: Plan) -> Any:
    """Weights in seven bits where 8-bit products saturate; one scale a tensor where the target wants that."""
    from nncf.quantization import advanced_parameters as parameters

    settings = plan.tuning.settings
    fix = parameters.OverflowFix
    chosen = {
        "overflow_fix": fix.ENABLE if plan.constraints.reduce_range else fix.DISABLE,
        "weights_quantization_params": parameters.QuantizationParameters(
            per_channel=plan.constraints.per_channel
        ),
    }
    if "smooth_quant_alpha" in settings:
        chosen["smooth_quant_alphas"] = parameters.AdvancedSmoothQuantParameters(
            matmul=float(settings["smooth_quant_alpha"])
        )
    if "percentile" in settings:
        chosen["activations_range_estimator_params"] = _kept(float(settings["percentile"]))
    return parameters.AdvancedQuantizationParameters(**chosen)


def _kept(percent: float) -> Any:
    """Ranges between quantiles of each sample, half of what is cut at each end, averaged over samples; of 100 percent, what
    all samples together span.
    """
    from nncf.quantization import range_estimator as ranges

    if percent == 100:
        return ranges.RangeEstimatorParametersSet.MINMAX

    def end() -> Any:
        return ranges.StatisticsCollectorParameters(
            statistics_type=ranges.StatisticsType.QUANTILE,
            aggregator_type=ranges.AggregatorType.MEAN,
            quantile_outlier_prob=(100 - percent) / 200,
        )

    return ranges.RangeEstimatorParameters(min=end(), max=end())
