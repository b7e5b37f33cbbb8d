"""The smallest and largest value of each tensor that ai-edge-quantizer wants a range of, over a stream of samples.

ai-edge-quantizer's own calibrater asks its recipe anew about every operator of every sample, and copies every weight out
of the interpreter (0.4 s a sample on MiniLM, of which the model itself takes 0.02). Here it sees the first sample, which
says which tensors it wants; the others are read where they are.

Always true
 1. The ranges are those that its own calibrater gives, to the bit.
 2. Memory does not grow with the number of calibration samples.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.backends.litert import running
from edgekit.tensors import Array

# Calibration samples in memory at a time, where ai-edge-quantizer sees them all.
BATCH = 16
# Values from here on are none of the model's own to ai-edge-quantizer (0.10), which leaves them out.
ENDLESS = 3e38
Ranges = dict[str, Any]
Update = Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]


def extremes(
    path: Path, feeds: Iterator[dict[str, Any]], update: Update, without: Sequence[dict[str, Any]] = ()
) -> Ranges:
    """`update` puts what is known of a tensor and what a sample adds together; `feeds` go by argument names; `without` are
    ai-edge-quantizer's rules for what has no range.
    """
    from ai_edge_quantizer import calibrator, recipe, recipe_manager

    manager = recipe_manager.RecipeManager()
    # Ranges of everything, whatever is quantized in the end: they serve every recipe of this model.
    manager.load_quantization_recipe([*recipe.static_wi8_ai8(), *without])
    tool = calibrator.Calibrator(path.read_bytes(), num_threads=2, qsv_update_func=update)
    tool.calibrate({running.SIGNATURE: [next(feeds)]}, manager)
    found: Ranges = tool.get_model_qsvs()
    interpreter = running.preserving(path)
    places = {entry["name"]: entry["index"] for entry in interpreter.get_tensor_details()}
    if not found.keys() <= places.keys():
        # Tensors of another graph than the main one (the body of a composite operator).
        while batch := list(itertools.islice(feeds, BATCH)):
            tool.calibrate({running.SIGNATURE: batch}, manager)
        whole: Ranges = tool.get_model_qsvs()
        return whole
    for feed in feeds:
        running.run_once(interpreter, feed)
        for name, known in found.items():
            found[name] = update(known, _ends(interpreter.get_tensor(places[name])))
    return found


def _ends(values: Array) -> dict[str, Array]:
    """Smallest and largest value, in as many dimensions of length one as the tensor has."""
    low, high = values.min(), values.max()
    if not (low > -ENDLESS and high < ENDLESS):
        from ai_edge_quantizer.algorithms.uniform_quantize import common_quantize

        ends: dict[str, Array] = common_quantize.get_activation_min_max(values, -ENDLESS, ENDLESS)
        return ends
    shape = (1,) * values.ndim
    return {"min": np.reshape(low, shape), "max": np.reshape(high, shape)}
