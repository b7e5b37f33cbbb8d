"""A float TFLite file as others made it, in the form that litert-torch gives one and ai-edge-quantizer (0.10) takes.

Always true
 1. It computes what the file computes, from public inputs in the file's order to its outputs.
 2. Weights that are stored smaller (float16, integers, sparse) and widened by the graph are float32 constants, to the bit as
    LiteRT widens them.
 3. Every operator's code is in the field that is read today, every tensor has a name of its own, and none is without use.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from converters.backends import Unsupported
from converters.backends.litert import tables
from converters.backends.litert.running import SIGNATURE
from edgekit.quiet import quietly
from edgekit.tensors import Array

# What a flatbuffer holds.
MOST_BYTES = (1 << 31) - 1
_OPERATOR = schema.BuiltinOperator
# What widens a constant that is stored smaller.
_WIDENING = frozenset({_OPERATOR.DEQUANTIZE, _OPERATOR.DENSIFY})
_ACTIVATIONS = {
    _OPERATOR.RELU: schema.ActivationFunctionType.RELU,
    _OPERATOR.RELU6: schema.ActivationFunctionType.RELU6,
    _OPERATOR.RELU_N1_TO_1: schema.ActivationFunctionType.RELU_N1_TO_1,
}
_RESHAPING = frozenset({_OPERATOR.SQUEEZE, _OPERATOR.EXPAND_DIMS})
# Operators that XNNPACK runs in int8 with an activation inside; alone, a RELU has no kernel there.
_ACTIVATED = frozenset({
    _OPERATOR.CONV_2D, _OPERATOR.DEPTHWISE_CONV_2D, _OPERATOR.FULLY_CONNECTED, _OPERATOR.ADD, _OPERATOR.SUB, _OPERATOR.MUL,
})  # fmt: skip
_INTEGERS = frozenset({
    schema.TensorType.INT8, schema.TensorType.UINT8, schema.TensorType.INT16, schema.TensorType.INT4,
})  # fmt: skip


def made_ready(source: Path, target: Path) -> tuple[str, ...]:
    """Write the file's float model; gives notes on what was changed. Raises: Unsupported."""
    model = tables.read(source.read_bytes())
    main = _Main(model)
    widened = main.widen(source)
    merged = main.merge()
    main.reshape()
    for graph in model.subgraphs:
        _settle_types(graph)
    tables.drop_unused(model)
    main.name_edges()
    _name_apart(model)
    size = sum(0 if buffer.data is None else len(buffer.data) for buffer in model.buffers)
    if size > MOST_BYTES:
        raise Unsupported(
            f"with weights in float32 the model has {size / 1e9:.1f} GB, and a TFLite file holds less than 2.1"
        )
    target.write_bytes(tables.written(model))
    notes: tuple[str, ...] = ()
    if widened:
        notes += (f"weights that the source stores smaller were widened to float32 ({widened} tensors)",)
    if merged:
        notes += (f"activations merged into the operators before them ({merged})",)
    return notes


