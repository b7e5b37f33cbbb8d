"""Which layers of a LiteRT model quantization hurts most.

Trying a layer alone costs a conversion and a few runs, so the layers are ranked first, in two passes that need no
conversion: the float model's own tensors are rounded to the steps that their calibrated ranges give, and weights to
theirs; the noisiest are then quantized one at a time, and the model's outputs compared.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from converters.backends import Prepared
from converters.backends.litert.bounds import unbounded
from converters.backends.litert.extremes import Ranges
from converters.backends.litert.graph import HEAVY, MOVING, RECURRENT, Layer, layers, named
from converters.backends.litert.int8 import (
    apply,
    calibrated,
    feeds,
    recipe_for,
    slow_in,
    with_recurrent,
)
from converters.backends.litert.running import preserving, run_once
from converters.quantize.sensitivity import LayerError, snr_db
from converters.recipes.recipe import ETHOS
from converters.recipes.recipes import PLAIN, Plan
from edgekit.tensors import Array

# Calibration samples looked at, layers tried alone, and seconds after which no further one is begun.
SAMPLES = 8
TRIED = 40
BUDGET_S = 45.0


def layer_errors(prepared: Prepared, plan: Plan, path: Path, clock: Callable[[], float]) -> list[LayerError]:
    """The layers of the float model at `path` by the harm that quantizing each alone does, the worst first.

    Raises: ToolFailedError.
    """
    graph = layers(path)
    left = named(graph, plan.tuning.float_layers)
    plain = replace(plan, tuning=PLAIN)
    ranges = calibrated(prepared, plain, path, SAMPLES) if plan.recipe.needs_calibration else None
    if plan.constraints.accelerator != ETHOS:
        left |= slow_in(plan, graph, ranges)
    if ranges is not None:
        never = unbounded(path, ranges).layers
        left |= {layer.name for layer in graph if layer.name in never and layer.op_type not in RECURRENT}
    chosen = [layer for layer in graph if layer.name not in left and layer.op_type not in MOVING]
    if ranges is None:
        chosen = [layer for layer in chosen if layer.op_type in HEAVY]
    else:
        chosen = _noisiest(prepared, path, chosen, ranges)
    samples = list(feeds(prepared, SAMPLES))
    wanted = _outputs(path, samples)
    found: list[LayerError] = []
    end = clock() + BUDGET_S
    with tempfile.TemporaryDirectory() as folder:
        tried = Path(folder) / "alone.tflite"
        for layer in chosen[:TRIED]:
            if found and clock() > end:
                break
            made = apply(path, recipe_for(plain, [], only=layer), ranges)
            tried.write_bytes(with_recurrent(plain, made, [other for other in graph if other != layer]))
            found.append(LayerError(layer.name, layer.op_type, snr_db(wanted, _outputs(tried, samples))))
    return sorted(found, key=lambda error: error.snr_db)


def _noisiest(prepared: Prepared, path: Path, chosen: Sequence[Layer], ranges: Ranges) -> list[Layer]:
    """Layers by the signal-to-noise ratio of their own results rounded to 256 steps, the worst first."""
    interpreter = preserving(path)
    index = {entry["name"]: entry["index"] for entry in interpreter.get_tensor_details()}
    signal = dict.fromkeys((layer.name for layer in chosen), 1e-30)
    noise = dict.fromkeys(signal, 0.0)
    for feed in feeds(prepared, SAMPLES):
        run_once(interpreter, feed)
        for layer in chosen:
            for name in {*layer.outputs, *layer.inputs}:
                if name not in ranges or name not in index:
                    continue
                values = interpreter.get_tensor(index[name]).astype(np.float64)
                values = values[np.isfinite(values)]
                low = min(0.0, float(np.min(ranges[name]["min"])))
                high = max(0.0, float(np.max(ranges[name]["max"])))
                step = max(high - low, 1e-30) / 255
                signal[layer.name] += float(np.square(values).sum())
                noise[layer.name] += float(np.square(values - np.rint(values / step) * step).sum())
    return sorted(chosen, key=lambda layer: signal[layer.name] / max(noise[layer.name], 1e-300))


# By place: ai-edge-quantizer 0.10 renames an output behind which it converts.
def _outputs(path: Path, samples: Sequence[dict[str, Array]]) -> list[dict[str, Array]]:
    return list(_run(path, samples))


def _run(path: Path, samples: Sequence[dict[str, Array]]) -> Iterator[dict[str, Array]]:
    interpreter = preserving(path)
    outputs = interpreter.get_output_details()
    for sample in samples:
        run_once(interpreter, sample)
        yield {
            str(place): interpreter.get_tensor(entry["index"]).copy() for place, entry in enumerate(outputs)
        }
