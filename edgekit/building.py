"""`edgekit.build`: a trained model becomes bundles, from Python. The work is the converters', as for `edgekit build`.

Light: what is asked and what is answered stand here, numpy and the converters are loaded by the call.

Always true
 1. One build, two doors: the call and the command read the same project, and run the same function.
 2. What is given in memory is written down first, and is then a file like any other: worker processes, cache, lock and
    evidence know it by its bytes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from edgekit.distribution import extra
from edgekit.errors import UsageError
from edgekit.evidence import CandidateEvidence

# A size, or the sizes that an axis may have (buckets).
Dim = int | Sequence[int]
# A shape with the leading batch axis, an example of that shape, or a table with `shape` and `dtype`.
Given = Sequence[Dim] | Mapping[str, Any] | Any
Lock = Literal["use", "write", "require"]


@dataclass(frozen=True)
class Wanted:
    """A call of `build`, as it was made."""

    model: Any
    targets: str | Sequence[str] | Mapping[str, Mapping[str, float]]
    calibration: Any
    evaluation: Any
    slices: Any
    inputs: Mapping[str, Given]
    # Tables of a project file, over which the rest is laid.
    tables: Mapping[str, Any]
    # Fields of `converters.outcome.Options`.
    options: Mapping[str, Any]
    use_cache: bool
    measure: bool
    progress: bool


@dataclass(frozen=True)
class BuiltBundle(PathLike[str]):
    """One bundle file: it goes wherever a path does. `figures` are its candidate's, each with how it was obtained."""

    profile: str
    path: Path
    # `sha256:…` of the file.
    digest: str
    recipe: str
    # Not the pick, and not measured on its own kind of machine yet.
    is_alternate: bool
    size_bytes: int
    figures: CandidateEvidence = field(repr=False)

    def __fspath__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class BuildResult:
    """What a build made. In a notebook it shows itself as the command's table.

    `candidates` are all that were tried, by profile, the pick first. `missed` has a sentence for each profile that got no
    bundle (`must_meet=False`). `document` is what `edgekit build --json` writes, `report` the page of all of it.
    """

    name: str
    version: str
    bundles: tuple[BuiltBundle, ...]
    candidates: Mapping[str, tuple[CandidateEvidence, ...]] = field(repr=False)
    missed: tuple[str, ...]
    report: Path
    document: Mapping[str, Any] = field(repr=False)
    # The tables, drawn when somebody looks.
    _draw: Callable[[Literal["html", "text"]], str] = field(repr=False)

    def pick(self, profile: str | None = None) -> BuiltBundle:
        """The bundle that was picked for a profile; for the only one, if there is no other.

        Raises: UsageError where there is none for it, or several to choose from.
        """
        picked = {item.profile: item for item in self.bundles if not item.is_alternate}
        if profile is None and len(picked) == 1:
            return next(iter(picked.values()))
        if profile is None or profile not in picked:
            have = ", ".join(picked) or "none"
            asked = "which profile?" if profile is None else f"no bundle for {profile!r};"
            raise UsageError(f"{asked} bundles of this build: {have}")
        return picked[profile]

    def __str__(self) -> str:
        return self._draw("text")

    def _repr_html_(self) -> str:
        return self._draw("html")


