"""ONNX's backend tests as cases: node tests generated here, and the files of converted torch modules.

`Case.fixed` names the graph inputs that become initializers. A bundle's shapes are fixed, so what an operator takes as
a shape, axes, sizes and the like is known when it is built; inputs that carry data are never bound.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test import loader

from converters.graph.importer.registry import lookup

# What control flow takes as the number of turns. The condition of `If` is data.
_CONTROL_FIXED = {"Loop": (0, 1)}


@dataclass(frozen=True)
class Case:
    """`operator` is whose test it is, also where the model holds the operator's function body instead."""

    name: str
    kind: str
    operator: str
    model: onnx.ModelProto
    data: tuple[tuple[tuple[Any, ...], tuple[Any, ...]], ...]
    rtol: float
    atol: float
    fixed: frozenset[str]


@cache
def load() -> tuple[Case, ...]:
    """Every node, simple and converted-torch case, in the order of names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nodes = loader.load_model_tests(kind="node")
    models = {test.name: test.model for test in nodes}
    cases = [_node_case(test, models) for test in nodes]
    for kind in ("simple", "pytorch-converted", "pytorch-operator"):
        cases += [_file_case(test, kind) for test in loader.load_model_tests(kind=kind)]
    return tuple(sorted(cases, key=lambda case: (case.kind, case.name)))


def bound(case: Case, inputs: Sequence[Any]) -> tuple[onnx.ModelProto, list[Any]]:
    """The model as a project file would fix it: shapes closed, `fixed` inputs initializers; and the other inputs."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    initialized = {tensor.name for tensor in model.graph.initializer}
    values = [value for value in model.graph.input if value.name not in initialized]
    del model.graph.input[:]
    feeds = []
    for value, array in zip(values, inputs, strict=False):
        if value.name in case.fixed:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), value.name))
            continue
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype)
        shape = np.shape(array)
        model.graph.input.append(onnx.helper.make_tensor_value_info(value.name, kind, shape))
        feeds.append(np.asarray(array))
    return model, feeds


def compare(case: Case, wanted: Sequence[Any], have: Sequence[Any]) -> None:
    """As ONNX's own runner compares. Raises: AssertionError."""
    assert len(have) == len(wanted), f"{len(have)} outputs instead of {len(wanted)}"
    for right, left in zip(wanted, have, strict=True):
        assert left.shape == right.shape, f"shape {left.shape} instead of {right.shape}"
        assert left.dtype == right.dtype, f"type {left.dtype} instead of {right.dtype}"
        np.testing.assert_allclose(left, right, rtol=case.rtol, atol=case.atol)


def _node_case(test: Any, models: dict[str, onnx.ModelProto]) -> Case:
    plain = test.name.split("_expanded")[0]
    original = models.get(plain, test.model)
    # ONNX's generator may write several nodes for one test; the last is the one under test.
    node = original.graph.node[-1]
    data = tuple(
        (tuple(_array(value) for value in inputs), tuple(_array(value) for value in outputs))
        for inputs, outputs in test.data_sets
    )
    operator = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
    return Case(test.name, "node", operator, test.model, data, test.rtol, test.atol, _fixed(original))


def _file_case(test: Any, kind: str) -> Case:
    folder = Path(test.model_dir)
    model = onnx.load(str(folder / "model.onnx"))
    data = tuple(
        (
            _read(sorted(part.glob("input_*.pb"), key=_number), model.graph.input),
            _read(sorted(part.glob("output_*.pb"), key=_number), model.graph.output),
        )
        for part in sorted(folder.glob("test_data_set_*"))
    )
    return Case(test.name, kind, kind, model, data, test.rtol, test.atol, _fixed(model))


def _number(path: Path) -> int:
    return int(path.stem.split("_")[-1])


def _read(paths: Sequence[Path], values: Sequence[onnx.ValueInfoProto]) -> tuple[Any, ...]:
    """Tensors; other kinds of values stay what they are, since no case that is in scope has them."""
    found = []
    for path, value in zip(paths, values, strict=False):
        if value.type.WhichOneof("value") == "tensor_type":
            found.append(numpy_helper.to_array(onnx.load_tensor(str(path))))
        else:
            found.append(path)
    return tuple(found)


def _array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _fixed(model: onnx.ModelProto) -> frozenset[str]:
    """Graph inputs that a node takes as a parameter."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    names = set()
    for node in model.graph.node:
        entry = lookup(node.op_type, opset)
        positions = _CONTROL_FIXED.get(node.op_type) or (entry.fixed if entry else ())
        names |= {node.input[index] for index in positions if index < len(node.input)}
    return frozenset(names & {value.name for value in model.graph.input})
