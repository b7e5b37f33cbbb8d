"""What the operations of both tables have in common: their arguments, and small questions about arrays."""

from typing import Annotated, ClassVar

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from edgekit.errors import InputError
from edgekit.tensors import Array

JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]
Floats = NDArray[np.float32]
Size = Annotated[int, Meta(ge=1)]


class Operation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of one step; `example` shows them in an error message."""

    example: ClassVar[str] = ""

    def problem(self) -> str:
        """What is wrong with the arguments taken together; empty if nothing."""
        return ""


def as_float32(value: Array) -> Floats:
    return value.astype(np.float32, copy=False)


def describe(value: Array) -> str:
    """Shape and type, for messages."""
    return f"{value.dtype} {'x'.join(map(str, value.shape)) or 'scalar'}"


def checked_axis(value: Array, axis: int, op: str) -> int:
    """`axis` counted from the front. Raises: InputError if the value has no such axis."""
    if not -value.ndim <= axis < value.ndim:
        raise InputError(f"{op} works on axis {axis}, which {describe(value)} does not have", "wrong-shape")
    return axis % value.ndim
