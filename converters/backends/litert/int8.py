"""Quantization by ai-edge-quantizer: its recipe from ours, activation ranges from a stream, one layer at a time.

Settings of a `Tuning`
 - `percentile`: share of values that a calibrated range keeps (0.9999), instead of the smallest and largest seen
 - `moving_average`: weight of the past (0.95) in ai-edge-quantizer's own smoothing of each sample's extremes
 - `per_channel`: false gives each weight tensor one scale
 - `int8_everywhere`: true quantizes also what runs slower in int8 than in float

Always true
 1. Memory does not grow with the number of calibration samples.
"""

import copy
import hashlib
import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from converters.backends import Prepared, Unsupported, settling
from converters.backends.litert import islands, recurrent, running, tables
from converters.backends.litert.bounds import Unbounded, empty, unbounded, widened
from converters.backends.litert.extremes import Ranges, extremes
from converters.backends.litert.graph import (
    RECURRENT,
    Layer,
    kept_float,
    layers,
    listed,
    named,
    slow_with_dynamic_ranges,
)
from converters.backends.settling import Part
from converters.quantize.calibration import KEPT, Spread
from converters.recipes.knobs import Knob
from converters.recipes.recipe import ETHOS
from converters.recipes.recipes import Plan
from edgekit.errors import DataError, ToolFailedError
from edgekit.quiet import first_line, quietly

# Operators that run other graphs, with a condition.
_LOOPS = frozenset({"WHILE", "IF"})
SETTINGS = frozenset({"percentile", "moving_average", "per_channel", "int8_everywhere"})
Result = TypeVar("Result")
Recipe = list[dict[str, Any]]


def knobs(plan: Plan) -> tuple[Knob, ...]:
    """What a search may turn. `int8_everywhere` is not among it: for a CPU it is smaller and, as measured, 6 to 18 times
    slower on an orientation classifier, which a search that only weighs candidates would fall for.
    """
    scales = (Knob("per_channel", (None, False)),) if plan.constraints.per_channel else ()
    if not plan.recipe.needs_calibration:
        return scales
    return (
        Knob("percentile", (None, 0.999, 0.9999, 0.99999)),
        # A percentile takes the place of the extremes that this smooths.
        Knob("moving_average", (None, 0.9, 0.99), only=("percentile", None)),
        *scales,
    )


def quantized(
    prepared: Prepared, plan: Plan, path: Path, graph: Sequence[Layer]
) -> tuple[bytes, tuple[str, ...]]:
    """The float model at `path` in the plan's precision, and notes on what had to stay in float.

    Raises: Unsupported, ToolFailedError.
    """
    _check_settings(plan)
    _check_loops(plan, graph)
    left = named(graph, plan.tuning.float_layers)
    ranges = calibrated(prepared, plan, path) if plan.recipe.needs_calibration else None
    if not _is_whole(plan):
        left |= slow_in(plan, graph, ranges)
    never = Unbounded(frozenset(), (), is_edge=False) if ranges is None else unbounded(path, ranges)

    def attempt(skipped: frozenset[str]) -> bytes:
        float_ones = [layer for layer in graph if layer.name in left | never.layers | skipped]
        # A copy: the quantizer writes into what it is given.
        made = apply(path, [*recipe_for(plan, float_ones), *_inside(never)], copy.deepcopy(ranges))
        # Alone under a static recipe they would be the dynamic one by another name.
        if plan.recipe.scheme != "static" or tables.is_int8(made):
            made = with_recurrent(plan, made, [layer for layer in float_ones if layer.name in left | skipped])
        made = islands.folded(made) if _is_whole(plan) else made
        made = islands.spelled(made) if plan.constraints.accelerator == ETHOS else made
        running.loaded_once(made)
        return made

    parts = {
        layer.name: Part(layer.op_type, (*layer.outputs, *layer.inputs))
        for layer in graph
        if layer.name not in left | never.layers
    }
    made, notes = settling.settle(attempt, parts, "LiteRT")
    ranged = Counter(layer.op_type for layer in graph if layer.name in never.layers - left)
    weighed = {} if _is_whole(plan) else {name: count for name, count in ranged.items() if name in RECURRENT}
    for what, kinds in (
        ("left in float, having no range that int8 holds", ranged - Counter(weighed)),
        ("int8 weights, with ranges taken at run time", weighed),
    ):
        if kinds:
            notes = (f"{what}: {listed(kinds)}", *notes)
    return made, notes