@dataclass(frozen=True)
class _Main:
    """The main graph of a model that is being changed."""

    model: Any

    @property
    def graph(self) -> Any:
        return self.model.subgraphs[0]

    def code(self, step: Any) -> int:
        return tables.code(self.model, step)

    def widen(self, source: Path) -> int:
        """Constants in the place of what the graph widens; how many."""
        graph = self.graph
        constant = {index for index in range(len(graph.tensors)) if tables.has_data(self.model, index)}
        kept, found = [], []
        for step in graph.operators:
            if self.code(step) in _WIDENING and all(index in constant for index in step.inputs):
                constant.add(step.outputs[0])
                found.append(step.outputs[0])
            else:
                kept.append(step)
        graph.operators = kept
        read = {index for step in kept for index in step.inputs} | set(graph.outputs)
        wanted = [index for index in found if index in read]
        for index, values in zip(wanted, _values(source, wanted), strict=True):
            tables.store(self.model, graph.tensors[index], values)
        return len(wanted)

    def merge(self) -> int:
        """Activations that stand alone behind the one operator that can have them inside; how many."""
        graph = self.graph
        read = Counter(index for step in graph.operators for index in step.inputs)
        read.update(graph.outputs)
        maker: dict[int, Any] = {}
        kept = []
        for step in graph.operators:
            before = maker.get(step.inputs[0]) if self.code(step) in _ACTIVATIONS else None
            if before is not None and read[step.inputs[0]] == 1 and self._may_activate(before):
                before.builtinOptions.fusedActivationFunction = _ACTIVATIONS[self.code(step)]
                before.outputs = step.outputs
                maker[step.outputs[0]] = before
                continue
            kept.append(step)
            maker.update((index, step) for index in step.outputs)
        merged = len(graph.operators) - len(kept)
        graph.operators = kept
        return merged

    def reshape(self) -> None:
        """A RESHAPE, which has integers, in the place of what is one: Conv1D of Keras stands between such."""
        for step in self.graph.operators:
            shape = self.graph.tensors[step.outputs[0]].shape if step.outputs else None
            if self.code(step) not in _RESHAPING or shape is None:
                continue
            wanted = tables.added(self.model, b"shape", [len(shape)], schema.TensorType.INT32)
            tables.store(self.model, self.graph.tensors[wanted], np.array(shape, np.int32))
            step.opcodeIndex = tables.numbered(self.model, _OPERATOR.RESHAPE)
            step.inputs = [step.inputs[0], wanted]
            step.builtinOptionsType = schema.BuiltinOptions.ReshapeOptions
            step.builtinOptions = schema.ReshapeOptionsT()
            step.builtinOptions.newShape = list(shape)

    def _may_activate(self, step: Any) -> bool:
        none = schema.ActivationFunctionType.NONE
        return (
            self.code(step) in _ACTIVATED
            and getattr(step.builtinOptions, "fusedActivationFunction", None) == none
        )

    def name_edges(self) -> None:
        """One signature, whose tensors are called as litert-torch calls them. Raises: Unsupported."""
        graph = self.graph
        edges = [*graph.inputs, *graph.outputs]
        if len(set(edges)) != len(edges):
            raise Unsupported(
                "an input of it is an output too, which ai-edge-quantizer loses; let the model copy it"
            )
        found = schema.SignatureDefT()
        found.signatureKey, found.subgraphIndex = SIGNATURE.encode(), 0
        found.inputs = self._named(graph.inputs, "args_{}", f"{SIGNATURE}_args_{{}}")
        found.outputs = self._named(graph.outputs, "output_{}", f"{SIGNATURE}_output_{{}}_output")
        self.model.signatureDefs = [found]

    def _named(self, indices: Iterable[int], public: str, own: str) -> list[Any]:
        found = []
        for place, index in enumerate(indices):
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = public.format(place).encode(), index
            self.graph.tensors[index].name = own.format(place).encode()
            found.append(entry)
        return found


def _values(source: Path, wanted: Sequence[int]) -> list[Array]:
    """What LiteRT's plain kernels make of constants."""
    if not wanted:
        return []

    def run() -> list[Array]:
        interpreter = Interpreter(
            model_path=str(source), num_threads=1, experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )  # fmt: skip
        interpreter.allocate_tensors()
        for entry in interpreter.get_input_details():
            interpreter.set_tensor(entry["index"], np.zeros(entry["shape"], entry["dtype"]))
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in wanted]

    return quietly(run)


def _settle_types(graph: Any) -> None:
    """Scales are left over on floats; on integers they compute. Raises: Unsupported for those."""
    used = {index for step in graph.operators for index in (*step.inputs, *step.outputs)}
    for index, tensor in enumerate(graph.tensors):
        scales = None if tensor.quantization is None else tensor.quantization.scale
        if index in used and tensor.type in _INTEGERS and scales is not None and len(scales):
            raise Unsupported(
                f"it holds integers with a scale ({tensor.name.decode(errors='replace')}) that its operators take as they are;"
                " for other recipes build from the float model that it was made of"
            )
        tensor.quantization = None


def _name_apart(model: Any) -> None:
    """Ranges and rules go by a tensor's name, in all graphs together."""
    taken: set[bytes] = set()
    main = model.subgraphs[0]
    edges = [main.tensors[index] for index in (*main.inputs, *main.outputs)]
    others = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    for number, tensor in enumerate((*edges, *others)):
        if number >= len(edges) and any(tensor is edge for edge in edges):
            continue
        name = bytes(tensor.name or b"")
        while not name or name in taken:
            name += b".%d" % number
        tensor.name = name
        taken.add(name)
