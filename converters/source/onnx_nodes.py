"""All nodes of an ONNX file, and those that nobody has a kernel of."""

from collections.abc import Iterator, Sequence

import onnx

# What ONNX Runtime has kernels of beside ONNX's own operators; each has operators that are in no list that can be asked.
_OF_THE_RUNTIME = frozenset({
    "ai.onnx.preview.training", "ai.onnx.training", "com.microsoft", "com.microsoft.experimental",
    "com.microsoft.nchwc", "com.ms.internal.nhwc", "org.pytorch.aten",
})  # fmt: skip


def every(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Those inside of branches, loops and functions too."""
    yield from inside(model.graph.node)
    for function in model.functions:
        yield from inside(function.node)


def inside(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from inside(graph.node)


def foreign(model: onnx.ModelProto) -> str:
    """The first node with an operator that is neither ONNX's nor ONNX Runtime's nor defined in the file, as the start of a
    sentence; empty if there is none.
    """
    defined = {(function.domain, function.name) for function in model.functions}
    for node in every(model):
        domain = "" if node.domain == "ai.onnx" else node.domain
        is_known = domain in _OF_THE_RUNTIME or onnx.defs.has(node.op_type, domain)
        if not is_known and (node.domain, node.op_type) not in defined:
            name = node.name or (node.output[0] if node.output else "")
            return f"node {name!r} is {node.op_type}{f' of {domain}' if domain else ''}"
    return ""
