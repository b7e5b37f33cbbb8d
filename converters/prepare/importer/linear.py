"""Products of matrices."""

import torch
from torch import Tensor
from torch.nn import functional

from converters.prepare.importer.registry import Call, operator


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
    return torch.linalg.det(value)
