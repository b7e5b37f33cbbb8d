"""Which of ONNX's backend tests are out of scope, by category and with the reason.

Only what a bundle for an edge engine cannot hold, or what has no deterministic answer. Everything else is in scope,
supported or not.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import onnx
from node_cases import Case

_NARROW = {
    onnx.TensorProto.DataType.Value(name)
    for name in onnx.TensorProto.DataType.keys()  # noqa: SIM118  # an enum wrapper of protobuf, not a dict
    if name.startswith(("FLOAT8", "FLOAT4", "FLOAT6", "INT4", "UINT4", "INT2", "UINT2", "BFLOAT16"))
}
_RANDOM = {
    "Bernoulli", "RandomUniform", "RandomNormal", "RandomUniformLike", "RandomNormalLike", "Multinomial",
}  # fmt: skip
_TEXT = {"StringNormalizer", "StringConcat", "StringSplit", "RegexFullMatch", "TfIdfVectorizer"}
_OPEN = {"NonZero", "Unique", "NonMaxSuppression"}


@dataclass(frozen=True)
class Category:
    title: str
    reason: str
    holds: Callable[[Case], bool]


def category(case: Case) -> str | None:
    """The first category that holds a case; None where it is in scope."""
    return next((name for name, entry in CATEGORIES.items() if entry.holds(case)), None)


def _kinds(case: Case) -> set[str | None]:
    values = [*case.model.graph.input, *case.model.graph.output]
    return {value.type.WhichOneof("value") for value in values}


def _types(case: Case) -> set[int]:
    """Element types of inputs, outputs, constants, and what anything is cast to."""
    graph = case.model.graph
    found = {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    found |= {tensor.data_type for tensor in graph.initializer}
    for node in nodes(graph):
        for attribute in node.attribute:
            if attribute.name == "to":
                found.add(attribute.i)
            elif attribute.type == onnx.AttributeProto.TENSOR:
                found.add(attribute.t.data_type)
    return found


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes(attribute.g)


def _operators(case: Case) -> set[str]:
    return {case.operator, *(node.op_type for node in nodes(case.model.graph))}


def _domains(case: Case) -> set[str]:
    return {node.domain for node in nodes(case.model.graph)} | {case.operator.rpartition(".")[0]}


def _trains(case: Case) -> bool:
    """Batch normalization that updates its statistics, dropout that drops."""
    if case.operator == "BatchNormalization":
        node = case.model.graph.node[-1]
        return any(entry.name == "training_mode" and entry.i for entry in node.attribute)
    return case.name.startswith("test_training_dropout")


CATEGORIES: Mapping[str, Category] = {
    "sequence": Category(
        "Sequences", "an engine's inputs and outputs are tensors",
        lambda case: "sequence_type" in _kinds(case)
        or any("Sequence" in name and name != "ReverseSequence" for name in _operators(case)),
    ),
    "optional": Category(
        "Optional values", "an engine's inputs and outputs are tensors",
        lambda case: "optional_type" in _kinds(case) or any("Optional" in name for name in _operators(case)),
    ),
    "text": Category(
        "Texts", "a bundle's tensors are numbers and booleans; text is taken apart before the model",
        lambda case: onnx.TensorProto.STRING in _types(case) or bool(_operators(case) & _TEXT),
    ),
    "picture-files": Category(
        "Decoding of picture files", "done before the model, in the pipeline's pre-processing",
        lambda case: case.operator == "ImageDecoder",
    ),
    "training": Category(
        "Training", "a bundle infers",
        lambda case: any("training" in name for name in _domains(case))
        or case.operator == "Gradient" or "gradient" in case.name or _trains(case),
    ),
    "random": Category(
        "Random numbers", "no deterministic answer to compare with",
        lambda case: bool(_operators(case) & _RANDOM),
    ),
    "classical": Category(
        "ai.onnx.ml", "tables and trees, not networks; another operator set",
        lambda case: "ai.onnx.ml" in _domains(case),
    ),
    "preview": Category(
        "ai.onnx.preview", "may change with every release of onnx",
        lambda case: "ai.onnx.preview" in _domains(case),
    ),
    "narrow-types": Category(
        "Types of 8-bit float, bfloat16, 4 bits and less",
        "neither a bundle's manifest nor numpy, torch and LiteRT have all of them as tensor types",
        lambda case: bool(_types(case) & _NARROW),
    ),
    "open-size": Category(
        "Outputs whose size depends on data", "a bundle's shapes are fixed (constant inputs fold, and work)",
        lambda case: bool(_operators(case) & _OPEN),
    ),
}  # fmt: skip