def with_recurrent(plan: Plan, made: bytes, float_ones: Sequence[Layer]) -> bytes:
    """The model with the plan's weights in its fused recurrent layers, but for those that stay in float."""
    if _is_whole(plan):
        return made
    left = {name for layer in float_ones for name in layer.outputs}
    by_row = _weights(plan)["granularity"] == "CHANNELWISE"
    return recurrent.with_weights(made, plan.recipe, left, by_row=by_row)


def _inside(never: Unbounded) -> Recipe:
    """Rules for what stands in no main graph: bodies of operators, and the model's edges."""
    rules = [_no_quantization(f"^{re.escape(scope)}$", "*") for scope in never.scopes]
    if never.is_edge:
        rules += [_no_quantization(".*", edge) for edge in ("INPUT", "OUTPUT")]
    return rules


def slow_in(plan: Plan, graph: Sequence[Layer], ranges: Ranges | None) -> set[str]:
    """Names of the layers that a CPU runs better in float under the plan's scheme."""
    if plan.recipe.needs_calibration:
        seen = (ranges or {}).items()
        return kept_float(
            graph,
            {
                name: float(max(np.max(np.abs(entry["min"])), np.max(np.abs(entry["max"]))))
                for name, entry in seen
            },
        )
    return slow_with_dynamic_ranges(graph) if plan.recipe.scheme == "dynamic" else set()


def float_weights(plan: Plan, graph: Sequence[Layer]) -> tuple[str, ...]:
    """A note on what keeps float weights under a scheme that needs no calibration, being quicker so."""
    if plan.recipe.needs_calibration or _is_whole(plan):
        return ()
    slow = slow_in(plan, graph, None)
    kept = Counter(layer.op_type for layer in graph if layer.name in slow)
    if not kept:
        return ()
    return (f"weights left in float, which runs faster: {listed(kept)}",)


def apply(path: Path, recipe: Recipe, ranges: Ranges | None) -> bytes:
    """Raises: ToolFailedError."""
    from ai_edge_quantizer import quantizer

    def run() -> bytes:
        return bytes(quantizer.Quantizer(str(path), recipe).quantize(ranges).quantized_model)

    return _told(run)


def recipe_for(plan: Plan, left: Sequence[Layer], only: Layer | None = None) -> Recipe:
    """ai-edge-quantizer's recipe: everything but the layers `left` in float, or `only` one layer quantized."""
    everything = _SCHEMES[plan.recipe.precision if plan.recipe.scheme == "float" else plan.recipe.scheme](
        plan
    )
    if only is not None:
        everything = [{**rule, "regex": _exactly([only])} for rule in everything]
    recipe = [*everything]
    if plan.recipe.needs_calibration and (only is not None or plan.constraints.accelerator != ETHOS):
        # A CPU takes and gives float: XNNPACK converts at the edges faster than an application does. A layer alone is
        # compared with the float model's outputs.
        recipe += [_no_quantization(".*", edge) for edge in ("INPUT", "OUTPUT")]
    if left:
        recipe.append(_no_quantization(_exactly(left), "*"))
    return recipe


