"""A torch program on its way into litert-torch: exported, and rewritten where litert-torch 0.10 would get it wrong.

Always true
 1. The program computes what it computed before, infinities too.
 2. The caller's module and its tensors stay as they are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule, Node

from converters.backends.litert import lstm, pools, recurrent
from converters.backends.litert.rewrites import RULES, SAFE_SOFTMAX


def convert(module: Any, arguments: Sequence[Any]) -> Any:
    """litert-torch's model of a module, whose LSTMs are unrolled. Raises: whatever torch.export and litert-torch raise."""
    # Imported in here: torchao and jax tell of libraries that they cannot load.
    import litert_torch

    return litert_torch.convert(rewritten(module, tuple(arguments)), tuple(arguments))


def written(module: Any, arguments: Sequence[Any], target: Path, *, may_fuse: bool) -> int:
    """A module as a TFLite file; `may_fuse`: with LiteRT's fused recurrent layers where they fit. Gives how many those are.

    Raises: as `convert`.
    """
    import litert_torch

    made = rewritten(module, tuple(arguments), may_fuse=may_fuse)
    lstm.register()
    litert_torch.convert(made, tuple(arguments)).export(str(target))
    fused = sum(node.target is lstm.CALLED for node in made.graph.nodes)
    if fused:
        target.write_bytes(recurrent.placed(target.read_bytes()))
    return fused


def rewritten(module: Any, arguments: tuple[Any, ...], *, may_fuse: bool = False) -> GraphModule:
    """The module's ATen graph after every rule, of recurrent layers and pools too."""
    from litert_torch import fx_infra

    # litert-torch's own table: what it keeps whole for its composites stays whole.
    table = fx_infra.decomp.pre_convert_decomp()
    table.pop(SAFE_SOFTMAX, None)
    table.update(lstm.table(table))
    with torch.no_grad():
        program = torch.export.export(module, arguments, strict=False)
        program = fx_infra.safe_run_decompositions(program, table, can_skip=False)
        made: GraphModule = program.module(check_guards=False)
        lstm.settle(made, table, may_fuse=may_fuse)
        for rule in (*RULES, *pools.RULES):
            for node in list(made.graph.nodes):
                rule(made, node)
        _part_outputs(made)
    made.graph.eliminate_dead_code()
    _settle(made)
    made.recompile()
    return made


def _part_outputs(made: GraphModule) -> None:
    """Each output by an operator of its own: of a tensor that is given twice, or is an input, the converter gives one
    name only, and ai-edge-quantizer (0.10) loses the others. The larger of a tensor and itself is what no tool removes; a
    truth is a number meanwhile, since one or the other of it and itself is removed.
    """
    (end,) = (node for node in made.graph.nodes if node.op == "output")
    seen: set[Node] = set()

    def parted(node: Node) -> Node:
        if node.op != "placeholder" and node not in seen:
            seen.add(node)
            return node
        is_truth = node.meta["val"].dtype is torch.bool
        aten, call = torch.ops.aten, made.graph.call_function
        with made.graph.inserting_before(end):
            number = call(aten.to.dtype, (node, torch.int32)) if is_truth else node
            larger = call(aten.maximum.default, (number, number))
            return call(aten.ne.Scalar, (larger, 0)) if is_truth else larger

    end.args = torch.fx.map_arg(end.args, parted)


def _settle(made: GraphModule) -> None:
    """Leave litert-torch contiguous tensors, and none that nothing reads.

    litert-torch 0.10 clamps also what nothing reads, and it is the caller's. It knows a constant that it has written by
    its address: of one that is not contiguous it makes a copy that is soon gone, and the next copy at that address got
    the first one's values.
    """
    read = {node.target for node in made.graph.nodes if node.op == "get_attr"}
    for name, _ in [
        *made.named_parameters(remove_duplicate=False),
        *made.named_buffers(remove_duplicate=False),
    ]:
        if name not in read:
            owner, leaf = _owner(made, name)
            delattr(owner, leaf)
    for name in read:
        owner, leaf = _owner(made, name)
        tensor = getattr(owner, leaf)
        if isinstance(tensor, torch.Tensor) and not tensor.is_contiguous():
            delattr(owner, leaf)
            owner.register_buffer(leaf, tensor.detach().contiguous())


def _owner(made: GraphModule, name: str) -> tuple[Any, str]:
    owner, _, leaf = name.rpartition(".")
    return made.get_submodule(owner), leaf
