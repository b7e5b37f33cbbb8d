"""Operators that the table lacks: those that ONNX defines by a function of others are replaced by that function."""

from collections import Counter

import onnx
from onnx import inliner

from converters.prepare.importer.control import CONTROL
from converters.prepare.importer.registry import UnsupportedOperatorsError, lookup

_DEFAULT = ("", "ai.onnx")
# A function's body may hold functions again, never so many times.
_DEPTH = 8


def expanded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its own functions, and the operators that only ONNX's function bodies explain, written out.

    Raises: UnsupportedOperatorsError that lists every operator that is still unknown.
    """
    if model.functions:
        model = inliner.inline_local_functions(model, convert_version=True)
    opset = next((entry.version for entry in model.opset_import if entry.domain in _DEFAULT), 1)
    for _ in range(_DEPTH):
        missing = _missing(model.graph, opset, set())
        bodies = [name for name in missing if _has_body(*name, opset)]
        if not bodies:
            break
        # Bodies that depend on types need those of the values between nodes.
        model = onnx.shape_inference.infer_shapes(model)
        model = inliner.inline_selected_functions(model, bodies, inline_schema_functions=True)
    if missing:
        listed = ", ".join(
            f"{domain}.{name} ({count})" if domain not in _DEFAULT else f"{name} ({count})"
            for (domain, name), count in sorted(missing.items())
        )
        raise UnsupportedOperatorsError(f"operators that the importer does not know: {listed}")
    return model


def _has_body(domain: str, name: str, opset: int) -> bool:
    try:
        schema = onnx.defs.get_schema(
            name, opset if domain in _DEFAULT else 1, "" if domain in _DEFAULT else domain
        )
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def _missing(graph: onnx.GraphProto, opset: int, outer: set[str]) -> Counter[tuple[str, str]]:
    """Operators without an entry, but for those that see constants only: they are computed when loading."""
    constants = {*outer, "", *(tensor.name for tensor in graph.initializer)}
    missing: Counter[tuple[str, str]] = Counter()
    for node in graph.node:
        known = node.domain in _DEFAULT and (
            node.op_type in CONTROL or lookup(node.op_type, opset) is not None
        )
        constant = all(name in constants for name in node.input)
        if constant or (known and node.op_type in ("Shape", "Size")):
            constants.update(node.output)
        if not known and not (constant and node.domain in _DEFAULT and node.input):
            missing[node.domain, node.op_type] += 1
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                missing.update(_missing(attribute.g, opset, constants))
    return missing
