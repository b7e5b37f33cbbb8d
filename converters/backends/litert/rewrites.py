"""Rules that rewrite a torch program's ATen graph where litert-torch 0.10 and LiteRT's converter get it wrong.

Each rule looks at one node and replaces it if it is what the rule is for. To add one: a function, and its name in `RULES`.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from converters.backends.litert.entering import attribute, constant, value_of

_ATEN = torch.ops.aten
# What leaves the entries of a tensor in their order.
_VIEWS = frozenset(
    {
        _ATEN.view.default, _ATEN._unsafe_view.default, _ATEN.reshape.default, _ATEN.clone.default,  # noqa: SLF001  # torch's name of an operator
        _ATEN.unsqueeze.default, _ATEN.squeeze.dims, _ATEN.squeeze.dim, _ATEN.expand.default,
    }
)  # fmt: skip
_PERMUTES = frozenset({_ATEN.permute.default, _ATEN.transpose.int, _ATEN.t.default})
SAFE_SOFTMAX = _ATEN._safe_softmax.default  # noqa: SLF001  # torch's name of an operator
_SOFTMAX = _ATEN._softmax.default  # noqa: SLF001  # torch's name of an operator
_TO = _ATEN._to_copy.default  # noqa: SLF001  # torch's name of an operator
# What a mask adds to the score of an entry that is not to be seen.
_NEVER = float("-inf")
# Entries of a generated tensor that the file may hold.
_LARGEST = 1 << 20
# Copies along an axis above which a lookup stands for the concatenation.
_COPIES = 16
# Axes of a 3-D convolution.
_VOLUME = 3


def generated(made: GraphModule, node: Node) -> None:
    """A tensor that is made from numbers alone (a range, a diagonal, a causal mask) becomes a constant.

    litert-torch 0.10 leaves some to the run time, and LiteRT's interpreter has no STABLEHLO_IOTA.
    """
    if not _is_generated(node) or all(_is_generated(user) for user in node.users):
        return
    value = value_of(made, node)
    # A tensor of one value is a number in the file as it is.
    if (
        not isinstance(value, torch.Tensor)
        or not 1 < value.numel() <= _LARGEST
        or not (value != value.reshape(-1)[0]).any()
    ):
        return
    with made.graph.inserting_after(node):
        node.replace_all_uses_with(constant(made, value.contiguous()))


def _is_generated(node: Node) -> bool:
    if node.op != "call_function" or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        return False
    return all(_is_generated(part) for part in node.all_input_nodes)


def infinities(made: GraphModule, node: Node) -> None:
    """A constant with infinite entries becomes finite ones and a selection, which the converter folds again.

    litert-torch 0.10 clamps constants to the finite range, in place: -3.4e38 for -inf, while infinities that it meets
    as numbers stay. A fully masked row of an attention is then no longer told from others.
    """
    if node.op != "get_attr":
        return
    tensor = attribute(made, node.target)
    if (
        not isinstance(tensor, torch.Tensor)
        or not tensor.is_floating_point()
        or not torch.isinf(tensor).any()
    ):
        return
    with made.graph.inserting_after(node):
        finite = constant(made, torch.where(torch.isinf(tensor), torch.zeros_like(tensor), tensor))
    last = finite
    for number in (float("-inf"), float("inf")):
        places = tensor == number
        if not places.any():
            continue
        with made.graph.inserting_after(last):
            where = constant(made, places)
        with made.graph.inserting_after(where):
            full = made.graph.call_function(
                _ATEN.full.default, (list(tensor.shape), number), {"dtype": tensor.dtype}
            )
        with made.graph.inserting_after(full):
            last = made.graph.call_function(_ATEN.where.self, (where, full, last))
    node.replace_all_uses_with(last, delete_user_cb=lambda user: user is not last)


def dead_rows(made: GraphModule, node: Node) -> None:
    """Rows of an attention that are masked as a whole give zeros, as in torch.

    litert-torch 0.10 takes a plain softmax for the one that says so, which divides nothing by nothing.
    """
    if node.target is not SAFE_SOFTMAX:
        return
    scores, axis = node.args[0], int(node.args[1]) % node.meta["val"].dim() - node.meta["val"].dim()
    product, mask = _masked(scores)
    known = None if mask is None else value_of(made, mask)
    graph = made.graph
    with graph.inserting_before(node):
        if mask is None or (known is not None and bool(_alive(known, axis).all())):
            node.replace_all_uses_with(graph.call_function(_SOFTMAX, (scores, axis, False)))
            return
        lowest, kind = torch.finfo(node.meta["val"].dtype).min, node.meta["val"].dtype
        if known is not None:
            raised = constant(made, known.clamp(min=lowest))
            factor = constant(made, _alive(known, axis).to(kind))
        else:
            raised = graph.call_function(_ATEN.clamp.default, (mask, lowest))
            # From the mask, which the layers of a network share.
            top = graph.call_function(_ATEN.amax.default, (mask, [axis], True))
            alive = graph.call_function(_ATEN.ne.Scalar, (top, _NEVER))
            factor = graph.call_function(_TO, (alive,), {"dtype": kind})
        if product is not None:
            raised = graph.call_function(_ATEN.add.Tensor, (product, raised))
        share = graph.call_function(_SOFTMAX, (raised, axis, False))
        node.replace_all_uses_with(graph.call_function(_ATEN.mul.Tensor, (share, factor)))


def _masked(scores: Node) -> tuple[Node | None, Node | None]:
    """A product of matrices and the mask that is added to it; no mask where there is none, or no product that is known."""
    if _is_product(scores):
        return scores, None
    if scores.target is _ATEN.add.Tensor and all(isinstance(part, Node) for part in scores.args):
        left, right = scores.args
        for product, mask in ((left, right), (right, left)):
            if _is_product(product):
                return product, mask
    return None, scores


def _is_product(node: Node) -> bool:
    """Whether a tensor is a product of matrices, which is finite, times a number perhaps."""
    while node.target in _VIEWS or node.target in (_ATEN.mul.Scalar, _ATEN.div.Scalar):
        node = node.args[0]
    return node.target in (_ATEN.bmm.default, _ATEN.mm.default)


def _alive(mask: Any, axis: int) -> Any:
    """Rows in which a mask leaves something."""
    return torch.amax(mask, axis, keepdim=True) != _NEVER


def copies(made: GraphModule, node: Node) -> None:
    """A tensor repeated along an axis and then permuted becomes a concatenation.

    LiteRT's converter (litert-converter 0.5) drops the permutation behind such a BROADCAST_TO: the keys of an attention
    with one head of keys came out in another order.
    """
    if node.target not in (_ATEN.expand.default, _ATEN.repeat.default) or not _reaches_permute(node):
        return
    source, wanted = node.args[0], list(node.meta["val"].shape)
    have = list(source.meta["val"].shape)
    have = [1] * (len(wanted) - len(have)) + have
    with made.graph.inserting_before(node):
        last = source
        if len(have) != source.meta["val"].dim():
            last = made.graph.call_function(_ATEN.view.default, (last, have))
        for axis, (size, count) in enumerate(zip(have, wanted, strict=True)):
            if size == count:
                continue
            if count // size <= _COPIES:
                last = made.graph.call_function(_ATEN.cat.default, ([last] * (count // size), axis))
            else:
                places = constant(made, torch.arange(size).repeat(count // size))
                last = made.graph.call_function(_ATEN.index_select.default, (last, axis, places))
    if last is not source:
        node.replace_all_uses_with(last)


def _reaches_permute(node: Node) -> bool:
    """Whether a permutation follows, with nothing but views between."""
    ahead = list(node.users)
    while ahead:
        user = ahead.pop()
        if user.target in _PERMUTES:
            return True
        if user.target in _VIEWS:
            ahead.extend(user.users)
    return False


def transposed_convolution(made: GraphModule, node: Node) -> None:
    """A transposed convolution whose pads LiteRT has no operator for is computed whole, and cut.

    TRANSPOSE_CONV knows no pads, and those that make the output a multiple of the input; litert-torch 0.10 fails on all
    others, such as kernel 3, stride 2, pad 1.
    """
    if node.target is not _ATEN.convolution.default or not node.args[6]:
        return
    value, weight, bias, strides, pads, dilations, _, extra, groups = node.args
    if len(strides) == _VOLUME:
        return
    sizes, target = value.meta["val"].shape[2:], node.meta["val"].shape[2:]
    whole = [have - more + 2 * pad for have, more, pad in zip(target, extra, pads, strict=True)]
    multiple = all(
        (pad, more) == (0, 0) or stride == 1 or (more == 0 and have == size * stride)
        for pad, more, stride, have, size in zip(pads, extra, strides, target, sizes, strict=True)
    )
    if multiple:
        return
    # Past its end the whole has what no kernel reaches, the bias alone.
    short = [max(0, pad + have - full) for pad, have, full in zip(pads, target, whole, strict=True)]
    rank, graph = len(sizes), made.graph
    with graph.inserting_before(node):
        inner = None if any(short) else bias
        last = graph.call_function(
            _ATEN.convolution.default,
            (value, weight, inner, strides, [0] * rank, dilations, True, [0] * rank, groups),
        )
        if any(short):
            amounts = [amount for more in reversed(short) for amount in (0, more)]
            last = graph.call_function(_ATEN.constant_pad_nd.default, (last, amounts, 0.0))
        for axis, (pad, have) in enumerate(zip(pads, target, strict=True)):
            last = graph.call_function(_ATEN.slice.Tensor, (last, 2 + axis, pad, pad + have))
        if any(short) and bias is not None:
            row = graph.call_function(_ATEN.view.default, (bias, [1, -1, *[1] * rank]))
            last = graph.call_function(_ATEN.add.Tensor, (last, row))
    node.replace_all_uses_with(last)


def transposed_volume(made: GraphModule, node: Node) -> None:
    """A transposed 3-D convolution as a plain one: the input with zeros between its entries, the kernel turned round.

    LiteRT's interpreter has none ("Didn't find op for builtin opcode 'STABLEHLO_CONVOLUTION'", litert-torch 0.10).
    """
    if node.target is not _ATEN.convolution.default or not node.args[6] or len(node.args[3]) != _VOLUME:
        return
    value, weight, bias, strides, pads, dilations, _, _, groups = node.args
    known = value_of(made, weight)
    if known is None:
        return
    graph = made.graph
    count, *sizes = value.meta["val"].shape[1:]
    target = node.meta["val"].shape[2:]
    with graph.inserting_before(node):
        last = value
        around: list[int] = []
        for axis, (stride, pad, dilation) in enumerate(zip(strides, pads, dilations, strict=True)):
            last = _spread(graph, last, (value.meta["val"].shape[0] * count, *sizes), axis, stride)
            sizes[axis] *= stride
            reach = (known.shape[2 + axis] - 1) * dilation
            before = reach - pad
            # As many behind as it takes; fewer than none where the last entry's own zeros are too many.
            around = [before, target[axis] - (before + sizes[axis] - reach), *around]
        last = graph.call_function(_ATEN.view.default, (last, [-1, count, *sizes]))
        last = graph.call_function(
            _ATEN.constant_pad_nd.default, (last, [max(0, pad) for pad in around], 0.0)
        )
        for axis in range(_VOLUME):
            before, behind = around[-2 - 2 * axis], around[-1 - 2 * axis]
            if min(before, behind) < 0:
                whole = sizes[axis] + max(0, before) + max(0, behind)
                cut = (last, 2 + axis, max(0, -before), whole - max(0, -behind))
                last = graph.call_function(_ATEN.slice.Tensor, cut)
        turned = known.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip(2, 3, 4)
        kernel = constant(made, turned.contiguous())
        plain = (last, kernel, bias, [1] * _VOLUME, [0] * _VOLUME, dilations, False, [0] * _VOLUME, groups)
        node.replace_all_uses_with(graph.call_function(_ATEN.convolution.default, plain))


def _spread(graph: Graph, value: Node, shape: Sequence[int], axis: int, stride: int) -> Node:
    """`stride - 1` zeros behind each entry along one of the axes that follow the first; tensors of four axes at most."""
    if stride == 1:
        return value
    before, behind = math.prod(shape[: axis + 1]), math.prod(shape[axis + 2 :])
    split = graph.call_function(_ATEN.view.default, (value, [before, shape[axis + 1], 1, behind]))
    return graph.call_function(_ATEN.constant_pad_nd.default, (split, [0, 0, 0, stride - 1], 0.0))


def largest(made: GraphModule, node: Node) -> None:
    """The largest entries of rows by LiteRT's own operator.

    litert-torch 0.10 knows a `topk` again by both of its results: where the places are not read it leaves a sort, which
    LiteRT's interpreter does not have.
    """
    if node.target is not _ATEN.topk.default:
        return
    value, count, *more = node.args
    axis, is_largest = more[0] if more else -1, more[1] if len(more) > 1 else True
    rank = value.meta["val"].dim()
    if not is_largest or axis % rank != rank - 1:
        return
    # Enters the operator.
    import litert_torch.backend.experimental.torch_tfl  # noqa: F401

    graph = made.graph
    with graph.inserting_before(node):
        both = graph.call_function(torch.ops.tfl.topk_v2.default, (value, count))
        values, narrow = (graph.call_function(operator.getitem, (both, index)) for index in (0, 1))
        places = graph.call_function(_TO, (narrow,), {"dtype": torch.int64})
    for user in list(node.users):
        user.replace_all_uses_with((values, places)[user.args[1]])


def unit_clamp(made: GraphModule, node: Node) -> None:
    """A clamp to 0..1 (a hard sigmoid) by ReLU6, which LiteRT fuses into what comes before.

    RELU_0_TO_1 has no int8 kernel, and Vela leaves it on the CPU.
    """
    if node.target is not _ATEN.clamp.default or tuple(node.args[1:]) not in ((0, 1), (0.0, 1.0)):
        return
    if not node.meta["val"].is_floating_point():
        return
    graph = made.graph
    with graph.inserting_before(node):
        wide = graph.call_function(_ATEN.mul.Scalar, (node.args[0], 6.0))
        cut = graph.call_function(_ATEN.hardtanh.default, (wide, 0.0, 6.0))
        node.replace_all_uses_with(graph.call_function(_ATEN.mul.Scalar, (cut, 1 / 6)))


# In the order in which they are tried; the rules for pooling stand in `litert.pools`.
RULES: tuple[Callable[[GraphModule, Node], None], ...] = (
    generated,
    dead_rows,
    infinities,
    copies,
    transposed_volume,
    transposed_convolution,
    largest,
    unit_clamp,
)
