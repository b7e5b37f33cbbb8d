"""A LiteRT file as a list of operators, and which of them should stay in float.

Always true
 1. A layer's name is `operator.number`, the number being its place among the operators of the float model: the same
    source gives the same names.
"""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from edgekit.errors import ToolFailedError
from edgekit.quiet import quietly

_CODES = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
RECURRENT = frozenset({"UNIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN", "LSTM", "RNN"})
# Operators that do the work of a network; everything else is cheap beside them.
HEAVY = RECURRENT | {"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL"}
# Operators whose int8 kernels are outside XNNPACK: microseconds for 300,000 values in int8, and in float with the
# conversions around it (ai-edge-litert 2.3.0, AVX-512): HARD_SWISH 1090/30, RSQRT 17000/50, DIV 9400/120, SQRT 600/20,
# RELU 2600/180, AVERAGE_POOL_2D 370/150, SOFTMAX 500/270. The quantizer merges a RELU that follows a convolution.
# GELU: 600 for the 13 of a text detector, 400 in float; each splits the graph that XNNPACK runs in one go.
SLOW_IN_INT8 = frozenset({"HARD_SWISH", "RSQRT", "DIV", "SQRT", "RELU", "AVERAGE_POOL_2D", "SOFTMAX", "GELU"})
# The ones in front of which a range of 256 steps collapses (of those, and of comparisons with one value, such as a mask
# with infinity): they stay float, and what only feeds them.
_WIDE = frozenset({"RSQRT", "DIV", "SQRT", "SOFTMAX", "EQUAL", "NOT_EQUAL"})
_ARITHMETIC = frozenset({"ADD", "SUB", "MUL"})
# Operators that only move values; their results have the range of what they read.
MOVING = frozenset(
    {"RESHAPE", "TRANSPOSE", "SLICE", "STRIDED_SLICE", "PAD", "PADV2", "CONCATENATION", "SPLIT"}
)
# What a concatenation joins gets one range. Parts that reach this many times as far as the least leave it three of its
# eight bits: the boxes (to 320) and scores (to 1) of a detector in one output; inside of one, 2.6 was the most seen.
UNLIKE = 8.0


@dataclass(frozen=True)
class Layer:
    """One operator of the main graph. `inputs` are the tensors that are computed, `scope` the output's name, by which
    ai-edge-quantizer chooses; `types` are the schema's type codes of inputs and outputs.
    """

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    types: tuple[int, ...]

    @property
    def scope(self) -> str:
        """As ai-edge-quantizer spells it (0.10, `get_op_scope`): every output, each with a semicolon behind it."""
        return "".join(f"{name};" for name in self.outputs)


