"""Whether operators of a model are worth sharing the weights that XNNPACK packs.

Always true
 1. They share only where what is packed does not depend on who reads it. Static int8 packs each reader's zero point with the
    weights, and XNNPACK's cache (LiteRT 2.3) takes weights for the same by where they lie: the first reader's would be
    everybody's.
"""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from converters.recipes.recipe import AS_IS
from converters.recipes.recipes import Plan
from converters.source import tflite
from edgekit.manifest import Option
from edgekit.quiet import quietly

SHARED: Mapping[str, Option] = {"weights": "shared"}
# Copies of fewer weights than these fit the cache of any core.
WORTH = 1 << 16
_READERS = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")


def options(model: Path, plan: Plan) -> tuple[Mapping[str, Option], ...]:
    """Shared weights, for a model of the CPU that would keep many packed several times."""
    if plan.is_accelerated or not _is_the_same_for_all(plan):
        return ()
    graph = quietly(lambda: tflite.read(model))
    return (SHARED,) if repeated(graph) >= WORTH and not graph.keeps_state else ()


def repeated(graph: tflite.Graph) -> int:
    """How many weights are packed beside those that were packed for another operator."""
    widened = {
        step.outputs[0]
        for step in graph.steps
        if step.name == "DEQUANTIZE" and graph.tensors[step.inputs[0]].is_constant
    }
    read = Counter(step.inputs[1] for step in graph.steps if step.name in _READERS)
    return sum(
        math.prod(graph.tensors[index].shape) * (count - 1)
        for index, count in read.items()
        if graph.tensors[index].is_constant or index in widened
    )


def _is_the_same_for_all(plan: Plan) -> bool:
    scheme = plan.recipe.scheme
    return scheme in ("float", "dynamic", "weights") or (scheme == AS_IS and plan.recipe.precision != "int8")
