"""The table of ONNX operators as torch functions.

An entry is a function `f(call, *inputs)` for an operator from an opset version on; where the semantics changed, the
same operator has several entries. `call` carries attributes and what is known of the inputs at load time.

Always true
 1. What an operator needs as a number (a shape, axes, pads) comes from `Call.constant`, so that it is fixed when the
    graph is traced; the entry names these inputs in `fixed`.
 2. An attribute that a function does not implement raises `UnsupportedOperatorsError`, never a wrong result.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from edgekit.errors import ToolFailedError


class UnsupportedOperatorsError(ToolFailedError):
    """The importer lacks operators, or attributes of them, that a model uses; the message lists them."""

    code = "unsupported-operators"


@dataclass(frozen=True)
class Call:
    """One node as its function sees it.

    `constants` are the inputs known at load time, None for the others; `kinds` the types of the inputs in the model.
    When loading they have these types; at run time their carriers' (`carries`, see `types`).
    """

    op_type: str
    attributes: Mapping[str, Any]
    constants: tuple[NDArray[Any] | None, ...]
    outputs: int
    opset: int
    kinds: tuple[Any, ...] = ()
    carries: bool = False

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute; texts are `str`."""
        return self.attributes.get(name, default)

    def constant(self, index: int) -> NDArray[Any] | None:
        """Input `index` as an array; None where it is left out or computed from data."""
        if index >= len(self.constants):
            return None
        return self.constants[index]

    def kind(self, index: int) -> Any:
        """The type of input `index` in the model; None where it is left out."""
        return self.kinds[index] if index < len(self.kinds) else None

    def ints(self, index: int, attribute: str = "") -> list[int] | None:
        """Integers from an input, or from the attribute that held them in older opsets."""
        value = self.constant(index)
        if value is not None:
            return [int(entry) for entry in value.reshape(-1)]
        if attribute and attribute in self.attributes:
            return [int(entry) for entry in self.attributes[attribute]]
        return None

    def needed_ints(self, index: int, attribute: str = "") -> list[int]:
        """As `ints`. Raises: UnsupportedOperatorsError where they are computed from data."""
        values = self.ints(index, attribute)
        if values is None:
            raise self.unsupported(f"input {index} computed from data")
        return values

    def unsupported(self, what: str) -> UnsupportedOperatorsError:
        return UnsupportedOperatorsError(f"{self.op_type} with {what} is not supported by the importer")

    def require(self, name: str, *allowed: Any) -> None:
        """Raises: UnsupportedOperatorsError if an attribute is present with a value other than these."""
        value = self.attributes.get(name)
        if value is not None and value not in allowed:
            raise self.unsupported(f"{name} = {value!r}")


Function = Callable[..., Any]


@dataclass(frozen=True)
class Entry:
    """An operator from opset `since` on; `fixed` are the inputs that must be known at load time."""

    since: int
    function: Function
    fixed: tuple[int, ...]


_TABLE: dict[str, list[Entry]] = {}


def operator(*names: str, since: int = 1, fixed: Sequence[int] = ()) -> Callable[[Function], Function]:
    """Enter a function for these operators, from opset `since` on."""

    def enter(function: Function) -> Function:
        for name in names:
            _TABLE.setdefault(name, []).append(Entry(since, function, tuple(fixed)))
            _TABLE[name].sort(key=lambda entry: entry.since)
        return function

    return enter


def qualified(domain: str, name: str) -> str:
    """What the table calls an operator: those of ONNX itself by name, others behind their domain."""
    return name if domain in ("", "ai.onnx") else f"{domain}.{name}"


def lookup(name: str, opset: int) -> Entry | None:
    """The newest entry that the opset admits."""
    fitting = [entry for entry in _TABLE.get(name, []) if entry.since <= opset]
    return fitting[-1] if fitting else None


def known() -> Sequence[str]:
    """Names of all operators in the table."""
    return sorted(_TABLE)