def layers(path: Path) -> list[Layer]:
    """Operators in the order in which they run."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes()))
    graph = model.subgraphs[0]
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    constant = {
        index for index, tensor in enumerate(graph.tensors) if model.buffers[tensor.buffer].data is not None
    }
    found: list[Layer] = []
    for number, entry in enumerate(graph.operators):
        inputs = [index for index in entry.inputs if index >= 0 and index not in constant]
        op_type = _CODES[codes[entry.opcodeIndex]]
        found.append(
            Layer(
                f"{op_type.lower()}.{number}",
                op_type,
                tuple(graph.tensors[index].name.decode() for index in inputs),
                tuple(graph.tensors[index].name.decode() for index in entry.outputs),
                tuple(int(graph.tensors[index].type) for index in (*inputs, *entry.outputs)),
            )
        )
    return found


def kept_float(graph: Sequence[Layer], reach: Mapping[str, float] | None = None) -> set[str]:
    """Names of the layers that a CPU runs better in float: those that are slow in int8, what scales by their result
    (a normalization), concatenations of what is unlike, and what only feeds them. An embedding's table is int8 in any
    case; its rows come as floats.

    `reach` is the largest magnitude of each tensor, as far as it is known.
    """
    maker = {name: layer for layer in graph for name in layer.outputs}
    readers: dict[str, list[Layer]] = {}
    for layer in graph:
        for name in layer.inputs:
            readers.setdefault(name, []).append(layer)
    kept = {layer.name for layer in graph if layer.op_type in SLOW_IN_INT8 or _is_copy(layer)}
    wide = {layer.name for layer in graph if layer.op_type in _WIDE}
    scaled = {
        layer.name
        for layer in graph
        if layer.op_type == "MUL"
        and any(name in maker and maker[name].op_type == "RSQRT" for name in layer.inputs)
    }
    wide |= scaled | _unlike(graph, maker, reach or {})
    for layer in reversed(graph):
        read = [reader for name in layer.outputs for reader in readers.get(name, [])]
        if layer.op_type not in HEAVY and read and all(reader.name in wide for reader in read):
            wide.add(layer.name)
    for layer in graph:
        makers = [maker.get(name) for name in layer.inputs]
        if layer.op_type in _ARITHMETIC and makers and all(one and one.name in scaled for one in makers):
            scaled.add(layer.name)
    tables = {layer.name for layer in graph if layer.op_type == "EMBEDDING_LOOKUP"}
    return (kept | wide | scaled) - tables


def _is_copy(layer: Layer) -> bool:
    """An output that is given a second time (`program`): int8 by ai-edge-quantizer 0.10, all of its values are wrong."""
    return layer.op_type == "MAXIMUM" and len(layer.inputs) == 2 and len(set(layer.inputs)) == 1


def _unlike(graph: Sequence[Layer], maker: Mapping[str, Layer], reach: Mapping[str, float]) -> set[str]:
    """Names of the concatenations whose parts have unlike ranges, and of what moves their results."""
    found: set[str] = set()
    for layer in graph:
        parts = [reach[name] for name in layer.inputs if reach.get(name, 0.0) > 0]
        joins = layer.op_type == "CONCATENATION" and bool(parts) and max(parts) > UNLIKE * min(parts)
        moves = layer.op_type in MOVING and any(
            name in maker and maker[name].name in found for name in layer.inputs
        )
        if joins or moves:
            found.add(layer.name)
    return found


def slow_with_dynamic_ranges(graph: Sequence[Layer]) -> set[str]:
    """Names of the layers that XNNPACK does not take with int8 weights and float activations: the depthwise
    convolutions, 10 ms of a text detector's 20 so and 1.6 in float (ai-edge-litert 2.3.0).
    """
    return {layer.name for layer in graph if layer.op_type == "DEPTHWISE_CONV_2D"}


def named(graph: Sequence[Layer], wanted: Sequence[str]) -> set[str]:
    """Checked names of layers. Raises: ToolFailedError that lists close ones."""
    known = {layer.name for layer in graph}
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3) or sorted(known)[:3]
            raise ToolFailedError(f"the LiteRT model has no layer {name!r}; close ones are {', '.join(near)}")
    return set(wanted)


def off_the_fast_path(graph: Sequence[Layer], left: Mapping[str, int]) -> tuple[str, ...]:
    """Notes on what does not run as it should: custom operators, and those `left` to plain kernels, by type."""
    notes: list[str] = []
    custom = Counter(layer.op_type for layer in graph if layer.op_type == "CUSTOM")
    if custom:
        notes.append(f"{custom.total()} custom operators, which need an interpreter that knows them")
    if left:
        notes.append(f"off the fast path (XNNPACK): {listed(left)}")
    return tuple(notes)


def left_by_xnnpack(path: Path) -> Counter[str]:
    """How many operators of each type XNNPACK does not take, on this machine.

    An interpreter lists a delegated part as one more operator, beside those it stands for: the part's own are found
    from its outputs backwards to its inputs.
    """

    def details() -> list[dict[str, Any]]:
        interpreter = Interpreter(model_path=str(path), num_threads=1)
        interpreter.allocate_tensors()
        found: list[dict[str, Any]] = interpreter._get_ops_details()  # noqa: SLF001  # nothing public tells
        return found

    entries = quietly(details)
    operators = [entry for entry in entries if entry["op_name"] != "DELEGATE"]
    maker = {int(output): entry for entry in operators for output in entry["outputs"]}
    taken: set[int] = set()
    for part in entries:
        if part["op_name"] != "DELEGATE":
            continue
        seen = {int(index) for index in part["inputs"]}
        ahead = [int(index) for index in part["outputs"]]
        while ahead:
            index = ahead.pop()
            if index in seen or index not in maker:
                continue
            seen.add(index)
            taken.add(int(maker[index]["index"]))
            ahead.extend(int(entry) for entry in maker[index]["inputs"])
    return Counter(entry["op_name"] for entry in operators if int(entry["index"]) not in taken)


def float_islands(graph: Sequence[Layer]) -> tuple[str, ...]:
    """A note on what stays in float inside an integer model, with the conversions that this costs."""
    float_types = {schema.TensorType.FLOAT32}
    computed = Counter(
        layer.op_type
        for layer in graph
        if layer.op_type not in ("QUANTIZE", "DEQUANTIZE") and layer.types and set(layer.types) <= float_types
    )
    if not computed:
        return ()
    pairs = sum(layer.op_type == "DEQUANTIZE" for layer in graph)
    return (f"in float within the integer model ({pairs} dequantizations): {listed(computed)}",)


def listed(counts: Mapping[str, int]) -> str:
    """Counts by operator for a note."""
    return ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
