"""A LiteRT file as a list of operators, and which of them should stay in float.

Always true
 1. A layer's name is `operator.number`, the number being its place among the operators of the float model: the same
    source gives the same names.
"""

import difflib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ai_edge_litert import schema_py_generated as schema

from edgekit.errors import ToolFailedError

_CODES = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
# Operators that do the work of a network; everything else is cheap beside them.
HEAVY = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL"})
# Operators whose int8 kernels are outside XNNPACK: microseconds for 300,000 values in int8, and in float with the
# conversions around it (ai-edge-litert 2.3.0, AVX-512): HARD_SWISH 1090/30, RSQRT 17000/50, DIV 9400/120, SQRT 600/20,
# RELU 2600/180, AVERAGE_POOL_2D 370/150, SOFTMAX 500/270. The quantizer merges a RELU that follows a convolution.
SLOW_IN_INT8 = frozenset({"HARD_SWISH", "RSQRT", "DIV", "SQRT", "RELU", "AVERAGE_POOL_2D", "SOFTMAX"})
# Of those, the ones in front of which a range of 256 steps collapses: what only feeds them stays float as well.
_WIDE = frozenset({"RSQRT", "DIV", "SQRT", "SOFTMAX"})
_ARITHMETIC = frozenset({"ADD", "SUB", "MUL"})


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


def kept_float(graph: Sequence[Layer]) -> set[str]:
    """Names of the layers that a CPU runs better in float: those that are slow in int8, what scales by their result
    (a normalization), and what only feeds them.
    """
    maker = {name: layer for layer in graph for name in layer.outputs}
    readers: dict[str, list[Layer]] = {}
    for layer in graph:
        for name in layer.inputs:
            readers.setdefault(name, []).append(layer)
    kept = {layer.name for layer in graph if layer.op_type in SLOW_IN_INT8}
    wide = {layer.name for layer in graph if layer.op_type in _WIDE}
    scaled = {
        layer.name
        for layer in graph
        if layer.op_type == "MUL"
        and any(name in maker and maker[name].op_type == "RSQRT" for name in layer.inputs)
    }
    wide |= scaled
    for layer in reversed(graph):
        read = [reader for name in layer.outputs for reader in readers.get(name, [])]
        if layer.op_type not in HEAVY and read and all(reader.name in wide for reader in read):
            wide.add(layer.name)
    for layer in graph:
        makers = [maker.get(name) for name in layer.inputs]
        if layer.op_type in _ARITHMETIC and makers and all(one and one.name in scaled for one in makers):
            scaled.add(layer.name)
    return kept | wide | scaled


def named(graph: Sequence[Layer], wanted: Sequence[str]) -> set[str]:
    """Checked names of layers. Raises: ToolFailedError that lists close ones."""
    known = {layer.name for layer in graph}
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3) or sorted(known)[:3]
            raise ToolFailedError(f"the LiteRT model has no layer {name!r}; close ones are {', '.join(near)}")
    return set(wanted)


def off_the_fast_path(graph: Sequence[Layer], delegated: Collection[int] | None = None) -> tuple[str, ...]:
    """Notes on what an accelerated engine does not run as it should: custom operators, and float islands in int8."""
    notes: list[str] = []
    custom = Counter(layer.op_type for layer in graph if layer.op_type == "CUSTOM")
    if custom:
        notes.append(f"{custom.total()} custom operators, which need an interpreter that knows them")
    if delegated is not None:
        left = Counter(layer.op_type for index, layer in enumerate(graph) if index not in delegated)
        if left:
            notes.append(f"off the fast path (XNNPACK): {_listed(left)}")
    return tuple(notes)


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
    return (f"in float within the integer model ({pairs} dequantizations): {_listed(computed)}",)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
