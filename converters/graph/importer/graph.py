"""An ONNX graph as a torch module.

Loading runs the graph once on zeros, with the shapes that the canonical form fixed. Everything that depends on
constants and shapes only is computed there and kept; what is left are the nodes that see data, in order. So shape
arithmetic, constant conditions, loops and generated tables never reach a converter.

Always true
 1. Every value has a key of its own: a loop's body, which runs several times, gets fresh ones each time.
 2. A result is a constant exactly where all inputs of its node are, or where only its shape or type was asked for.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from converters.graph.importer.functions import body, defaults, has_body, inlined, with_attributes
from converters.graph.importer.registry import Call, UnsupportedOperatorsError, lookup, qualified
from converters.graph.importer.sequences import SEQUENCES
from converters.graph.importer.types import KEEPS_RANGE, at_edge, carried, widened
from converters.graph.tidy import dense
from edgekit.errors import SourceError

# The inputs whose values these read; of the others they see the shape or the type.
_READ = {"Shape": (), "Size": (), "EyeLike": (), "CastLike": (0,)}


@dataclass(frozen=True)
class Step:
    """A node that sees data. `inputs` are keys, empty where an optional one is left out."""

    run: Callable[..., Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class OnnxModule(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Runs the steps; constants are buffers. `inputs` and `outputs` are keys with their types in the model."""

    def __init__(
        self,
        steps: Sequence[Step],
        constants: Mapping[str, Any],
        inputs: Mapping[str, Any],
        outputs: Sequence[tuple[str, Any]],
    ) -> None:
        super().__init__()
        self._steps = tuple(steps)
        self._inputs, self._outputs = dict(inputs), tuple(outputs)
        used = {name for step in steps for name in step.inputs} | {name for name, _ in outputs}
        self._buffer_of: dict[str, str] = {}
        for index, (name, tensor) in enumerate(item for item in constants.items() if item[0] in used):
            self.register_buffer(f"c{index}", carried(tensor, tensor.dtype))
            self._buffer_of[name] = f"c{index}"

    @property
    def input_kinds(self) -> tuple[Any, ...]:
        """Types of the inputs in the model."""
        return tuple(self._inputs.values())

    @property
    def output_kinds(self) -> tuple[Any, ...]:
        """Types of the outputs in the model."""
        return tuple(kind for _, kind in self._outputs)

    @property
    def sees_data(self) -> bool:
        """Whether anything is left to compute at run time."""
        return bool(self._steps)

    def forward(self, *arguments: Any) -> Any:
        """Tensors in the order of the graph's inputs; one tensor or a tuple in the order of its outputs.

        Inputs are of the model's types or of those at the edge (`types.at_edge`); outputs are of the latter.
        """
        values: dict[str, Any] = {
            name: carried(argument, kind)
            for argument, (name, kind) in zip(arguments, self._inputs.items(), strict=True)
        }
        values.update({name: getattr(self, buffer) for name, buffer in self._buffer_of.items()})
        for step in self._steps:
            results = step.run(*(values[name] if name else None for name in step.inputs))
            values.update(zip(step.outputs, results, strict=False))
        found = tuple(values[name].to(at_edge(kind)) for name, kind in self._outputs)
        return found[0] if len(found) == 1 else found


