"""Patterns that engines have fast kernels for, recognised on the canonical ONNX graph.

`recognised` is applied on the way to LiteRT, whose converter has no fusions of its own for most of them, and to ONNX
Runtime's int8, where Q/DQ pairs hide them from its own (`onnxruntime_graph` spells `Gelu` as that engine reads it).
OpenVINO fuses GELU, layer norm and attention itself when it loads a model, and gets the graph as it is.

To add a pattern: a row of `scalar.KNOWN` for a function of one variable, or a rule in `layers.RULES`. The caller checks
that the result still computes what the source computes.
"""

from collections import Counter
from collections.abc import Mapping

import onnx

from converters.graph.patterns import depthwise, layers, scalar
from converters.graph.patterns.graph import Graph, Rule

__all__ = ["recognised"]
# What only XNNPACK, LiteRT's kernels for a CPU, gains by.
XNNPACK_RULES: Mapping[str, Rule] = {"wide depthwise": depthwise.wide_depthwise}


def recognised(
    model: onnx.ModelProto, *, for_xnnpack: bool = False
) -> tuple[onnx.ModelProto, dict[str, int]]:
    """The model with its patterns replaced, and how many of each were found; those for XNNPACK if told.

    The result may hold `Gelu` and `HardSwish` below the opsets that introduced them: the importer reads them at any.
    """
    graph = Graph(model)
    found: Counter[str] = Counter()
    for name, rule in {**layers.RULES, **(XNNPACK_RULES if for_xnnpack else {})}.items():
        # A rule that replaces something leaves a new list of nodes: start again behind it.
        while any(rule(graph, node) for node in list(graph.model.graph.node)):
            found[name] += 1
    found.update(scalar.recognise(graph))
    layers.align(graph)
    # `uses` knows what branches read, too.
    kept = [tensor for tensor in graph.model.graph.initializer if tensor.name in graph.uses]
    del graph.model.graph.initializer[:]
    graph.model.graph.initializer.extend(kept)
    del graph.model.graph.value_info[:]
    return graph.model, dict(sorted(found.items()))
