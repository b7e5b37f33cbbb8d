"""Operators that the table lacks but that ONNX defines by others: their bodies, and what nobody knows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from onnx import inliner

from converters.graph.importer.control import CONTROL
from converters.graph.importer.registry import UnsupportedOperatorsError, lookup, qualified
from converters.graph.importer.sequences import SEQUENCES

_DEFAULT = ("", "ai.onnx")


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its own functions written out.

    Raises: UnsupportedOperatorsError that lists every operator that is unknown.
    """
    if model.functions:
        model = inliner.inline_local_functions(model, convert_version=True)
    opset = next((entry.version for entry in model.opset_import if entry.domain in _DEFAULT), 1)
    missing = _missing(model.graph, opset, set())
    if missing:
        listed = ", ".join(
            f"{domain}.{name} ({count})" if domain not in _DEFAULT else f"{name} ({count})"
            for (domain, name), count in sorted(missing.items())
        )
        raise UnsupportedOperatorsError(f"operators that the importer does not know: {listed}")
    return model


def body(node: onnx.NodeProto, opset: int, types: Sequence[onnx.TypeProto]) -> onnx.FunctionProto:
    """The function that defines an operator, for inputs of these types (empty where one is left out)."""
    schema = _schema(node.domain, node.op_type, opset)
    assert schema is not None
    # A body may be written for a newer opset than the operator's own version: the newest that the model admits.
    if versions := schema.function_opset_versions:
        data = schema.get_function_with_opset_version(_newest(versions, opset))
    else:
        data = schema.get_context_dependent_function_with_opset_version(
            _newest(schema.context_dependent_function_opset_versions, opset),
            node.SerializeToString(),
            [entry.SerializeToString() for entry in types],
        )
    function = onnx.FunctionProto()
    function.ParseFromString(data)
    return function


def defaults(node: onnx.NodeProto, opset: int) -> dict[str, onnx.AttributeProto]:
    """The node's attributes, and the operator's defaults for those that it leaves out."""
    schema = _schema(node.domain, node.op_type, opset)
    assert schema is not None
    found = {
        name: attribute.default_value
        for name, attribute in schema.attributes.items()
        if attribute.default_value.name
    }
    return {**found, **{attribute.name: attribute for attribute in node.attribute}}


def with_attributes(node: onnx.NodeProto, known: Mapping[str, onnx.AttributeProto]) -> onnx.NodeProto:
    """A node of a body, with the attributes that it takes from the function's caller."""
    filled = onnx.NodeProto()
    filled.CopyFrom(node)
    del filled.attribute[:]
    for attribute in node.attribute:
        entry: Any = onnx.AttributeProto()
        if attribute.ref_attr_name:
            if attribute.ref_attr_name not in known:
                continue
            entry.CopyFrom(known[attribute.ref_attr_name])
            entry.name = attribute.name
        else:
            entry.CopyFrom(attribute)
            if entry.type == onnx.AttributeProto.GRAPH:
                inner = [with_attributes(part, known) for part in attribute.g.node]
                del entry.g.node[:]
                entry.g.node.extend(inner)
        filled.attribute.append(entry)
    return filled


def _newest(versions: Sequence[int], opset: int) -> int:
    return max((version for version in versions if version <= opset), default=min(versions))


def has_body(domain: str, name: str, opset: int) -> bool:
    schema = _schema(domain, name, opset)
    return schema is not None and bool(
        schema.function_opset_versions or schema.context_dependent_function_opset_versions
    )


def _schema(domain: str, name: str, opset: int) -> Any:
    try:
        return onnx.defs.get_schema(name, opset, "") if domain in _DEFAULT else None
    except onnx.defs.SchemaError:
        return None


def _missing(graph: onnx.GraphProto, opset: int, outer: set[str]) -> Counter[tuple[str, str]]:
    """Operators without an entry, but for those that see constants only: they are computed when loading."""
    constants = {*outer, "", *(tensor.name for tensor in graph.initializer)}
    missing: Counter[tuple[str, str]] = Counter()
    for node in graph.node:
        known = node.domain in _DEFAULT and (
            node.op_type in (*CONTROL, *SEQUENCES) or has_body(node.domain, node.op_type, opset)
        )
        known = known or lookup(qualified(node.domain, node.op_type), opset) is not None
        constant = all(name in constants for name in node.input)
        if constant or (known and node.op_type in ("Shape", "Size")):
            constants.update(node.output)
        if not known and not (constant and node.domain in _DEFAULT and node.input):
            missing[node.domain, node.op_type] += 1
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                missing.update(_missing(attribute.g, opset, constants))
    return missing