class Builder:
    """Runs nodes on zeros: constant results stay, the others become steps."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.values: dict[str, Any] = {}
        self.fixed: set[str] = set()
        self.steps: list[Step] = []
        self._sequences: dict[str, tuple[str, ...]] = {}
        self._count = 0

    def key(self) -> str:
        self._count += 1
        return f"v{self._count}"

    def add_constant(self, tensor: Any) -> str:
        key = self.key()
        self.values[key] = tensor.contiguous()
        self.fixed.add(key)
        return key

    def add_input(self, tensor: Any) -> str:
        key = self.key()
        self.values[key] = tensor
        return key

    def add_sequence(self, entries: Sequence[str]) -> str:
        key = self.key()
        self._sequences[key] = tuple(entries)
        return key

    def entries(self, key: str) -> tuple[str, ...]:
        """The keys in a sequence. Raises: UnsupportedOperatorsError for what is none here, as an optional one."""
        if key not in self._sequences:
            raise UnsupportedOperatorsError("a sequence that is not made inside of the graph")
        return self._sequences[key]

    def number(self, key: str) -> Any:
        """The constant of one entry behind a key, None where it depends on data."""
        return self.values[key].reshape(-1)[0].item() if key in self.fixed else None

    def emit(
        self,
        function: Callable[..., Any],
        inputs: Sequence[str],
        count: int = 1,
        *,
        read: Sequence[str] | None = None,
        at_run_time: Callable[..., Any] | None = None,
        wraps: bool = False,
    ) -> list[str]:
        """Run a function now and, unless its result is a constant, at every call. Returns the results' keys.

        Now it gets tensors of the model's types; at a call their carriers, as does `at_run_time` in its stead. `wraps`
        where its results may lie outside their type.
        """
        results = _listed(function(*(self.values[name] if name else None for name in inputs)))
        if all(not name or name in self.fixed for name in (inputs if read is None else read)):
            return [self.add_constant(result) for result in results]
        kinds = [result.dtype for result in results]
        later = at_run_time or function

        def run(*tensors: Any) -> tuple[Any, ...]:
            return tuple(
                carried(value, kind, wraps=wraps)
                for value, kind in zip(_listed(later(*tensors)), kinds, strict=True)
            )

        keys = [self.add_input(result) for result in results][:count]
        self.steps.append(Step(run, tuple(inputs), tuple(keys)))
        return keys

    def graph(self, graph: onnx.GraphProto, names: Mapping[str, str], inputs: Sequence[str]) -> list[str]:
        """Run a graph whose inputs have these keys, inside a scope of outer names. Returns its outputs' keys."""
        scope = dict(names)
        for tensor in graph.initializer:
            scope[tensor.name] = self.add_constant(_tensor(tensor))
        for tensor in graph.sparse_initializer:
            scope[tensor.values.name] = self.add_constant(torch.from_numpy(dense(tensor)))
        free = [value.name for value in graph.input if value.name not in {t.name for t in graph.initializer}]
        scope.update(zip(free, inputs, strict=False))
        for node in graph.node:
            keys = self._node(node, scope)
            scope.update((name, key) for name, key in zip(node.output, keys, strict=False) if name)
        return [scope.get(value.name, "") for value in graph.output]

    def _node(self, node: onnx.NodeProto, scope: dict[str, str]) -> list[str]:
        # They hold graphs, which need this builder: control.py imports it.
        from converters.graph.importer.control import CONTROL

        inputs = [scope[name] if name else "" for name in node.input]
        attributes = {entry.name: _plain(onnx.helper.get_attribute_value(entry)) for entry in node.attribute}
        if node.op_type in CONTROL:
            return CONTROL[node.op_type](self, attributes, inputs, scope)
        if node.op_type in SEQUENCES:
            return SEQUENCES[node.op_type](self, attributes, inputs)
        if any(key in self._sequences for key in inputs):
            if node.op_type == "Identity":
                return inputs
            raise UnsupportedOperatorsError(f"{node.op_type} of a sequence")
        constants = tuple(self.values[key].numpy() if key in self.fixed else None for key in inputs)
        kinds = tuple(self.values[key].dtype if key else None for key in inputs)
        call = Call(node.op_type, attributes, constants, len(node.output), self.opset, kinds)
        entry = lookup(qualified(node.domain, node.op_type), self.opset)
        if entry is None and has_body(node.domain, node.op_type, self.opset):
            return self._function(node, inputs)
        if entry is None:
            return [self.add_constant(tensor) for tensor in _by_reference(node, self, inputs)]
        for index in entry.fixed:
            if index < len(inputs) and inputs[index] and constants[index] is None:
                raise call.unsupported(f"input {index} computed from data")
        now, later = widened(call, entry.function), dataclasses.replace(call, carries=True)
        return self.emit(
            lambda *tensors: now(call, *tensors),
            inputs,
            len(node.output),
            read=[inputs[index] for index in _READ[node.op_type]] if node.op_type in _READ else None,
            at_run_time=lambda *tensors: entry.function(later, *tensors),
            wraps=node.op_type not in KEEPS_RANGE,
        )

    def _function(self, node: onnx.NodeProto, inputs: Sequence[str]) -> list[str]:
        """An operator by the body that ONNX gives it."""
        types = [_type(self.values[key]) if key else onnx.TypeProto() for key in inputs]
        function = body(node, self.opset, types)
        known = defaults(node, self.opset)
        names = dict(zip(function.input, [*inputs, *[""] * len(function.input)], strict=False))
        outer = self.opset
        self.opset = next(
            (entry.version for entry in function.opset_import if entry.domain in ("", "ai.onnx")), outer
        )
        graph = onnx.GraphProto(
            node=[with_attributes(part, known) for part in function.node],
            output=[onnx.helper.make_empty_tensor_value_info(name) for name in function.output],
        )
        try:
            return self.graph(graph, names, ())
        finally:
            self.opset = outer


