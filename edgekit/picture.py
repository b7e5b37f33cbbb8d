"""Explanations as a picture: heat laid over what was explained, side by side. Plain PNG bytes, written here.

Red speaks for the answer, blue against it; the strongest part of each picture is opaque.
"""

import base64
import struct
import zlib
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from edgekit.explain import Explanation
from edgekit.tensors import Array

Rgb = NDArray[np.uint8]
# Pixels of a picture's longer side, at least; of a strip's height; between two pictures.
_SIDE, _STRIP, _GAP = 320, 48, 12
_FOR, _AGAINST = np.array([208.0, 36.0, 36.0]), np.array([36.0, 92.0, 208.0])
_OPAQUE = 0.75


def drawn(array: Array, told: Explanation) -> Rgb:
    """(height, width, 3): the raw input in grey below its heat; a strip for what has one axis."""
    values = np.abs(np.asarray(array, np.float64))
    other = tuple(axis for axis in range(array.ndim) if axis not in told.layout.axes)
    grey = values.mean(axis=other) if other else values
    grey = grey.reshape(-1, grey.shape[-1] if grey.ndim else 1)
    span = float(grey.max() - grey.min())
    # Never black: heat must show on it.
    base = 80 + 175 * (grey - grey.min()) / span if span else np.full(grey.shape, 128.0)
    height, width = base.shape
    scale = max(1, round(_SIDE / max(height, width)))
    rows = scale if height > 1 else _STRIP
    shown = base.repeat(rows, 0).repeat(scale, 1)[..., None].repeat(3, 2)
    heat = told.array / (float(np.abs(told.array).max()) or 1.0)
    for index, part in enumerate(heat.ravel()):
        spans = told.layout.part(index)
        (top, bottom), (left, right) = ((0, 1), (0, 1), *spans)[-2:]
        window = shown[top * rows : bottom * rows, left * scale : right * scale]
        alpha = _OPAQUE * abs(float(part))
        window[:] = (1 - alpha) * window + alpha * (_FOR if part > 0 else _AGAINST)
    return shown.round().astype(np.uint8)


def beside(pictures: Sequence[Rgb]) -> Rgb:
    """Several in a row, on white."""
    height = max(len(each) for each in pictures)
    padded = [
        np.pad(each, ((0, height - len(each)), (0, _GAP), (0, 0)), constant_values=255) for each in pictures
    ]
    return np.concatenate(padded, axis=1)


def png(image: Rgb) -> bytes:
    """A PNG file of 8-bit RGB. Source: W3C, Portable Network Graphics, 3rd edition, sec. 5 and 11."""
    height, width, _ = image.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = np.hstack([np.zeros((height, 1), np.uint8), image.reshape(height, -1)])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9))
        + chunk(b"IEND", b"")
    )


def html(title: str, figures: Sequence[tuple[str, Rgb]], notes: Sequence[str]) -> str:
    """A page of its own: nothing is fetched, nothing runs."""
    shown = "".join(
        f"<figure><img alt='{escape(told, quote=True)}' src='data:image/png;base64,"
        f"{base64.b64encode(png(image)).decode()}'><figcaption>{escape(told)}</figcaption></figure>"
        for told, image in figures
    )
    lines = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>body{{font:16px system-ui;margin:2rem}}figure{{display:inline-block;margin:0"
        f" 1rem 1rem 0}}img{{image-rendering:pixelated;max-width:100%}}</style><h1>{escape(title)}</h1>{shown}{lines}</html>\n"
    )
