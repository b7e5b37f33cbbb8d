"""numpy's numbers in JSON: what a metric, the user's own too, gives may be one of them."""

from typing import Any


def plain(value: Any) -> Any:
    """A hook for msgspec and json: the Python number in a numpy scalar. Raises: NotImplementedError for anything else."""
    if getattr(value, "ndim", None) != 0:
        raise NotImplementedError(f"{type(value).__name__} cannot be written as JSON")
    return value.item()
