"""Einsum of two operands spelled as a matrix product, where it is one.

No quantizer takes an Einsum: ONNX Runtime's knows no such operator, and NNCF does not see the product in what OpenVINO makes of it.

Source: ONNX operators, Einsum-12; `numpy.einsum` for the notation.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from converters.graph import tidy

# Exporters write single letters; an ellipsis or a letter twice in one operand is no plain product.
_NOTATION = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


@dataclass(frozen=True)
class Product:
    """How `left x right` becomes the result: each is transposed, then reshaped (None: not at all), and so is the product.
    `is_turned`: the second operand stands on the left.
    """

    is_turned: bool
    left: tuple[int, ...]
    left_shape: tuple[int, ...] | None
    right: tuple[int, ...]
    right_shape: tuple[int, ...] | None
    made_shape: tuple[int, ...] | None
    made: tuple[int, ...]


def product(equation: str, shapes: Sequence[Sequence[int]], *, is_turned: bool = False) -> Product | None:
    """The matrix product that an equation of two operands is; None where it is none, or not one alone."""
    operands, arrow, result = equation.replace(" ", "").partition("->")
    first, comma, second = operands.partition(",")
    terms = (first, second, result)
    if not (arrow and comma) or any(len({*term} & _NOTATION) != len(term) for term in terms):
        return None
    if [len(first), len(second)] != [len(shape) for shape in shapes]:
        return None
    sizes = dict(zip(first + second, [*shapes[0], *shapes[1]], strict=True))
    if any(
        sizes[letter] != size
        for term, shape in zip(terms, shapes, strict=False)
        for letter, size in zip(term, shape, strict=True)
    ):
        return None  # one that is stretched
    left, right = (second, first) if is_turned else (first, second)
    batch = [letter for letter in result if letter in left and letter in right]
    rows, columns = ([letter for letter in result if letter in own and letter not in other] for own, other in ((left, right), (right, left)))  # fmt: skip
    summed = [letter for letter in left if letter in right and letter not in result]
    if not summed or {*left} != {*batch, *rows, *summed} or {*right} != {*batch, *columns, *summed}:
        return None

    def size(letters: Sequence[str]) -> int:
        return math.prod(sizes[letter] for letter in letters)

    outer = tuple(sizes[letter] for letter in batch)
    # Without a batch the rows may keep their axes: a product takes any number of them.
    height = outer + ((size(rows),) if batch or not rows else tuple(sizes[letter] for letter in rows))
    given = tuple(sizes[letter] for letter in (*batch, *rows, *columns))
    return Product(
        is_turned,
        _places(left, [*batch, *rows, *summed]),
        _unless_same((*height, size(summed)), [sizes[letter] for letter in (*batch, *rows, *summed)]),
        _places(right, [*batch, *summed, *columns]),
        _unless_same((*outer, size(summed), size(columns)), [sizes[letter] for letter in (*batch, *summed, *columns)]),
        _unless_same(given, (*height, size(columns))),
        _places("".join([*batch, *rows, *columns]), list(result)),
    )  # fmt: skip


def _places(have: str, wanted: Sequence[str]) -> tuple[int, ...]:
    return tuple(have.index(letter) for letter in wanted)


def _unless_same(wanted: Sequence[int], have: Sequence[int]) -> tuple[int, ...] | None:
    return None if list(wanted) == list(have) else tuple(wanted)


def spelled_out(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every Einsum of the main graph that is a matrix product of known shapes; the model itself where there is none."""
    if not any(node.op_type == "Einsum" for node in model.graph.node):
        return model
    shapes = tidy.closed_shapes(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = [_of(node, shapes, constants) for node in model.graph.node]
    if not any(found):
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:], made.graph.value_info[:]
    for node, how in zip(model.graph.node, found, strict=True):
        made.graph.node.extend([node] if how is None else _Spelled(made.graph, node).nodes(how))
    return made


def _of(
    node: onnx.NodeProto, shapes: Mapping[str, Sequence[int]], constants: Mapping[str, onnx.TensorProto]
) -> Product | None:
    if node.op_type != "Einsum" or len(node.input) != 2 or any(name not in shapes for name in node.input):
        return None
    if any(name in constants and constants[name].external_data for name in node.input):
        # A weight in a file is not laid out anew.
        return None
    first, second = node.input
    equation = onnx.helper.get_attribute_value(node.attribute[0]).decode()
    # Weights stand on the right, which is where quantizers look for them.
    is_turned = first in constants and second not in constants
    return product(equation, [shapes[first], shapes[second]], is_turned=is_turned)


@dataclass(frozen=True)
class _Spelled:
    """What stands for one node in a graph."""

    graph: onnx.GraphProto
    node: onnx.NodeProto

    def nodes(self, how: Product) -> list[onnx.NodeProto]:
        found: list[onnx.NodeProto] = []

        def add(kind: str, inputs: Sequence[str], told: str, **attributes: object) -> str:
            name = f"{self.node.output[0]}.{told}"
            found.append(onnx.helper.make_node(kind, inputs, [name], **attributes))
            return name

        def laid(name: str, order: Sequence[int], shape: Sequence[int] | None, told: str) -> str:
            if list(order) != sorted(order):
                name = add("Transpose", [name], f"{told}-turned", perm=list(order))
            if shape is not None:
                name = add("Reshape", [name, self._constant(f"{told}-shape", shape)], f"{told}-laid")
            return name

        first, second = reversed(self.node.input) if how.is_turned else self.node.input
        left = laid(first, how.left, how.left_shape, "left")
        right = laid(second, how.right, how.right_shape, "right")
        made = add("MatMul", [left, right], "product")
        if how.made_shape is not None:
            made = add("Reshape", [made, self._constant("shape", how.made_shape)], "laid")
        if list(how.made) != sorted(how.made):
            add("Transpose", [made], "turned", perm=list(how.made))
        found[-1].output[0] = self.node.output[0]
        return found

    def _constant(self, told: str, shape: Sequence[int]) -> str:
        name = f"{self.node.output[0]}.{told}"
        self.graph.initializer.append(onnx.numpy_helper.from_array(np.array(shape, np.int64), name))
        return name
