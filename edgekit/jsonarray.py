"""Nested JSON lists of numbers as arrays, without a Python object for each number at once.

A text of four million numbers would be 130 MB of objects, made while no other thread of the process runs. Here the
brackets give the shape, and the numbers between the commas are read a piece at a time.

Always true
 1. What is read is what `json` and numpy would make of the text; what they refuse is refused.
 2. Memory is a few times the text's own size, and other threads run between two pieces.

Pure.
"""

import math

import msgspec
import numpy as np

from edgekit.errors import InputError
from edgekit.tensors import Array

# numpy's own limit.
MAX_DIMENSIONS = 64
_PIECE_BYTES = 64 * 1024
_KEPT = b"[],"
# Everything that is part of a value becomes a v.
_AS_MARKS = bytes(byte if byte in _KEPT else ord("v") for byte in range(256))
_AS_SPACE = bytes.maketrans(b"[]", b"  ")


def read(text: bytes, name: str) -> Array:
    """The array of a JSON value that is a number, a truth value, or nested lists of them; null gives an array of objects.

    Raises: InputError for anything else, and for lists that are not rectangular.
    """
    if b'"' in text or b"{" in text:
        raise InputError(f"input {name!r}: data is not made of numbers alone", "wrong-dtype")
    marks = text.translate(_AS_MARKS, b" \t\r\n")
    if b"v[" in marks or b"]v" in marks:
        raise InputError(f"input {name!r}: not JSON")
    shape = _shape(marks.translate(None, b"v"), name)
    flat = text.translate(_AS_SPACE)
    if not flat.strip(b" \t\r\n,"):
        if b"[" not in text or math.prod(shape[:-1]) - 1 != flat.count(b","):
            raise InputError(f"input {name!r}: not JSON")
        return np.zeros((*shape[:-1], 0))
    values = _joined([_piece(piece, name) for piece in _pieces(flat)])
    if values.size != math.prod(shape):
        raise InputError(f"input {name!r}: not JSON")
    return values.reshape(shape)


def _shape(brackets: bytes, name: str) -> tuple[int, ...]:
    """The shape that nested lists have, by their brackets and commas alone; an empty last axis looks like one of 1."""
    depth = len(brackets) - len(brackets.lstrip(b"["))
    if depth > MAX_DIMENSIONS:
        raise InputError(f"input {name!r}: lists nested deeper than {MAX_DIMENSIONS}", "wrong-shape")
    sizes: list[int] = []
    values = 1
    for level in range(1, depth + 1):
        # The first run of so many closing brackets ends the first block of that level.
        end = brackets.find(b"]" * level)
        until = brackets.count(b",", 0, max(end, 0)) + 1
        sizes.append(until // values)
        values = until
    shape = tuple(reversed(sizes))
    if brackets != _brackets(shape):
        raise InputError(f"input {name!r}: data is no rectangular list of numbers", "wrong-shape")
    return shape


def _brackets(shape: tuple[int, ...]) -> bytes:
    """How nested lists of that shape look without their values."""
    block = b""
    for size in reversed(shape):
        block = b"[" + b",".join([block] * size) + b"]"
    return block


def _pieces(flat: bytes) -> list[bytes]:
    pieces, start = [], 0
    while (cut := flat.find(b",", start + _PIECE_BYTES)) >= 0:
        pieces.append(flat[start:cut])
        start = cut + 1
    return [*pieces, flat[start:]]


def _piece(piece: bytes, name: str) -> Array:
    try:
        listed = msgspec.json.decode(b"[" + piece + b"]")
        array = np.asarray(listed)
        if array.dtype.kind == "f" and not any(mark in piece for mark in b".eE"):
            # Integers on both sides of 2**63 together, of which numpy makes floats that cannot tell all of them.
            return np.array(listed, np.uint64) if listed and min(listed) >= 0 else array
        return array
    except (msgspec.DecodeError, RecursionError, OverflowError) as error:
        raise InputError(f"input {name!r}: not JSON numbers ({error})") from error


def _joined(pieces: list[Array]) -> Array:
    if len(pieces) == 1:
        return pieces[0]
    kinds = {piece.dtype.kind for piece in pieces}
    if kinds <= {"u", "i", "b"} and "u" in kinds and all(int(piece.min()) >= 0 for piece in pieces):
        # numpy joins uint64 and int64 as float64, which cannot tell all of them.
        return np.concatenate([piece.astype(np.uint64) for piece in pieces])
    return np.concatenate(pieces)
