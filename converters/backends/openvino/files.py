"""What is in an IR beside its graph: weights that may lie elsewhere, shapes that only a run tells."""

import re
from pathlib import Path
from typing import Any

from converters.backends.sharing import Store
from edgekit.engines.openvino import read

# A constant of the .xml: where in the .bin its bytes stand.
_CONSTANT = re.compile(r'(<data element_type="[^"]*" shape="[^"]*" offset=")(\d+)(" size=")(\d+)(")')


def move_weights(path: Path, store: Store) -> None:
    """The whole .bin, into the shared file."""
    own = path.with_suffix(".bin")
    content = own.read_bytes()

    def moved(found: re.Match[str]) -> str:
        before, offset, between, size, after = found.groups()
        part = content[int(offset) : int(offset) + int(size)]
        return f"{before}{store.place(part)}{between}{size}{after}"

    path.write_text(_CONSTANT.sub(moved, path.read_text(encoding="utf-8")), encoding="utf-8")
    own.unlink()


def open_shapes(path: Path) -> tuple[str, ...]:
    """Operators with an output of open shape."""
    operators: list[Any] = read(path).get_ordered_ops()
    return tuple(
        operator.get_friendly_name()
        for operator in operators
        if any(output.get_partial_shape().is_dynamic for output in operator.outputs())
    )
