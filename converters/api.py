"""`edgekit.build`: a call from Python becomes a project, is built as the command builds it, and told as objects.

Always true
 1. Flags and arguments end in the same tables of a project file; what can be said in one can be said in the other.
 2. What was given in memory is gone from the disk when the call ends.
"""

import inspect
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

import numpy as np

from converters.commands import notebook, running, tables
from converters.commands.running import Watcher
from converters.commands.screen import Silent, watched
from converters.data import in_memory as samples_in_memory
from converters.keep.artifacts import default_root
from converters.outcome import Options, Outcome, sensible_jobs
from converters.sheet import Sheet
from converters.source import in_memory
from converters.source import project as projects
from converters.source.project import PROJECT_FILE, Project
from edgekit import interrupt
from edgekit.building import BuildResult, BuiltBundle, Wanted
from edgekit.errors import UsageError
from edgekit.tensors import Array

WHERE = "edgekit.build"
VERSION = "0.1.0"


def build(wanted: Wanted, *, must_meet: bool) -> BuildResult:
    """Raises: as `edgekit.build`."""
    given = {"jobs": sensible_jobs(), **wanted.options}
    given["cache"] = (given["cache"] or default_root()) if wanted.use_cache else None
    options = Options(**given)
    with interrupt.heeded(), tempfile.TemporaryDirectory(prefix="edgekit-given-") as name:
        project = _project(wanted, Path(name))
        with _watched(wanted) as watcher:
            outcome = running.run(project, options, watcher, measure=wanted.measure)
            interrupt.check()
    if must_meet:
        outcome.require_met()
    return _result(outcome)


@contextmanager
def _watched(wanted: Wanted) -> Iterator[Watcher]:
    if not wanted.progress:
        yield Silent()
        return
    with notebook.watched() if notebook.is_one() else watched() as watcher:
        yield watcher


def _project(wanted: Wanted, folder: Path) -> Project:
    """What the arguments stand for; what is given in memory lies in `folder`. Raises: UsageError, ProjectError."""
    shapes, examples = _inputs(wanted.inputs)
    over = {
        key: _said(table) if isinstance(table, Mapping) else table for key, table in wanted.tables.items()
    }
    over |= {"inputs": shapes, "targets": _targets(wanted.targets)}
    over["data"] = {key: _text(key, value) for key, value in over["data"].items()}
    path = None if in_memory.is_model(wanted.model) else _path(wanted.model)
    names = list(shapes)
    if path is None:
        written = in_memory.write(wanted.model, shapes, examples, folder)
        over["model"] = {"name": in_memory.name_of(wanted.model), "version": VERSION, **over["model"]}
        over["model"]["source"] = written.name
        names = names or _names(written)
    elif _is_project(path):
        project_file = Path(path)
    else:
        stem = Path(path.rpartition(":")[0] or path).stem
        over["model"] = {"name": in_memory.named_as(stem), "version": VERSION, **over["model"]}
        over["model"]["source"] = projects.here(path)
        names = names or _names(Path(path))
    for key, value in (("calibration", wanted.calibration), ("evaluation", wanted.evaluation)):
        if value is not None:
            over["data"][key] = _data(key, value, names, folder)
    if wanted.slices is not None:
        over["data"]["slices"] = _slices(wanted.slices, folder)
    over = {key: value for key, value in over.items() if value or key in ("model", "targets")}
    if path is not None and _is_project(path):
        # A file's own folder is where its paths start; what lies in another is named in full.
        over["data"] = {
            key: str(folder / value) if (folder / str(value)).exists() else value
            for key, value in over.get("data", {}).items()
        }
        return projects.load(project_file, over)
    return projects.from_tables(over, folder, WHERE)


def _said(table: Mapping[str, Any]) -> dict[str, Any]:
    """What was given of it."""
    return {key: value for key, value in table.items() if value is not None}


def _path(model: Any) -> str:
    """Raises: UsageError for what is neither a model nor a path."""
    if isinstance(model, str | PathLike):
        return fspath(model)
    raise UsageError(
        f"a {type(model).__name__} is no model; give a torch.nn.Module, an exported program, an onnx.ModelProto, or a path"
    )


def _is_project(path: str) -> bool:
    return path.endswith(".toml") or (Path(path).is_dir() and (Path(path) / PROJECT_FILE).is_file())


