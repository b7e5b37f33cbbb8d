"""Products of matrices."""

import torch
from torch import Tensor
from torch.nn import functional

from converters.graph.importer.registry import Call, operator


@operator("Gemm")
def gemm(call: Call, left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    left = left.t() if call.get("transA", 0) else left
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    if call.get("transB", 0) and alpha == beta == 1.0 and (bias is None or bias.dim() == 1):
        return functional.linear(left, right, bias)
    product = torch.matmul(left, right.t() if call.get("transB", 0) else right)
    product = product if alpha == 1.0 else product * alpha
    return product if bias is None else product + (bias if beta == 1.0 else bias * beta)


@operator("MatMul")
def matmul(_call: Call, left: Tensor, right: Tensor) -> Tensor:
    return torch.matmul(left, right)


@operator("Einsum", since=12)
def einsum(call: Call, *values: Tensor) -> Tensor:
    return torch.einsum(call.get("equation").replace(" ", ""), *values)


@operator("Det", since=11)
def determinant(_call: Call, value: Tensor) -> Tensor:
    """Of matrices of up to four rows written out: litert-torch 0.10 has no determinant."""
    return _expanded(value) if value.shape[-1] <= 4 else torch.linalg.det(value)


def _expanded(value: Tensor) -> Tensor:
    """By the first row."""
    size = value.shape[-1]
    if size == 1:
        return value[..., 0, 0]
    total = torch.zeros_like(value[..., 0, 0])
    for column in range(size):
        rest = torch.cat([value[..., 1:, :column], value[..., 1:, column + 1 :]], -1)
        part = value[..., 0, column] * _expanded(rest)
        total = total - part if column % 2 else total + part
    return total