def load(path: Path) -> OnnxModule:
    """Read a model in canonical form (fixed shapes). Raises: as `from_model`."""
    return from_model(onnx.load(str(path)))


def from_model(model: onnx.ModelProto) -> OnnxModule:
    """The module of a model with fixed shapes.

    Raises: UnsupportedOperatorsError that lists every operator the importer lacks, SourceError that lists every
    dimension that is open.
    """
    model = inlined(model)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    _check_closed(inputs)
    builder = Builder(opset)
    with torch.no_grad():
        keys = [builder.add_input(_zeros(value)) for value in inputs]
        outputs = builder.graph(model.graph, {}, keys)
    fixed = {key: builder.values[key] for key in builder.values if key in builder.fixed}
    kinds = {key: value.dtype for key, value in builder.values.items()}
    return OnnxModule(
        builder.steps, fixed, {key: kinds[key] for key in keys}, [(key, kinds[key]) for key in outputs]
    )


def _listed(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def _check_closed(inputs: Sequence[onnx.ValueInfoProto]) -> None:
    open_ones = []
    for value in inputs:
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            raise UnsupportedOperatorsError(
                f"input {value.name!r} is a {kind}; the importer takes tensors only"
            )
        if not value.type.tensor_type.HasField("shape"):
            open_ones.append(f"{value.name} (of unknown rank)")
            continue
        dims = [
            str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?"
            for dim in value.type.tensor_type.shape.dim
        ]
        if not all(dim.isdigit() for dim in dims):
            open_ones.append(f"{value.name} [{', '.join(dims)}]")
    if open_ones:
        raise SourceError(
            f"open dimensions: {', '.join(open_ones)}; give each a size under [inputs.NAME] shape or with --shape"
        )


def _type(tensor: Any) -> onnx.TypeProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(tensor.numpy().dtype)
    return onnx.helper.make_tensor_type_proto(kind, list(tensor.shape))


def _zeros(value: onnx.ValueInfoProto) -> Any:
    tensor_type = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type)
    return torch.from_numpy(np.zeros([dim.dim_value for dim in tensor_type.shape.dim], dtype))


def _tensor(tensor: onnx.TensorProto) -> Any:
    return torch.from_numpy(np.array(numpy_helper.to_array(tensor)))


def _by_reference(node: onnx.NodeProto, builder: Builder, inputs: Sequence[str]) -> list[Any]:
    """An operator that the table lacks, on constants: ONNX's own implementation says what it is."""
    from onnx.reference import ReferenceEvaluator

    feeds = {name: builder.values[key].numpy() for name, key in zip(node.input, inputs, strict=True) if key}
    graph = onnx.helper.make_graph(
        [node],
        "constant",
        [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in feeds.items()
        ],
        [onnx.helper.make_empty_tensor_value_info(name) for name in node.output],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", builder.opset)])
    return [torch.from_numpy(np.asarray(array)) for array in ReferenceEvaluator(model).run(None, feeds)]


def _plain(value: Any) -> Any:
    """Texts as `str`, tensors as arrays."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, onnx.SparseTensorProto):
        return dense(value)
    if isinstance(value, list | tuple) and value and isinstance(value[0], bytes):
        return [entry.decode() for entry in value]
    return list(value) if isinstance(value, tuple) else value
