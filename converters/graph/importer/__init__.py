"""ONNX → torch: the graph interpreted with a table of small torch functions, for converters that start from torch.

`load` gives a module, `traced` its flat ATen graph. To add an operator, write its function in the module of its kind
and enter it with `@operator(...)`; `tests/converters/test_importer.py` compares it with ONNX's own reference.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx

# Each module enters its operators in the table when it is imported.
from converters.graph.importer import (
    contributed,
    convolution,
    elementwise,
    indexing,
    linear,
    normalization,
    pooling,
    quantization,
    recurrent,
    reductions,
    resize,
    sampling,
    shapes,
    signal,
)
from converters.graph.importer.graph import OnnxModule, from_model, load
from converters.graph.importer.registry import UnsupportedOperatorsError, known

__all__ = [
    "OnnxModule",
    "UnsupportedOperatorsError",
    "contributed",
    "convolution",
    "elementwise",
    "from_model",
    "indexing",
    "known",
    "linear",
    "load",
    "normalization",
    "pooling",
    "quantization",
    "recurrent",
    "reductions",
    "resize",
    "sampling",
    "shapes",
    "signal",
    "traced",
]


def traced(module: OnnxModule, arguments: Sequence[Any]) -> Any:
    """The module's ATen graph, traced with real tensors: whatever is not data has become a constant."""
    with torch.no_grad():
        return make_fx(module, tracing_mode="real")(*arguments).eval()
