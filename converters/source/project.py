"""The project: what to build, from `edgekit.toml` or from the flags that stand for it.

Always true
 1. An unknown key or a wrong value is refused with the file and the key.
 2. Paths are resolved against the project file's folder, so that a build does not depend on where it is started.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from converters.source import code
from edgekit.errors import ProjectError, SourceError
from edgekit.guard_section import GuardAnswer
from edgekit.manifest import Buckets, Contract, Name, Step, Version
from edgekit.profile import Budgets, Positive

PROJECT_FILE = "edgekit.toml"
Dim = Annotated[int, Meta(ge=1)]
# What numpy has and some engine takes.
Dtype = Literal[
    "float32", "float16", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"
]  # fmt: skip


class ModelTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`source`: an ONNX file, TorchScript `.pt`, `.pt2`, or `file.py:factory`. `outputs` names a torch program's outputs.

    From `weights_apart_mb` megabytes on, an ONNX model's weights stay in files and no step of the build holds them all.
    """

    name: Name
    version: Version
    source: str
    outputs: tuple[str, ...] = ()
    weights_apart_mb: Annotated[int, Meta(ge=0, le=2000)] = 1000


class InputTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A list in the place of a dimension is a set of buckets."""

    shape: tuple[Dim | tuple[Dim, ...], ...]
    dtype: Dtype = "float32"

    @property
    def largest(self) -> tuple[int, ...]:
        """The shape, of its largest bucket where there are any."""
        return tuple(max(dim) if isinstance(dim, tuple) else dim for dim in self.shape)

    @property
    def stepped(self) -> dict[int, tuple[int, ...]]:
        """The buckets of each axis that has some."""
        return {axis: dim for axis, dim in enumerate(self.shape) if isinstance(dim, tuple)}


class DataTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where samples come from: an `.npz`, a folder of them, or `file.py:function`. Empty is none.

    `metric` is a built-in name or `file.py:function`; empty means top1 with labels, agreement without. `alphabet` is a
    file whose line k is what class k writes, for error rates of text. `seed` decides which half of the evaluation data
    the contract is judged on.

    `slices` names the group of each evaluation sample where their `.npz` does not: an `.npz` with a `slices` array, or
    `file.py:function`, which is called with all inputs by name, each (N, ...), and the labels.

    `shifted` is what the field may bring: data of your own, or built-in corruptions (one name or a list of them, of
    which each sample gets the next in turn); empty is dimmer and noisier inputs.
    """

    calibration: str = ""
    evaluation: str = ""
    metric: str = ""
    alphabet: str = ""
    shifted: str | tuple[str, ...] = ""
    slices: str = ""
    seed: int = 0


class OutputTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one output is judged against the float source. `kind` says what it holds where the build takes it for
    something else; `max_loss` is how much of its figure may be lost, `min_snr_db` its floor of signal to noise. `rows` is how
    many rows there are at most of an output whose length follows from the data.
    """

    kind: Literal["labels", "scores", "map", "activations", "boxes", "rows", "embedding", "values"] | None = (
        None
    )
    max_loss: Annotated[float, Meta(ge=0, le=1)] | None = None
    min_snr_db: Annotated[float, Meta(ge=0, le=100)] | None = None
    rows: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None


class CodeTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`reads`: files and folders that the project's own code depends on beside installed packages, as patterns from the
    project file's folder. Naming them is a promise: as long as none changes, a build of the same is not made again.
    """

    reads: tuple[str, ...] = ()


class GuardTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A guard against inputs unlike the calibration data. `false_alarms` is how many familiar inputs it may catch,
    `answer` what a caller gets for one that is caught: `flag` the model's answer with a parameter, `refuse` an error, `pass`
    what an address of the device's own configuration answers. `unfamiliar` is data to judge it on; empty are built-in kinds.
    """

    answer: GuardAnswer = "flag"
    false_alarms: Annotated[float, Meta(gt=0, le=0.2)] = 0.01
    unfamiliar: str = ""


class ContractTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits for every target; a target's own table replaces them one by one."""

    max_accuracy_drop: Annotated[float, Meta(ge=0)] | None = None
    max_drop_per_slice: Annotated[float, Meta(ge=0)] | None = None
    latency_p95_ms: Positive | None = None
    memory_mb: Positive | None = None
    size_mb: Positive | None = None


class ProjectFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`edgekit.toml` as it is written. `preprocess` steps hold their arguments inline beside `op`."""

    model: ModelTable
    targets: dict[str, ContractTable]
    inputs: dict[str, InputTable] = {}
    outputs: dict[str, OutputTable] = {}
    state: dict[str, str] = {}
    preprocess: dict[str, tuple[dict[str, Any], ...]] = {}
    postprocess: tuple[dict[str, Any], ...] = ()
    data: DataTable = DataTable()
    code: CodeTable = CodeTable()
    contract: ContractTable = ContractTable()
    guard: GuardTable | None = None


class _Inputs(msgspec.Struct, frozen=True):
    inputs: dict[str, InputTable]


class Project(msgspec.Struct, frozen=True):
    """A project ready to build; `folder` is what its relative paths start from, `where` names it in errors."""

    file: ProjectFile
    folder: Path
    where: str

    @property
    def model(self) -> ModelTable:
        return self.file.model

    @property
    def preprocess(self) -> dict[str, tuple[Step, ...]]:
        steps = self.file.preprocess
        return {
            name: tuple(self._step(step, f"preprocess.{name}") for step in of) for name, of in steps.items()
        }

    @property
    def postprocess(self) -> tuple[Step, ...]:
        return tuple(self._step(step, "postprocess") for step in self.file.postprocess)

    @property
    def buckets(self) -> Buckets | None:
        """The sizes that one axis of the inputs may have; None where all shapes are fixed."""
        axes = {name: axis for name, table in self.file.inputs.items() for axis in table.stepped}
        sizes = next((sizes for table in self.file.inputs.values() for sizes in table.stepped.values()), ())
        return Buckets(axes, sizes) if axes else None

    def profile(self, target: str) -> str:
        """The name or the file of a target's profile."""
        return str(self.folder / target) if target.endswith(".toml") else target

    def contract(self, target: str, budgets: Budgets) -> Contract:
        """The limits of one target: its own, then the project's, then the profile's default budgets."""
        own, general = self.file.targets[target], self.file.contract

        def limit(key: str) -> Any:
            for table in (own, general, budgets):
                value = getattr(table, key, None)
                if value is not None:
                    return value
            return None

        return Contract(**{key: limit(key) for key in Contract.__struct_fields__})

    def _step(self, table: Mapping[str, Any], key: str) -> Step:
        if not isinstance(table.get("op"), str):
            raise ProjectError(f"{self.where}: {key}: every step needs an op, e.g. op = 'scale'")
        return Step(op=table["op"], args={name: value for name, value in table.items() if name != "op"})


def load(path: Path, over: Mapping[str, Any] | None = None) -> Project:
    """Read a project file (or the `edgekit.toml` of a folder), with `over` laid over its tables.

    Targets in `over` choose among the file's own, whose limits stay, or add new ones.

    Raises: ProjectError with the file and the key.
    """
    file = path / PROJECT_FILE if path.is_dir() else path
    if not file.is_file():
        raise ProjectError(
            f"{file}: there is no such project file; write one, or give a model and flags (edgekit build --help)"
        )
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProjectError(f"{file}: not TOML: {error}") from error
    for key, value in (over or {}).items():
        if key == "targets":
            known = table.get("targets", {})
            table["targets"] = {
                name: {**known.get(name, {}), **limits} for name, limits in value.items()
            } or known
        elif isinstance(table.get(key, {}), dict):
            table[key] = {**table.get(key, {}), **value}
    return _project(table, file.parent.resolve(), str(file))


def from_flags(table: Mapping[str, Any]) -> Project:
    """The project that flags stand for; relative paths start from the current folder.

    Raises: ProjectError.
    """
    return from_tables(table, Path.cwd(), "flags")


def from_tables(table: Mapping[str, Any], folder: Path, where: str) -> Project:
    """The project of a file's tables without the file; `where` names it in errors. Raises: ProjectError."""
    return _project(table, folder, where)


def here(text: str) -> str:
    """A path that was not read from a project file, made independent of the project's folder; names (of metrics) stay."""
    path, colon, attribute = text.rpartition(":")
    if colon and path.endswith(".py"):
        return f"{Path(path).resolve()}:{attribute}"
    is_name = os.sep not in text and not Path(text).exists() and "." not in text
    return text if is_name else str(Path(text).resolve())


