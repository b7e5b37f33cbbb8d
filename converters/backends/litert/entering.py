"""Constants and operators of torch that are put into a program's graph."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx


def attribute(made: GraphModule, target: Any) -> Any:
    value: Any = made
    for part in str(target).split("."):
        value = getattr(value, part)
    return value


def constant(made: GraphModule, tensor: Any) -> Node:
    """Enter a tensor; gives the node that reads it."""
    name = f"entered_{len(list(made.buffers()))}"
    made.register_buffer(name, tensor)
    node: Node = made.graph.get_attr(name)
    node.meta["val"] = tensor
    return node


def value_of(made: GraphModule, entry: Any) -> Any:
    """What a node computes where no data enters; None where some does."""
    if not isinstance(entry, Node):
        return entry
    if entry.op == "get_attr":
        return attribute(made, entry.target)
    if entry.op != "call_function":
        return None
    arguments = [value_of(made, part) for part in entry.all_input_nodes]
    if any(value is None for value in arguments):
        return None
    known = dict(zip(entry.all_input_nodes, arguments, strict=True))
    args, kwargs = torch.fx.map_arg((entry.args, entry.kwargs), known.__getitem__)
    return entry.target(*args, **kwargs)


def entered(
    made: GraphModule,
    before: Node,
    function: Callable[..., Any],
    values: Sequence[Node],
    table: Any = None,
) -> list[Node]:
    """The function's operators in front of a node, taken apart by `table`; gives its results."""
    traced = make_fx(function, decomposition_table=table)(*(_blank(value.meta["val"]) for value in values))
    places: dict[Node, Node] = dict(zip(traced.graph.find_nodes(op="placeholder"), values, strict=True))
    with made.graph.inserting_before(before):
        for step in traced.graph.nodes:
            if step.op == "output":
                return [places[last] for last in torch.utils._pytree.tree_leaves(step.args)]  # noqa: SLF001  # torch's own name of it
            if step.op == "get_attr":
                places[step] = constant(made, getattr(traced, step.target))
            elif step.op != "placeholder":
                places[step] = made.graph.node_copy(step, places.__getitem__)
    raise AssertionError("a traced function without an output")


def _blank(known: Any) -> Any:
    """Zeros that lie as the tensor does: what may be a view depends on that."""
    reach = sum((size - 1) * stride for size, stride in zip(known.shape, known.stride(), strict=True))
    return torch.zeros(max(reach, 0) + 1, dtype=known.dtype).as_strided(known.shape, known.stride())
