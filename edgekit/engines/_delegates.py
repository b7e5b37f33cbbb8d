"""External delegates of LiteRT: a library that takes operators of a model to an accelerator.

Always true
 1. A bundle names a library, never a path: it is looked up in folders that the machine's owner fills.
 2. A delegate that takes nothing, or fewer operators than the manifest says it should, is an error. Without that the rest
    would run on the CPU, correct and slow, and nobody would know.

Source of the interface: tflite/delegates/external/external_delegate_interface.h of LiteRT.
"""

import ctypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.errors import EngineError, EngineMissingError
from edgekit.manifest import DELEGATE, Option

FOLDERS_VARIABLE = "EDGEKIT_DELEGATES"
FOLDERS = ("/usr/lib/edgekit/delegates", "/usr/local/lib/edgekit/delegates")
# In a manifest's engine options: how many operators it must take, and what begins the delegate's own options.
EXPECTED = "delegate_operators"
PREFIX = "delegate."
# What LiteRT calls a node that stands for a part of the graph that a delegate took.
_TAKEN = "DELEGATE"
_ENTRY = "tflite_plugin_create_delegate"


def is_external(delegate: str) -> bool:
    return DELEGATE.fullmatch(delegate) is not None


def find(name: str) -> Path:
    """The library called `name`, in the first folder that has it. Raises: EngineError, EngineMissingError."""
    if not is_external(name):
        raise EngineError(
            f"{name!r} is no name of a delegate's library; one looks like libNAME.so, without folders"
        )
    folders = [Path(folder) for folder in _folders() if folder.startswith("/")]
    for folder in folders:
        path = folder / name
        if path.is_file():
            if path.stat().st_mode & 0o022:
                raise EngineError(f"{path} can be written by others; chmod go-w it")
            return path
    looked = ", ".join(map(str, folders)) or "no folder"
    raise EngineMissingError(
        f"the delegate {name} is not on this machine (looked in {looked}); link the maker's library into one of these,"
        f" or name its folder in {FOLDERS_VARIABLE}"
    )


def _folders() -> Sequence[str]:
    given = os.environ.get(FOLDERS_VARIABLE)
    return given.split(":") if given else FOLDERS


def load(library: Any, options: Mapping[str, Option]) -> Any:
    """The delegate that `options` name, by the interpreter module's own `load_delegate`. Raises: EngineError."""
    name = str(options["delegate"])
    path = find(name)
    _look_at(path)
    own = {key.removeprefix(PREFIX): value for key, value in options.items() if key.startswith(PREFIX)}
    try:
        return library(str(path), own)
    except (OSError, ValueError, RuntimeError, AttributeError) as error:
        raise EngineError(f"the delegate {name} cannot be loaded: {_line(error)}") from error


def _look_at(path: Path) -> None:
    """Raises: EngineError for what is no delegate. LiteRT's own class for them (2.3) fails a second time on such."""
    try:
        is_one = hasattr(ctypes.CDLL(str(path)), _ENTRY)
    except OSError as error:
        raise EngineError(f"the delegate {path.name} cannot be loaded: {_line(error)}") from error
    if not is_one:
        raise EngineError(f"{path} is no external delegate of LiteRT: it has no {_ENTRY}")


def check(interpreter: Any, name: str, expected: int | None) -> None:
    """Whether the delegate took what it should. Call it before the tensors are allocated, when LiteRT's own delegates have
    taken nothing yet. Raises: EngineError with what is left.
    """
    took, left = taken(interpreter._get_ops_details())  # noqa: SLF001  # there is no public way to see the nodes
    wanted = max(1, expected or 1)
    if took >= wanted:
        return
    told = f"none of the {took + len(left)}" if not took else f"{took} of the {took + len(left)}"
    rest = ", ".join(sorted(set(left)))
    should = "" if expected is None else f", where it should take {expected}"
    raise EngineError(
        f"the delegate {name} took {told} operators{should}; left to the CPU: {rest}. Its version or driver is not the"
        " one that the bundle was built for"
    )


def taken(nodes: Sequence[Mapping[str, Any]]) -> tuple[int, list[str]]:
    """How many of a graph's operators stand behind delegates' nodes, and the names of the others.

    A node that a delegate made lists what enters and leaves its part; the operators between are those that it replaced.
    """
    maker = {
        int(tensor): index
        for index, node in enumerate(nodes)
        if node["op_name"] != _TAKEN
        for tensor in node["outputs"]
    }
    replaced: set[int] = set()
    for node in nodes:
        if node["op_name"] != _TAKEN:
            continue
        entering = {int(tensor) for tensor in node["inputs"]}
        waiting = [int(tensor) for tensor in node["outputs"]]
        while waiting:
            index = maker.get(waiting.pop())
            if index is None or index in replaced:
                continue
            replaced.add(index)
            waiting += [
                int(tensor)
                for tensor in nodes[index]["inputs"]
                if int(tensor) >= 0 and int(tensor) not in entering
            ]
    left = [
        str(node["op_name"])
        for index, node in enumerate(nodes)
        if node["op_name"] != _TAKEN and index not in replaced
    ]
    return len(replaced), left


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
