"""Names of classes and alphabets that an ONNX file carries: in its metadata, or in a classifier of ai.onnx.ml.

Ultralytics writes `names` as a Python dictionary, PaddleOCR's recognisers `character` as lines, others JSON lists or words
between commas.

Always true
 1. Text is parsed as data, never evaluated; what cannot be read gives no names.
 2. Names are kept only where some axis of some output has as many entries, or where the class stands in a column: what
    comes after a suppression.
"""

import ast
import json
from collections.abc import Mapping, Sequence

import onnx

from edgekit.manifest import TensorSpec

_KEYS = (
    "names", "class_names", "classes", "labels", "id2label", "character", "characters", "alphabet", "dict_character",
)  # fmt: skip
_ALPHABETS = frozenset({"character", "characters", "alphabet", "dict_character"})
# A recogniser of Chinese knows under twenty thousand characters.
MOST = 100_000
LONGEST = 200
# Longer text is no list of names.
MOST_TEXT = 4_000_000


def of_model(model: onnx.ModelProto, outputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """The names of the entries of an output's last axis, or of the classes inside of one; empty if there are none."""
    told = {entry.key.lower(): entry.value for entry in model.metadata_props}
    for key in _KEYS:
        names = _read(told.get(key, ""))
        found = _fitting(names, outputs, is_alphabet=key in _ALPHABETS)
        if not found and key not in _ALPHABETS and _has_class_column(model, outputs) and _are_names(names):
            found = tuple(names)
        if found:
            return found
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.domain == "ai.onnx.ml" and attribute.name in ("classlabels_strings", "cats_strings"):
                words = [entry.decode("utf-8", "replace") for entry in attribute.strings]
                if found := _fitting(words, outputs, is_alphabet=False):
                    return found
    return ()


def _read(text: str) -> list[str]:
    """A list of names from JSON, a Python literal, lines, or words between commas."""
    if not text or len(text) > MOST_TEXT:
        return []
    value: object = None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
            break
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    if isinstance(value, Mapping):
        return _numbered(value)
    if isinstance(value, list | tuple):
        return [str(entry) for entry in value]
    lines = text.split("\n")
    if len(lines) > 1:
        return [line.rstrip("\r") for line in (lines[:-1] if not lines[-1] else lines)]
    return [word.strip() for word in text.split(",")] if "," in text else []


def _numbered(value: Mapping[object, object]) -> list[str]:
    """The names of a dictionary from class to name; empty where a class has none."""
    try:
        by_class = {int(str(key)): str(name) for key, name in value.items()}
    except ValueError:
        return []
    if sorted(by_class) != list(range(len(by_class))):
        return []
    return [by_class[index] for index in range(len(by_class))]


def _has_class_column(model: onnx.ModelProto, outputs: Sequence[TensorSpec]) -> bool:
    """Whether classes stand as numbers in detections: rows of x1, y1, x2, y2, score, class, or a suppression inside."""
    are_rows = any(len(spec.shape) > 1 and spec.shape[-1] == 6 and spec.shape[-2] != 1 for spec in outputs)
    return are_rows or any(node.op_type == "NonMaxSuppression" for node in model.graph.node)


def _are_names(names: Sequence[str]) -> bool:
    return 1 < len(names) <= MOST and all(len(name) <= LONGEST for name in names)


def _fitting(names: Sequence[str], outputs: Sequence[TensorSpec], *, is_alphabet: bool) -> tuple[str, ...]:
    """The names as some output has them: detectors put four numbers of a box, and perhaps a score, before the classes; a
    recogniser that is trained with CTC has its blank first, PaddleOCR's a space last as well.
    """
    if not _are_names(names):
        return ()
    sizes = {dim for spec in outputs for dim in spec.shape[-2:] if dim}
    forms: list[tuple[str, ...]] = [tuple(names)]
    if is_alphabet:
        forms += [("", *names), ("", *names, " ")]
    for form in forms:
        if len(form) in sizes:
            return form
    boxed = sizes & {len(names) + 4, len(names) + 5}
    return tuple(names) if boxed and not is_alphabet else ()