def calibrated(prepared: Prepared, plan: Plan, path: Path, samples: int | None = None) -> Ranges:
    """Ranges of every tensor, over all samples or the first few. Raises: DataError, ToolFailedError.

    What is seen of the samples is kept in the memo: two thirds of a search's trial was seeing it again.
    """
    settings = plan.tuning.settings
    smoothing = settings.get("moving_average")
    model = hashlib.sha256(path.read_bytes()).hexdigest()
    # A copy: the quantizer writes into what it is given.
    found = copy.deepcopy(
        _kept(
            prepared,
            f"litert extremes {model} {smoothing} {samples}",
            lambda: _told(lambda: _extremes(prepared, path, smoothing, samples)),
        )
    )
    kept = settings.get("percentile", KEPT if plan.recipe.scheme == "percentile" else None)
    if kept is not None:
        seen = _kept(prepared, f"litert spreads {model} {samples}", lambda: spreads(prepared, path, samples))
        for name, spread in seen.items():
            if name in found:
                low, high = spread.percentile(float(kept))
                shape = np.shape(found[name]["min"])
                found[name] = {
                    "min": np.full(shape, low, np.float32),
                    "max": np.full(shape, high, np.float32),
                }
    return widened(found, layers(path))


def _kept(prepared: Prepared, name: str, make: Callable[[], Result]) -> Result:
    if name not in prepared.memo:
        prepared.memo[name] = make()
    found: Result = prepared.memo[name]
    return found


def feeds(prepared: Prepared, samples: int | None = None) -> Iterator[dict[str, Any]]:
    """Calibration inputs by LiteRT's argument names, 64-bit integers as the 32-bit ones that it takes.

    Raises: DataError if there is none.
    """
    assert prepared.calibration is not None
    order = {spec.name: f"args_{index}" for index, spec in enumerate(prepared.source.inputs)}
    # A TFLite file's own inputs are of the types that they have.
    fit = narrow if prepared.source.native is None else lambda array: array
    count = 0
    for feed in itertools.islice(prepared.calibration(), samples):
        count += 1
        yield {order[name]: fit(array) for name, array in feed.items()}
    if not count:
        raise DataError("the calibration data holds no sample")


def narrow(array: Any) -> Any:
    """litert-torch makes 32-bit inputs of 64-bit ones."""
    return array.astype(
        {"int64": np.int32, "float64": np.float32}.get(str(array.dtype), array.dtype), copy=False
    )


def spreads(prepared: Prepared, path: Path, samples: int | None = None) -> dict[str, Spread]:
    """How the values of every computed float tensor are spread."""
    interpreter = running.preserving(path)
    details = [
        entry
        for entry in interpreter.get_tensor_details()
        if entry["dtype"] is np.float32 and entry["name"] and entry["shape"].size
    ]
    found: dict[str, Spread] = {}
    for feed in feeds(prepared, samples):
        running.run_once(interpreter, feed)
        for entry in details:
            try:
                found.setdefault(entry["name"], Spread()).add(interpreter.get_tensor(entry["index"]))
            except ValueError:
                # Scratch of a delegate that holds nothing, or a value that is not finite: the extremes stand.
                found.pop(entry["name"], None)
    return found


def _extremes(prepared: Prepared, path: Path, smoothing: Any, samples: int | None) -> Ranges:
    """Smallest and largest value of each tensor.

    ai-edge-quantizer's default is a moving average, which cuts off what only some samples reach.
    """
    from ai_edge_quantizer.utils import qsv_utils

    update: Any = qsv_utils.min_max_update
    if smoothing is not None:
        update = partial(qsv_utils.moving_average_update, smoothing_factor=float(smoothing))
    none = empty(path)
    chosen = [layer for layer in layers(path) if layer.name in none.layers]
    without = [_no_quantization(_exactly(chosen), "*")] if chosen else []
    return extremes(path, feeds(prepared, samples), update, [*without, *_inside(none)])


def _is_whole(plan: Plan) -> bool:
    """An Ethos-U runs what is integer; what is not falls to a slow CPU."""
    return plan.constraints.accelerator == ETHOS or bool(plan.tuning.settings.get("int8_everywhere", False))


def _check_settings(plan: Plan) -> None:
    unknown = sorted(set(plan.tuning.settings) - SETTINGS)
    if unknown:
        raise ToolFailedError(
            f"LiteRT has no setting {', '.join(unknown)}; there are {', '.join(sorted(SETTINGS))}"
        )