_TABLES: Mapping[str, type[msgspec.Struct]] = {
    "": ProjectFile,
    "model": ModelTable,
    "data": DataTable,
    "code": CodeTable,
    "contract": ContractTable,
    "guard": GuardTable,
    "inputs": InputTable,
    "outputs": OutputTable,
    "targets": ContractTable,
}


def _explained(message: str) -> str:
    """The decoder's message; for an unknown key or word, which table it stands in and what is known there."""
    unknown = re.search(r"unknown field `(.*?)`(?: - at `\$\.?(\w*)(.*)`)?", message)
    if unknown is not None:
        key, table = unknown.group(1), unknown.group(2) or ""
        hint = _nearest(key, _TABLES[table].__struct_fields__)
        return f"{table + '.' if table else ''}{key}: unknown key; {hint}"
    word = re.search(r"Invalid enum value '(.*?)' - at `\$\.(\w+)(?:\[\.\.\.\])?\.(\w+)`", message)
    if word is not None and (known := _words(_TABLES.get(word.group(2)), word.group(3))):
        return (
            f"{word.group(2)}, {word.group(3)}: unknown {word.group(1)!r}; {_nearest(word.group(1), known)}"
        )
    return message


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"


def _words(table: type | None, key: str) -> tuple[str, ...]:
    """What a key of that table may say, where it is one of some words."""
    hint = get_type_hints(table).get(key) if table is not None else None
    return tuple(
        word for part in (hint, *get_args(hint)) if get_origin(part) is Literal for word in get_args(part)
    )


def _project(table: Mapping[str, Any], folder: Path, where: str) -> Project:
    try:
        file = msgspec.convert(table, ProjectFile)
    except msgspec.ValidationError as error:
        raise ProjectError(f"{where}: {_explained(str(error))}") from error
    if not file.targets:
        raise ProjectError(
            f"{where}: targets: name at least one profile, e.g. [targets.raspberry-pi-5] or --target raspberry-pi-5"
        )
    twice = next((name for name in file.model.outputs if file.model.outputs.count(name) > 1), None)
    if twice is not None:
        raise ProjectError(
            f"{where}: model.outputs names {twice!r} twice; give each output a name of its own"
        )
    # A mistyped model is told before what else is missing.
    if not code.is_reference(file.model.source) and not (folder / file.model.source).exists():
        raise SourceError(f"{folder / file.model.source}: there is no such model file")
    if not file.data.calibration and not file.data.evaluation:
        raise ProjectError(
            f"{where}: data: give evaluation data (or calibration data, a fifth of which is then held back):"
            " without real samples no accuracy can be shown and no self-test made"
        )
    _check_buckets(file, where)
    return Project(file=file, folder=folder, where=where)


def check_inputs(tables: Mapping[str, Any], where: str) -> None:
    """Before anything is made of them. Raises: ProjectError."""
    try:
        msgspec.convert({"inputs": tables}, _Inputs)
    except msgspec.ValidationError as error:
        raise ProjectError(f"{where}: {_explained(str(error))}") from error


def _check_buckets(file: ProjectFile, where: str) -> None:
    """Raises: ProjectError for buckets that make no one row of sizes."""
    first: tuple[str, tuple[int, ...]] | None = None
    for name, table in file.inputs.items():
        key = f"{where}: inputs.{name}.shape"
        if len(table.stepped) > 1:
            raise ProjectError(
                f"{key} has buckets on axes {', '.join(map(str, table.stepped))}; only one axis may have them: fix the others"
            )
        for sizes in table.stepped.values():
            if not sizes or list(sizes) != sorted(set(sizes)):
                right = sorted(set(sizes)) or [160, 320]
                raise ProjectError(f"{key}: buckets {list(sizes)} must ascend without repeats, e.g. {right}")
            if name in file.state:
                raise ProjectError(
                    f"{key}: a state keeps its shape from call to call; it cannot have buckets"
                )
            if first is not None and first[1] != sizes:
                raise ProjectError(
                    f"{key} has buckets {list(sizes)}, and inputs.{first[0]} {list(first[1])}; inputs that have buckets"
                    " are always of one size, so give all of them the same list"
                )
            first = first or (name, sizes)
