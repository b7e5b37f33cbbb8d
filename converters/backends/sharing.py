"""What the models of several buckets have in common, stored once.

The weights of a model are the same at every size; apart, they would make a bundle as many times as large as it has buckets.
ONNX and OpenVINO can keep them in a file of their own. LiteRT cannot: its models hold them.

Always true
 1. A model computes the same before and after: only where its bytes lie changes.
 2. The same models give the same files.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx
from onnx.external_data_helper import set_external_data

from edgekit.buckets import SHARED_WEIGHTS

# Smaller ones stay with their model: shapes, axes, scales.
LEAST_BYTES = 1024
ALIGNMENT = 64
# A constant of OpenVINO's IR: where in the .bin its bytes stand.
_CONSTANT = re.compile(r'(<data element_type="[^"]*" shape="[^"]*" offset=")(\d+)(" size=")(\d+)(")')


class Store:
    """Bytes one after the other, each content once."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._places: dict[bytes, int] = {}

    def place(self, content: bytes) -> int:
        """The offset of these bytes."""
        if content not in self._places:
            self._data.extend(b"\0" * (-len(self._data) % ALIGNMENT))
            self._places[content] = len(self._data)
            self._data.extend(content)
        return self._places[content]

    def write(self, path: Path) -> None:
        if self._data:
            path.write_bytes(self._data)


def share(folder: Path, models: Sequence[str]) -> None:
    """Move what the models have in common into one file beside them."""
    move = _MOVERS.get(Path(models[0]).suffix)
    if move is None:
        return
    store = Store()
    for model in models:
        move(folder / model, store)
    store.write(folder / SHARED_WEIGHTS)


def _onnx(path: Path, store: Store) -> None:
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) < LEAST_BYTES:
            continue
        content = tensor.raw_data
        set_external_data(tensor, SHARED_WEIGHTS, store.place(content), len(content))
        tensor.ClearField("raw_data")
    path.write_bytes(model.SerializeToString(deterministic=True))


def _ir(path: Path, store: Store) -> None:
    own = path.with_suffix(".bin")
    content = own.read_bytes()

    def moved(found: re.Match[str]) -> str:
        before, offset, between, size, after = found.groups()
        part = content[int(offset) : int(offset) + int(size)]
        return f"{before}{store.place(part)}{between}{size}{after}"

    path.write_text(_CONSTANT.sub(moved, path.read_text(encoding="utf-8")), encoding="utf-8")
    own.unlink()


_MOVERS: Mapping[str, Callable[[Path, Store], None]] = {".onnx": _onnx, ".xml": _ir}