def _inputs(given: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Array]]:
    """Tables of a project file, and the arrays among what was given. Raises: UsageError, ProjectError."""
    shapes: dict[str, dict[str, Any]] = {}
    examples: dict[str, Array] = {}
    for name, value in given.items():
        if isinstance(value, Mapping):
            shapes[name] = dict(value)
        elif hasattr(value, "shape"):
            array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
            examples[name] = array
            shapes[name] = {"shape": list(array.shape), "dtype": str(array.dtype)}
        elif isinstance(value, list | tuple):
            shapes[name] = {"shape": [list(dim) if isinstance(dim, list | tuple) else dim for dim in value]}
        else:
            raise UsageError(
                f"inputs[{name!r}]: a {type(value).__name__} is no shape; give (1, 3, 224, 224), a table with shape and dtype,"
                " or an example array"
            )
    projects.check_inputs(shapes, WHERE)
    return shapes, examples


def _targets(given: Any) -> dict[str, dict[str, float]]:
    """Raises: UsageError for what names no profiles."""
    limits = given if isinstance(given, Mapping) else {}
    names = [given] if isinstance(given, str | PathLike) else given
    if (
        not isinstance(names, Iterable)
        or not all(isinstance(name, str | PathLike) for name in names)
        or not all(isinstance(table, Mapping | None) for table in limits.values())
    ):
        raise UsageError(
            f"targets = {given!r}: give names of profiles or .toml files, or a mapping of each to its limits,"
            " {'raspberry-pi-5': {'latency_p95_ms': 20}}"
        )
    return {projects.here(fspath(name)): _said(limits.get(name) or {}) for name in names}


def _names(model: Path) -> list[str]:
    """The inputs that a file names itself, where that can be told without running it."""
    if model.suffix.lower() == ".onnx" and model.is_file():
        from converters.source import onnx_source

        return [spec.name for spec in onnx_source.input_specs(onnx_source.read(model, is_apart=True))]
    return []


def _data(what: str, value: Any, names: list[str], folder: Path) -> str:
    """A text as a project file has it."""
    if isinstance(value, str | PathLike):
        return projects.here(fspath(value))
    return samples_in_memory.write(what, value() if callable(value) else value, names, folder / what).name


def _slices(value: Any, folder: Path) -> str:
    if isinstance(value, str | PathLike):
        return projects.here(fspath(value))
    return samples_in_memory.write_slices(value, folder / "slices.npz").name


def _text(key: str, value: Any) -> Any:
    """A value of the data table; a function is named by the file that it stands in."""
    if callable(value):
        return _reference(value)
    if isinstance(value, PathLike) or (isinstance(value, str) and key != "shifted"):
        return projects.here(fspath(value))
    return value


def _reference(function: Callable[..., Any]) -> str:
    """`file.py:name`. Raises: UsageError for a function that worker processes could not find."""
    name, file = getattr(function, "__qualname__", ""), inspect.getsourcefile(inspect.unwrap(function))
    is_findable = name.isidentifier() and getattr(function, "__module__", "") != "__main__"
    if file is None or not is_findable or not Path(file).is_file():
        raise UsageError(
            f"the function {name or function!r} is not at the top of a file that can be imported; other processes of the"
            " build load it too, so put it into a .py file of its own and import it from there"
        )
    return f"{Path(file).resolve()}:{name}"


def _result(outcome: Outcome) -> BuildResult:
    document = outcome.document
    sheets = {sheet.profile: sheet for sheet in outcome.sheets}
    bundles = tuple(
        BuiltBundle(
            profile=row["profile"],
            path=Path(row["path"]),
            digest=row["digest"],
            recipe=row["recipe"],
            is_alternate=row["alternate"],
            size_bytes=row["size_bytes"],
            figures=next(item for item in sheets[row["profile"]].candidates if item.recipe == row["recipe"]),
        )
        for row in document["bundles"]
    )

    def draw(how: Literal["html", "text"]) -> str:
        return notebook.html(outcome.sheets) if how == "html" else _drawn(outcome.sheets)

    return BuildResult(
        name=document["name"],
        version=document["version"],
        bundles=bundles,
        candidates={name: tuple(sheet.ranked) for name, sheet in sheets.items()},
        missed=outcome.missed,
        report=outcome.report,
        document=document,
        _draw=draw,
    )


def _drawn(sheets: tuple[Sheet, ...]) -> str:
    return "\n".join(tables.text(sheet) for sheet in sheets)
