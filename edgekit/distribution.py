"""What EdgeKit is called where packages are installed, and how to install more of it.

The distribution is `edgekit-toolkit`: on PyPI `edgekit` is somebody else's package. The import names and the command
stay `edgekit`. Every message that tells someone to install something takes its words from here.
"""

from collections.abc import Mapping
from importlib.util import find_spec

DISTRIBUTION = "edgekit-toolkit"
# Engine (as bundles name it) → the packages that provide it, and the extra that installs each. The first is the usual
# one; tflite-runtime is for boards that have nothing newer.
PROVIDERS: Mapping[str, Mapping[str, str]] = {
    "onnxruntime": {"onnxruntime": "onnxruntime"},
    "openvino": {"openvino": "openvino"},
    "litert": {"ai_edge_litert": "litert", "tflite_runtime": "tflite"},
}


def extra(*names: str) -> str:
    """The command that installs EdgeKit's extras `names` (the keys of pyproject.toml's optional dependencies)."""
    return f"pip install '{DISTRIBUTION}[{','.join(names)}]'"


def engine_extras(engine: str) -> str:
    """How to install what runs bundles of `engine`, of the kind that is here, if one is."""
    extras = PROVIDERS.get(engine)
    if extras is None:
        return f"install the distribution that brings {engine}"
    first, *others = [extras[module] for module in extras if find_spec(module)] or extras.values()
    return extra(first) + "".join(f" (or {other})" for other in others)


def engine_is_present(engine: str) -> bool:
    """Whether a package that can provide `engine` is installed; what another distribution brings, that is. Nothing is imported, so it may still be broken."""
    return (
        any(find_spec(module) is not None for module in PROVIDERS.get(engine, {})) or engine not in PROVIDERS
    )
