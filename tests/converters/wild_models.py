"""A small TFLite file as one finds them: the operator codes of before 2020, weights in float16 and in integers, an activation
that stands alone, scales left on floats, a tensor without use, one name given twice and no signature.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import toy_tflite
from ai_edge_litert import schema_py_generated as schema
from sklearn.datasets import load_digits
from torch.nn import functional

from converters.backends import Prepared
from converters.recipes import recipes
from converters.source import tflite_source
from converters.source.project import from_flags
from edgekit import profile

CHANNELS = 8
Kind = schema.TensorType
Operator = schema.BuiltinOperator
# As old files have them, in the order of their first use.
CODES = (Operator.CONV_2D, Operator.RELU, Operator.FULLY_CONNECTED, Operator.DEQUANTIZE)


@cache
def samples() -> tuple[np.ndarray, np.ndarray]:
    """Digits (1797, 8, 8, 1) in 0..1, and which they are."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return (data.images[order] / 16).astype(np.float32)[..., None], data.target[order].astype(np.int64)


@cache
def weights() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A filter (8, 3, 3, 1) of random numbers in float16, and what tells digits by its results: (10, 512) in int8, a scale
    for each row.
    """
    images, labels = samples()
    filters = (0.5 * np.random.default_rng(1).normal(size=(CHANNELS, 3, 3, 1))).astype(np.float16)
    kernel = torch.from_numpy(filters.astype(np.float32)).permute(0, 3, 1, 2)
    seen = functional.relu(functional.conv2d(torch.from_numpy(images).permute(0, 3, 1, 2), kernel, padding=1))
    features = seen.permute(0, 2, 3, 1).reshape(len(images), -1).numpy()[:1200]
    steep = features.T @ features + 10 * np.eye(features.shape[1], dtype=np.float32)
    rows = np.linalg.solve(steep, features.T @ (2 * np.eye(10, dtype=np.float32)[labels[:1200]] - 1)).T
    scales = (np.abs(rows).max(axis=1) / 127).astype(np.float32)
    return filters, np.rint(rows / scales[:, None]).astype(np.int8), scales


class Wild(toy_tflite.Tables):
    """A model's tables, to be damaged further before they are written."""

    def __init__(self) -> None:
        super().__init__()
        self.model.operatorCodes = [self.code(code) for code in CODES]

    @staticmethod
    def code(code: int) -> Any:
        made = schema.OperatorCodeT()
        made.deprecatedBuiltinCode, made.version = code, 1
        return made

    def scaled(self, index: int, scales: np.ndarray, axis: int = 0) -> None:
        made = schema.QuantizationParametersT()
        made.scale, made.zeroPoint, made.quantizedDimension = scales, np.zeros(len(scales), np.int64), axis
        self.graph.tensors[index].quantization = made

    def step(self, code: int, inputs: list[int], output: int, options: Any = None) -> None:
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = CODES.index(code), inputs, [output]
        if options is not None:
            made.builtinOptions = options
            made.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.graph.operators.append(made)

    def written(self, path: Path) -> Path:
        path.write_bytes(self.packed())
        return path


def digits() -> Wild:
    """image (1, 8, 8, 1) → CONV_2D → RELU → FULLY_CONNECTED → scores (1, 10)."""
    made = Wild()
    filters, rows, scales = weights()
    image = made.tensor("image", (1, 8, 8, 1))
    half = made.tensor("half", filters.shape, filters, Kind.FLOAT16)
    wide = made.tensor("wide", filters.shape)
    small = made.tensor("small", rows.shape, rows, Kind.INT8)
    made.scaled(small, scales)
    large = made.tensor("large", rows.shape)
    bias = made.tensor("bias", (CHANNELS,), np.zeros(CHANNELS, np.float32))
    before = made.tensor("hidden", (1, 8, 8, CHANNELS))
    after = made.tensor("hidden", (1, 8, 8, CHANNELS))
    made.scaled(after, np.array([0.1], np.float32))
    made.tensor("left over", (1, 4))
    scores = made.tensor("scores", (1, 10))
    options = schema.Conv2DOptionsT()
    options.padding, options.strideH, options.strideW = schema.Padding.SAME, 1, 1
    made.step(Operator.DEQUANTIZE, [half], wide, schema.DequantizeOptionsT())
    made.step(Operator.DEQUANTIZE, [small], large, schema.DequantizeOptionsT())
    made.step(Operator.CONV_2D, [image, wide, bias], before, options)
    made.step(Operator.RELU, [before], after)
    made.step(Operator.FULLY_CONNECTED, [after, large, -1], scores, schema.FullyConnectedOptionsT())
    made.graph.inputs, made.graph.outputs = [image], [scores]
    return made


def written(path: Path, damage: Callable[[Wild], None] = lambda _: None) -> Path:
    made = digits()
    damage(made)
    return made.written(path)


def prepared(path, feeds):
    project = from_flags({
        "model": {"name": "m", "version": "1", "source": str(path)}, "targets": {"raspberry-pi-5": {}},
        "data": {"evaluation": "unused"},
    })  # fmt: skip
    return Prepared(tflite_source.open_file(project, path), None, lambda: iter(feeds))


def pictures(count):
    return [{"image": image[None]} for image in samples()[0][1200 : 1200 + count]]


def plans(target, source=None, patterns=(), precision="fp32"):
    stored = source and source.native.stored
    return recipes.as_is(
        profile.load(target), "litert", precision, "a TFLite file", patterns, suffix=".tflite", stored=stored
    )


def outputs_of_source(given, feed):
    return given.source.reference.run(feed)["scores"].copy()
