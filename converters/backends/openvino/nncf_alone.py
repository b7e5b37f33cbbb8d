"""NNCF without torch.

Always true
 1. Where nobody has loaded torch, NNCF does not either; where somebody has, NNCF is as it always is.

NNCF 3.4 loads torch when it is loaded, to take torch's tensors, and whenever it is given a model, to ask whether that is one
of torch's: 2 s and 200 MB in each worker. A model can only be of a library that is loaded.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

# What NNCF asks of a model and loads torch for.
_ASKED = ("is_torch_model", "is_torch_fx_model")


@cache
def nncf_loaded() -> Any:
    """The package."""
    with _hidden("torch"):
        import nncf
        from nncf.common.utils import backend
    for name in _ASKED:
        setattr(backend, name, partial(_if_loaded, "torch", getattr(backend, name)))
    return nncf


def _if_loaded(package: str, ask: Callable[[Any], bool], model: Any) -> bool:
    return package in sys.modules and ask(model)


@contextmanager
def _hidden(package: str) -> Iterator[None]:
    """As if the package were not installed, unless it is loaded already."""
    if package in sys.modules:
        yield
        return
    # What the import system takes for "not to be found" (the language reference, 5.3.1).
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
