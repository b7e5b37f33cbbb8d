"""What a `.tflite` file says about itself, read from its flatbuffer without running it.

Always true
 1. A file is verified by LiteRT before its tables are followed: a damaged one is refused, never half read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from edgekit.errors import SourceError
from edgekit.manifest import Option

# What Vela puts in the place of what runs on an Ethos-U.
NPU_OPERATOR = "ethos-u"
# An engine's option: what operators keep from call to call is zero before each, so that a sample's outputs are its own.
RESET: Mapping[str, Option] = {"variables": "reset"}


def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


_OPERATORS = _names(schema.BuiltinOperator)
_TYPES = _names(schema.TensorType)


@dataclass(frozen=True)
class Operator:
    """`inputs` and `outputs` are indices of the graph's tensors; an input that was left out is -1."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """`shape` has -1 where a dimension is open; `kind` is the schema's word (`FLOAT32`, `INT8`); `is_constant` holds
    for weights.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    is_constant: bool


@dataclass(frozen=True)
class Graph:
    """The main subgraph; `count` is the number of operators of all subgraphs. `keeps_state`: an operator of one of them goes on
    from where the call before ended (a fused recurrent layer).
    """

    tensors: tuple[Tensor, ...]
    steps: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    signature: Mapping[str, Mapping[str, int]]
    other_operators: tuple[str, ...]
    keeps_state: bool = False

    @cached_property
    def operators(self) -> tuple[str, ...]:
        """Names of all operators, those of other subgraphs too."""
        return (*(step.name for step in self.steps), *self.other_operators)

    @property
    def count(self) -> int:
        return len(self.operators)


def read(path: Path) -> Graph:
    """Raises: SourceError for a file that is no TFLite model, or damaged."""
    try:
        Interpreter(model_path=str(path))
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    except (ValueError, OSError, RuntimeError) as error:
        raise SourceError(f"{path}: not a TFLite model, or damaged ({error})") from error
    codes = [_operator_name(code) for code in model.operatorCodes]
    main, *others = model.subgraphs
    return Graph(
        tensors=tuple(_tensor(tensor, model.buffers) for tensor in main.tensors),
        steps=tuple(
            Operator(codes[step.opcodeIndex], _indices(step.inputs), _indices(step.outputs))
            for step in _list(main.operators)
        ),
        inputs=_indices(main.inputs),
        outputs=_indices(main.outputs),
        signature=_signature(model),
        keeps_state=any(tensor.isVariable for graph in model.subgraphs for tensor in _list(graph.tensors)),
        other_operators=tuple(codes[step.opcodeIndex] for graph in others for step in _list(graph.operators)),
    )


def _operator_name(code: Any) -> str:
    if code.builtinCode == schema.BuiltinOperator.CUSTOM:
        return bytes(code.customCode or b"CUSTOM").decode(errors="replace")
    # Files from before 2020 fill the old, one-byte field only.
    return _OPERATORS[max(code.builtinCode, code.deprecatedBuiltinCode)]


def _tensor(tensor: Any, buffers: Any) -> Tensor:
    shape = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    data = buffers[tensor.buffer]
    is_constant = data is not None and (data.data is not None or bool(data.size))
    name = bytes(tensor.name or b"").decode(errors="replace")
    return Tensor(name, _TYPES[tensor.type], _indices(shape), is_constant)


def _signature(model: Any) -> dict[str, dict[str, int]]:
    """Public names of the first signature, if there is one: `inputs` and `outputs`, each name → tensor index."""
    found = next(iter(_list(model.signatureDefs)), None)
    if found is None or found.subgraphIndex != 0:
        return {}
    return {
        "inputs": {bytes(item.name).decode(): item.tensorIndex for item in _list(found.inputs)},
        "outputs": {bytes(item.name).decode(): item.tensorIndex for item in _list(found.outputs)},
    }


def _list(value: Any) -> list[Any]:
    return [] if value is None else list(value)


def _indices(value: Any) -> tuple[int, ...]:
    return () if value is None else tuple(int(index) for index in np.asarray(value).ravel())