def _check_loops(plan: Plan, graph: Sequence[Layer]) -> None:
    loops = sorted({layer.op_type for layer in graph} & _LOOPS)
    if plan.recipe.needs_calibration and loops:
        raise Unsupported(
            f"ai-edge-quantizer sees no range of what a loop or branch ({', '.join(loops)}) computes; ranges at run time and"
            " weights alone (dynamic-int8, weights-int8) need none"
        )


def _told(run: Callable[[], Result]) -> Result:
    """Run quietly; its errors as ours."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return quietly(run)
    except DataError:
        raise
    except Exception as error:
        raise ToolFailedError(f"ai-edge-quantizer failed: {first_line(error)}") from error
    finally:
        logger.setLevel(level)


def _exactly(chosen: Sequence[Layer]) -> str:
    return "^(?:" + "|".join(re.escape(layer.scope) for layer in chosen) + ")$"


def _no_quantization(regex: str, operation: str) -> dict[str, Any]:
    return {"regex": regex, "operation": operation, "algorithm_key": "no_quantize", "op_config": {}}


def _weights(plan: Plan) -> dict[str, Any]:
    per_channel = plan.constraints.per_channel and bool(plan.tuning.settings.get("per_channel", True))
    granularity = "CHANNELWISE" if per_channel else "TENSORWISE"
    return {"num_bits": 8, "symmetric": True, "granularity": granularity, "dtype": "INT"}


def _rule(algorithm: str, operation: str, **config: Any) -> dict[str, Any]:
    return {
        "regex": ".*",
        "operation": operation,
        "algorithm_key": algorithm,
        "op_config": {"skip_checks": False, "min_weight_elements": 0, **config},
    }


def _integers(plan: Plan, **config: Any) -> Recipe:
    return [_rule("min_max_uniform_quantize", "*", weight_tensor_config=_weights(plan), **config)]


def _static(plan: Plan, bits: int) -> Recipe:
    symmetric = bits == 16 or plan.constraints.symmetric_activations  # what the 16x8 kernels take
    activations = {"num_bits": bits, "symmetric": symmetric, "granularity": "TENSORWISE", "dtype": "INT"}
    everything = _integers(
        plan, activation_tensor_config=activations, compute_precision="INTEGER", explicit_dequantize=False
    )
    # What reads a table is mostly a normalization, which a CPU computes in float.
    return everything if _is_whole(plan) else [*everything, _tables(plan)]


def _fp16(_plan: Plan) -> Recipe:
    """Weights in float16, which XNNPACK widens, or computes in where the CPU can."""
    weights = {"num_bits": 16, "symmetric": True, "granularity": "TENSORWISE", "dtype": "FLOAT"}
    return [
        _rule(
            "float_casting",
            operation,
            weight_tensor_config=weights,
            compute_precision="FLOAT",
            explicit_dequantize=True,
        )
        for operation in (
            "CONV_2D",
            "DEPTHWISE_CONV_2D",
            "CONV_2D_TRANSPOSE",
            "FULLY_CONNECTED",
            "EMBEDDING_LOOKUP",
        )
    ]


def _tables(plan: Plan) -> dict[str, Any]:
    """Embeddings in int8, the rows that are looked up in float."""
    return _rule(
        "min_max_uniform_quantize",
        "EMBEDDING_LOOKUP",
        weight_tensor_config=_weights(plan),
        compute_precision="INTEGER",
        explicit_dequantize=False,
    )


def _only_weights(plan: Plan) -> Recipe:
    """Weights that XNNPACK widens once, when it loads; a table's rows as they are looked up, since nothing would widen
    the whole table but a DEQUANTIZE in every call (3 of MiniLM's 5 ms).
    """
    return [*_integers(plan, compute_precision="FLOAT", explicit_dequantize=True), _tables(plan)]


_SCHEMES: Mapping[str, Callable[[Plan], Recipe]] = {
    "fp16": _fp16,
    "static": lambda plan: _static(plan, 8),
    "static16": lambda plan: _static(plan, 16),
    "percentile": lambda plan: _static(plan, 8),
    "dynamic": lambda plan: _integers(plan, compute_precision="INTEGER", explicit_dequantize=False),
    "weights": _only_weights,
}