def build(
    model: Any,
    *,
    targets: str | Sequence[str] | Mapping[str, Mapping[str, float]] = (),
    calibration: Any = None,
    evaluation: Any = None,
    slices: Any = None,
    name: str | None = None,
    version: str | None = None,
    inputs: Mapping[str, Given] | None = None,
    outputs: str | Sequence[str] = (),
    state: Mapping[str, str] | None = None,
    preprocess: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    postprocess: Sequence[Mapping[str, Any]] = (),
    metric: str | Callable[..., float] | None = None,
    alphabet: str | PathLike[str] | None = None,
    shifted: str | Sequence[str] | None = None,
    seed: int | None = None,
    max_accuracy_drop: float | None = None,
    max_drop_per_slice: float | None = None,
    latency_p95_ms: float | None = None,
    memory_mb: float | None = None,
    size_mb: float | None = None,
    recipes: str | Sequence[str] = (),
    out: str | PathLike[str] = "dist",
    accept_uncertain: bool = False,
    strict: bool = False,
    allow_code: bool = True,
    search: int = 0,
    lock: Lock = "use",
    jobs: int | None = None,
    time_budget_s: float = 600.0,
    cache: str | PathLike[str] | bool = True,
    measure: bool = False,
    must_meet: bool = True,
    progress: bool = True,
) -> BuildResult:
    """Turn a trained model into bundles, one for each hardware profile: `edgekit build` as a call.

    model: a `torch.nn.Module`, `torch.export.ExportedProgram` or `onnx.ModelProto` in memory; the path of an ONNX file,
        TorchScript, `.pt2`, `.tflite` or OpenVINO `.xml`; `"file.py:factory"`; or an `edgekit.toml` (or its folder), over
        whose tables everything else is laid. A module is exported by `torch.export` from a copy in evaluation mode.
    targets: names of hardware profiles or `.toml` files; as a mapping, each with limits of its own:
        `{"raspberry-pi-5": {"latency_p95_ms": 20}}`.
    calibration, evaluation: samples. A mapping of input name to array (N, *sample shape), with `"labels"` (N, ...),
        `"sequence"` (N,) int64 and `"slices"` (N,) text beside the inputs where there are any; `(arrays, labels)`; one array
        for a model of one input; an iterable of `(inputs, label)` or `inputs`, one sample at a time, which is read once and
        streamed to disk; or what a project file takes (an `.npz`, a folder of them, `"file.py:function"`).
        dtypes are the model's own; float widths are converted. A leading axis of 1 may be left out of a sample.
    slices: the group of each evaluation sample, (N,) text or numbers, or `"file.py:function"` (docs/slices.md).
    name, version: of the bundles; the file's or class's name, and "0.1.0".
    inputs: shape of each input, batch axis included, as `(1, 3, 224, 224)`; a list among the sizes is a set of buckets;
        `{"shape": ..., "dtype": "int64"}` where it is not float32; or an example array or tensor of that shape and type. A
        module needs them, an ONNX file only for open axes.
    outputs: names of a torch program's outputs, in order. state: input name to the output that feeds it next time.
    preprocess, postprocess: steps that run on the device, as in a project file.
    metric: a built-in name, `"file.py:function"`, or a function that stands in a file of yours.
    max_accuracy_drop, max_drop_per_slice: absolute, in the metric's unit and the harmful direction.
    latency_p95_ms: milliseconds; memory_mb, size_mb: 10**6 bytes. Limits of every target.
    out: folder of the bundles, their evidence and `report.html`. lock, search, jobs, time_budget_s (seconds), strict,
        accept_uncertain, recipes, measure: as the flags of the same names. allow_code False is `--no-code`.
    cache: True for the user's, False for none, or a folder.
    must_meet: whether a missed contract raises; otherwise the result's `missed` says so.
    progress: whether it shows how far it is, on standard error or in the notebook.

    Raises: UsageError, ProjectError, ProfileError, SourceError, DataError for what is wrong with what was given;
        ContractMissedError where a profile got no bundle (`.table`, `.layers`); ToolFailedError; KeyboardInterrupt, which
        leaves only finished bundles behind.
    """
    limits = {
        "max_accuracy_drop": max_accuracy_drop,
        "max_drop_per_slice": max_drop_per_slice,
        "latency_p95_ms": latency_p95_ms,
        "memory_mb": memory_mb,
        "size_mb": size_mb,
    }
    tables = {
        "model": {"name": name, "version": version, "outputs": _words("outputs", outputs) or None},
        "state": _table("state", state, "{input: output}"),
        "preprocess": _table("preprocess", preprocess, "{input: [step, ...]}"),
        "postprocess": tuple(postprocess),
        "data": {"metric": metric, "alphabet": alphabet, "shifted": shifted, "seed": seed},
        "contract": limits,
    }
    options = {
        "out": Path(out),
        "accept_uncertain": accept_uncertain,
        "strict": strict,
        "allow_code": allow_code,
        "cache": None if isinstance(cache, bool) else Path(cache),
        "recipes": _words("recipes", recipes),
        "search": search,
        "lock": lock,
        "time_budget_s": float(time_budget_s),
        **({} if jobs is None else {"jobs": jobs}),
    }
    wanted = Wanted(
        model,
        targets,
        calibration,
        evaluation,
        slices,
        _table("inputs", inputs, "{'x': (1, 3, 224, 224)}"),
        tables,
        options,
        use_cache=cache is not False,
        measure=measure,
        progress=progress,
    )
    result: BuildResult = _converters().build(wanted, must_meet=must_meet)
    return result


def _words(what: str, given: str | Sequence[str]) -> tuple[str, ...]:
    """One word or several. Raises: UsageError."""
    words = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (None,)
    if not all(isinstance(word, str) for word in words):
        raise UsageError(f"{what} = {given!r}: give a text, or a list of them")
    return words


def _table(what: str, given: Any, example: str) -> dict[str, Any]:
    """What is named one by one; nothing where nothing was given. Raises: UsageError."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise UsageError(f"{what}: a {type(given).__name__} names nothing; give a mapping, {example}")
    return dict(given)


def _converters() -> Any:
    """Named by a string: this package stands below the converters. Raises: UsageError where they are not installed."""
    try:
        return import_module("converters.api")
    except ModuleNotFoundError as error:
        raise UsageError(f"edgekit.build needs {error.name}; install it with: {extra('build')}") from error
