"""What the models of several buckets have in common, stored once.

The weights of a model are the same at every size; apart, they would make a bundle as many times as large as it has buckets.
ONNX and OpenVINO can keep them in a file of their own. LiteRT cannot: its models hold them.

Always true
 1. A model computes the same before and after: only where its bytes lie changes.
 2. The same models give the same files.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from edgekit.buckets import SHARED_WEIGHTS

# Smaller ones stay with their model: shapes, axes, scales.
LEAST_BYTES = 1024
ALIGNMENT = 64


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


def share(folder: Path, models: Sequence[str], move: Callable[[Path, Store], None]) -> None:
    """Move what the models have in common into one file beside them; `move` is the backend's `move_weights`."""
    store = Store()
    for model in models:
        move(folder / model, store)
    store.write(folder / SHARED_WEIGHTS)
