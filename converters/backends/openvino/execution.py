"""What OpenVINO's CPU really makes of a model: which operators run in which precision, and which in reference
kernels. Read from the graph that it executes, after all its fusions.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from converters.recipes.recipe import NPU
from converters.recipes.recipes import Plan
from edgekit.engines.openvino import core

# The operators that weigh, by the executed graph's names.
_HEAVY = {
    "Convolution": "convolutions",
    "Deconvolution": "transposed convolutions",
    "FullyConnected": "linear layers",
    "MatMul": "matrix products",
    "LSTMSequence": "recurrent layers",
    "LSTMCell": "recurrent layers",
    "GRUSequence": "recurrent layers",
    "RNNSeq": "recurrent layers",
    "RNNCell": "recurrent layers",
}
_EIGHT_BITS = ("i8", "u8")


def notes(path: Path, plan: Plan) -> tuple[str, ...]:
    """Short sentences for a candidate; none where nothing is worth one."""
    hint = str(plan.judged_options.get("INFERENCE_PRECISION_HINT", "f32"))
    compiled = core().compile_model(core().read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": hint})
    nodes = [_facts(node) for node in compiled.get_runtime_model().get_ops()]
    told = []
    if plan.recipe.precision == "int8" and plan.recipe.needs_calibration:
        told.append(_share(nodes))
    reference = Counter(kind for kind, implementation, _ in nodes if implementation.startswith("ref"))
    # Reading a shape and passing constants on costs nothing.
    slow = {kind: count for kind, count in reference.items() if kind in _HEAVY or kind == "Reference"}
    if slow:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(slow.items()))
        told.append(f"in reference kernels on this CPU: {listed}")
    if plan.constraints.accelerator == NPU:
        told = [f"on this CPU, {note}" for note in told]
    return tuple(note for note in told if note)


def _share(nodes: list[tuple[str, str, str]]) -> str:
    """How many of the heavy operators run in eight bits."""
    parts = []
    for name in dict.fromkeys(_HEAVY.values()):
        precisions = [precision for kind, _, precision in nodes if _HEAVY.get(kind) == name]
        if precisions:
            eight = sum(precision in _EIGHT_BITS for precision in precisions)
            parts.append(f"{eight} of {len(precisions)} {name}")
    return f"in int8: {', '.join(parts)}" if parts else ""


def _facts(node: Any) -> tuple[str, str, str]:
    """Kind, implementation and precision of an executed node."""
    info = node.get_rt_info()

    def told(key: str) -> str:
        return str(info[key].astype(str)) if key in info else ""

    return told("layerType"), told("primitiveType"), told("runtimePrecision")
