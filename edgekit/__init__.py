"""What the converters, the device agent and the fleet share, and the `edgekit` command.

As a library: `edgekit.build` makes bundles, `edgekit.load` runs one (docs/python.md).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edgekit.building import BuildResult, BuiltBundle, build
    from edgekit.errors import ContractMissedError, EdgeKitError
    from edgekit.loading import LoadedModel, load

__all__ = [
    "BuildResult",
    "BuiltBundle",
    "ContractMissedError",
    "EdgeKitError",
    "LoadedModel",
    "build",
    "load",
]

# Loaded on first use: the agent's supervisor imports this package, and has no numpy.
_HOMES = {
    "BuildResult": "edgekit.building",
    "BuiltBundle": "edgekit.building",
    "ContractMissedError": "edgekit.errors",
    "EdgeKitError": "edgekit.errors",
    "LoadedModel": "edgekit.loading",
    "build": "edgekit.building",
    "load": "edgekit.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgekit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
