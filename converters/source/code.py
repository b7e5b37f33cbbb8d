"""The user's own Python: named before it runs, refused with `--no-code`.

Always true
 1. No user code runs before `CodeGate.admit` told its path.
 2. A user module gets the same name on every machine, so that names derived from it (tensor names, traces) do not
    change a bundle's bytes.
"""

import importlib.util
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from edgekit.errors import ProjectError, SourceError

# Code that is no user's: this package's, installed ones, Python's own.
_FOLDERS: tuple[str | Path, ...] = (
    Path(__file__).parents[1],
    Path(inspect.getfile(ProjectError)).parent,
    *(sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")),
)
_OTHERS = tuple(f"{Path(folder).resolve()}{os.sep}" for folder in _FOLDERS)


@dataclass
class CodeGate:
    """Says which user files are about to run; `allowed` False is `--no-code`."""

    allowed: bool
    tell: Callable[[str], None]
    _told: set[str] = field(default_factory=set)

    def admit(self, path: Path, what: str) -> None:
        """Raises: SourceError with `--no-code`."""
        if not self.allowed:
            raise SourceError(
                f"{path}: {what} is code that this build would run, which --no-code refuses;"
                " give an ONNX model, .npz data and a built-in metric"
            )
        if str(path) not in self._told:
            self._told.add(str(path))
            self.tell(f"runs your code: {path} ({what})")


def is_reference(text: str) -> bool:
    """Whether `text` is `file.py:name`."""
    file, colon, name = text.rpartition(":")
    return bool(colon) and file.endswith(".py") and name.isidentifier()


def split(text: str, folder: Path) -> tuple[Path, str]:
    file, _, name = text.rpartition(":")
    return (folder / file).resolve(), name


def load(text: str, folder: Path, what: str, gate: CodeGate) -> Any:
    """The callable called `name` in `file.py:name`.

    Raises: SourceError with `--no-code`; ProjectError if the file or the name is missing, or the file fails.
    """
    path, name = split(text, folder)
    if not path.is_file():
        raise ProjectError(f"{path}: there is no such file (for {what} {text!r})")
    gate.admit(path, what)
    module = _module(path)
    value = getattr(module, name, None)
    if not callable(value):
        raise ProjectError(f"{path}: has no function {name!r} (for {what})")
    return value


def _module(path: Path) -> ModuleType:
    name = f"edgekit_user_{path.stem}"
    loaded = sys.modules.get(name)
    if loaded is not None and loaded.__file__ == str(path):
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ProjectError(f"{path}: Python cannot load it")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # A user's file may import its neighbours, as it would when run as a script.
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(name, None)
        raise ProjectError(f"{path}: failed while it was loaded: {told(error)}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def told(error: BaseException) -> str:
    """What the user's code raised, with the last place of their own that it came from: `file, line 3: KeyError: 'x'`.

    Of a message of several lines (a stored torch program's), the last says what happened.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = f"{type(error).__name__}: {lines[-1][:500] if lines else 'no message'}"
    places = [
        f"{frame.filename}, line {frame.lineno}: "
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((*_OTHERS, "<"))
    ]
    return f"{places[-1] if places else ''}{message}"


def files_of(classes: set[type]) -> list[Path]:
    """Files that define these classes, outside installed packages: what a model's architecture depends on."""
    found: set[Path] = set()
    for cls in classes:
        try:
            file = inspect.getsourcefile(cls)
        except (TypeError, OSError):
            continue  # built in, or made at run time: its state is hashed all the same
        if file is not None and "site-packages" not in file:
            found.add(Path(file))
    return sorted(found)
