"""The manifest: everything a device acts on, and nothing that was measured.

Always true
 1. Its canonical bytes (`encode`) depend only on its values: keys in declaration order, no time, no host.
 2. Input shapes are closed; a device never guesses a dimension. Where one has buckets, its shape is the largest.
 3. This module needs no numpy: the agent's supervisor reads manifests and never loads it.
 4. Unknown fields are ignored, an unknown `format` is refused: an old agent never half-understands a new bundle.
    Buckets came with format 2, compact self-test data with format 3, which is what is written now; a guard with format 4 and
    sets of rows with format 5, which are written where there is one.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from edgekit.errors import ManifestError
from edgekit.guard_section import Guard
from edgekit.rowset import RowSet, opened

# The newest that is read here, and the formats that things came with.
FORMAT = 5
FIRST_FORMAT = 1
BUCKETS_FORMAT = 2
COMPACT_FORMAT = 3
GUARD_FORMAT = 4
ROWS_FORMAT = 5
MANIFEST_NAME = "manifest.json"
_FOLDERS = ("model", "selftest", "guard")

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Version = Annotated[str, Meta(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}$")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
Option = str | int | float | bool
# What an external delegate's library may be called; its folder is the board's business.
DELEGATE = re.compile(r"lib[A-Za-z0-9._+-]{1,120}\.so(\.[0-9]{1,6}){0,3}")
# `None` is an open dimension, allowed in a source, never in a bundle's inputs.
Shape = tuple[int | None, ...]


class TensorSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """One input or output. `binding` is the name the engine uses where it differs from the public one."""

    name: str
    dtype: str
    shape: Shape
    binding: str = ""

    @property
    def engine_name(self) -> str:
        return self.binding or self.name

    @property
    def is_static(self) -> bool:
        return all(dim is not None for dim in self.shape)

    def describe(self) -> str:
        dims = "x".join("?" if dim is None else str(dim) for dim in self.shape) or "scalar"
        return f"{self.name}: {self.dtype} {dims}"


class Buckets(msgspec.Struct, frozen=True):
    """The sizes that one axis of a model's inputs may have, smallest first, and the model file of each.

    `axes` says which axis of which inputs; in one call all of them have the same size. How inputs come to one of the
    sizes stands in `edgekit.buckets`.
    """

    axes: dict[str, Annotated[int, Meta(ge=0)]]
    sizes: tuple[Annotated[int, Meta(ge=1)], ...]
    models: tuple[str, ...] = ()

    def admitted(self, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """The specs of inputs as callers may give them: the axis open."""
        return self._with(specs, None)

    def at(self, specs: Sequence[TensorSpec], size: int) -> tuple[TensorSpec, ...]:
        """The specs of inputs as the model of that size takes them."""
        return self._with(specs, size)

    def _with(self, specs: Sequence[TensorSpec], dim: int | None) -> tuple[TensorSpec, ...]:
        return tuple(
            msgspec.structs.replace(
                spec,
                shape=(*spec.shape[: self.axes[spec.name]], dim, *spec.shape[self.axes[spec.name] + 1 :]),
            )
            if spec.name in self.axes
            else spec
            for spec in specs
        )


class EngineSpec(msgspec.Struct, frozen=True):
    """How the device loads the model.

    `versions` is a PEP 440 specifier set; `options` are handed to the engine exactly as they stand here, so that a
    CPU with bf16 does not silently compute in another precision than was judged; `threads` 0 means the engine's own
    choice.
    """

    name: str
    versions: str
    model: str
    options: dict[str, Option] = {}
    threads: int = 0


class FileEntry(msgspec.Struct, frozen=True):
    path: str
    sha256: Sha256
    size: Annotated[int, Meta(ge=0)]


class StatePair(msgspec.Struct, frozen=True):
    """An output that feeds an input of the next call; it starts as zeros."""

    input: str
    output: str


class Step(msgspec.Struct, frozen=True):
    """One declarative transform: `op` names an entry of the table in `edgekit.transforms`, `args` its parameters."""

    op: str
    args: dict[str, Any] = {}

    def describe(self) -> str:
        return f"{self.op}({', '.join(f'{key}={value}' for key, value in self.args.items())})"


class Contract(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the bundle must meet; `None` is no limit. `max_accuracy_drop` is absolute, in the harmful direction, and so is
    `max_drop_per_slice`, of each group of the evaluation data.
    """

    max_accuracy_drop: float | None = None
    latency_p95_ms: float | None = None
    memory_mb: float | None = None
    size_mb: float | None = None
    max_drop_per_slice: float | None = None


class Floor(msgspec.Struct, frozen=True, omit_defaults=True):
    """The least signal to noise of an output, or of those of its rows along `axis` that have values of one magnitude:
    runs [from, to), ascending. Boxes in pixels joined with scores would drown whatever happens to these.
    """

    least_db: float
    axis: Annotated[int, Meta(ge=0)] = 0
    rows: tuple[tuple[int, int], ...] = ()

    def describe(self) -> str:
        """Empty where it holds for the whole output."""
        runs = ", ".join(f"{start}-{stop - 1}" for start, stop in self.rows)
        return f"rows {runs} of axis {self.axis}" if runs else ""


class SelfTest(msgspec.Struct, frozen=True):
    """Golden data and what a device must reproduce.

    `inputs`, `source` and `artifact` are `.npz` members with one array per tensor, samples along a new first axis
    (N, *shape); inputs are *raw*, before pre-processing, so that a wrong constant there is caught too. An optional
    `sequence` array (N,) int64 in `inputs` groups consecutive samples of stateful models. All may be stored in fewer
    bytes (`edgekit.encoding`); the golden inputs are then what the stored bytes decode to, for source, artifact and
    device alike. Of large outputs the other two keep `kept` entries of each sample, and `source` holds the task answers
    (`edgekit.selftest.record`). `kept` is unset in bundles of formats 1 and 2, which have a number and a spread of
    their own.

    `tolerance` bounds |output - artifact output| per output tensor (every one of them): the largest seen across
    engines and ISAs at build, times a margin. `snr_db` is, for outputs of real numbers, the least signal to noise in
    decibels that the device's record must have against the float source's: the noise that the build saw doubled (3 dB),
    and a device's own rounding; rows of much smaller values than others have a floor of their own. `agreement` is the share of task answers that equal the float source's, which the device
    must reach: what the build saw minus a margin. The task answer is argmax over the last axis where that has more than
    one entry, otherwise whether the value is above 0.5, on the first output, and of an output of integers these
    themselves; a sample with several positions gives several answers.
    """

    inputs: str
    source: str
    artifact: str
    samples: Annotated[int, Meta(ge=1)]
    tolerance: dict[str, float]
    agreement: Annotated[float, Meta(ge=0, le=1)]
    # Left out in older formats, so that such bundles keep their bytes.
    kept: Annotated[int, Meta(ge=1)] | UnsetType = UNSET
    snr_db: dict[str, tuple[Floor, ...]] | UnsetType = UNSET
    # Of each set of rows, the least share (F1) of the artifact's that a device must find again.
    found_again: tuple[Annotated[float, Meta(ge=0, le=1)], ...] | UnsetType = UNSET


class Histogram(msgspec.Struct, frozen=True):
    """Reference counts over fixed bins: `edges` has one entry more than `counts`; ends are open.

    `worth` is how many independent values the counts are worth: those of one image are alike. Unset, all of them.
    """

    edges: Annotated[list[float], Meta(max_length=4097)]
    counts: Annotated[list[Annotated[int, Meta(ge=0, le=2**53)]], Meta(max_length=4096)]
    worth: Annotated[float, Meta(ge=0)] | UnsetType = UNSET


class Reference(msgspec.Struct, frozen=True):
    """Statistics of the evaluation data that drift is judged against, by tensor name.

    An input in `channels` is watched channel by channel along that axis, as `NAME/0`, `NAME/1`, …: its channels have
    ranges of their own. `confidence` has, of outputs that are classes, the probability of the likeliest
    (`edgekit.confidence`).
    """

    inputs: dict[str, Histogram] = {}
    outputs: dict[str, Histogram] = {}
    # Left out where there are none, so that older bundles keep their bytes.
    channels: dict[str, Annotated[int, Meta(ge=0)]] | UnsetType = UNSET
    confidence: dict[str, Histogram] | UnsetType = UNSET


class Manifest(msgspec.Struct, frozen=True):
    format: int
    name: Name
    version: Version
    profile: Name
    engine: EngineSpec
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    recipe: str
    source_sha256: Sha256
    files: tuple[FileEntry, ...]
    selftest: SelfTest
    state: tuple[StatePair, ...] = ()
    preprocess: dict[str, tuple[Step, ...]] = {}
    postprocess: tuple[Step, ...] = ()
    contract: Contract = Contract()
    tools: dict[str, str] = {}
    reference: Reference = Reference()
    # Left out where there are none, so that such bundles keep their bytes.
    buckets: Buckets | UnsetType = UNSET
    guard: Guard | UnsetType = UNSET
    # Names of classes, or an alphabet, that the source carries and no step of `postprocess` has.
    labels: tuple[str, ...] | UnsetType = UNSET
    # Outputs whose length follows from the data.
    sets: tuple[RowSet, ...] | UnsetType = UNSET

    @property
    def admitted(self) -> tuple[TensorSpec, ...]:
        """The inputs as callers may give them: an axis with buckets is open."""
        return self.buckets.admitted(self.inputs) if self.buckets else self.inputs

    @property
    def given(self) -> tuple[TensorSpec, ...]:
        """The outputs as callers get them: an axis whose length follows from the data is open."""
        return opened(self.sets or (), self.outputs)

    @property
    def title(self) -> str:
        return f"{self.name}-{self.version}-{self.profile}"

    @property
    def filename(self) -> str:
        return f"{self.title}.edgekit"


def encode(manifest: Manifest) -> bytes:
    """Canonical bytes of a manifest, newline-terminated."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=1) + b"\n"


def decode(data: bytes) -> Manifest:
    """Read and check a manifest.

    Raises: ManifestError for bytes that are no manifest, an unknown format, or inconsistent fields.
    """
    try:
        probe = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise ManifestError(f"manifest.json is not JSON: {error}") from error
    found = probe.get("format") if isinstance(probe, dict) else None
    if found not in range(FIRST_FORMAT, FORMAT + 1):
        raise ManifestError(
            f"manifest format {found!r} is not known here (this EdgeKit reads {FIRST_FORMAT} to {FORMAT}); update EdgeKit"
        )
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.ValidationError as error:
        raise ManifestError(f"manifest.json: {error}") from error
    _check(manifest)
    return manifest


def safe_member_path(path: str) -> bool:
    """A plain relative POSIX path below one of a bundle's folders: no `..`, no backslash, no drive, no empty part."""
    if "\\" in path or ":" in path or "\0" in path:
        return False
    parts = path.split("/")
    return (
        len(parts) >= 2
        and parts[0] in _FOLDERS
        and all(part not in ("", ".", "..") for part in parts)
        and str(PurePosixPath(path)) == path
    )


def _check(manifest: Manifest) -> None:
    _check_files(manifest)
    _check_tensors(manifest)
    _check_selftest(manifest)
    if manifest.buckets:
        _check_buckets(manifest, manifest.buckets)
    troubles = [one.trouble(manifest.outputs) for one in manifest.sets or ()]
    if manifest.sets:
        _came_with(manifest, "sets of rows", ROWS_FORMAT)
    if manifest.guard:
        _came_with(manifest, "a guard", GUARD_FORMAT)
        sizes = {entry.path: entry.size for entry in manifest.files}
        names = {spec.name for spec in manifest.inputs} - {pair.input for pair in manifest.state}
        troubles.append(manifest.guard.trouble(sizes, names))
    if any(troubles):
        raise ManifestError(f"manifest.json {next(filter(None, troubles))}")


def _came_with(manifest: Manifest, what: str, number: int) -> None:
    if (have := manifest.format) < number:
        raise ManifestError(f"manifest.json has {what}, which came with format {number}, and says {have}")


def _check_files(manifest: Manifest) -> None:
    paths = [entry.path for entry in manifest.files]
    if len(set(paths)) != len(paths):
        raise ManifestError("manifest.json lists a file twice")
    for path in paths:
        if not safe_member_path(path):
            raise ManifestError(
                f"manifest.json lists {path!r}, which is not a plain path below {'/, '.join(_FOLDERS)}/"
            )
    test = manifest.selftest
    for path in (manifest.engine.model, test.inputs, test.source, test.artifact):
        if path not in paths:
            raise ManifestError(f"manifest.json refers to {path!r}, which is not among its files")


def _check_tensors(manifest: Manifest) -> None:
    inputs = {spec.name for spec in manifest.inputs}
    outputs = {spec.name for spec in manifest.outputs}
    for spec in manifest.inputs:
        if not spec.is_static:
            raise ManifestError(f"manifest.json leaves the shape of input {spec.describe()} open")
    for pair in manifest.state:
        if pair.input not in inputs or pair.output not in outputs:
            raise ManifestError(
                f"manifest.json pairs state {pair.input!r} with {pair.output!r}, not both of which exist"
            )
    for name in manifest.preprocess:
        if name not in inputs:
            raise ManifestError(f"manifest.json pre-processes {name!r}, which is no input")


def _check_selftest(manifest: Manifest) -> None:
    test, outputs = manifest.selftest, {spec.name: spec for spec in manifest.outputs}
    if test.kept is not UNSET or test.snr_db is not UNSET:
        _came_with(manifest, "compact self-test data", COMPACT_FORMAT)
    for name, floors in (test.snr_db or {}).items():
        if name not in outputs:
            raise ManifestError(f"manifest.json states a signal to noise of {name!r}, which is no output")
        for floor in floors:
            bounds = [bound for run in floor.rows for bound in run]
            shape = outputs[name].shape
            size = shape[floor.axis] if floor.axis < len(shape) else None
            if bounds and (
                size is None or bounds != sorted(set(bounds)) or not 0 <= bounds[0] < bounds[-1] <= size
            ):
                raise ManifestError(
                    f"manifest.json states a signal to noise of {floor.describe()}, which {name!r} has not"
                )


def _check_buckets(manifest: Manifest, buckets: Buckets) -> None:
    specs = {spec.name: spec for spec in manifest.inputs}
    sizes = buckets.sizes
    _came_with(manifest, "buckets", BUCKETS_FORMAT)
    if (
        not buckets.axes
        or not sizes
        or list(sizes) != sorted(set(sizes))
        or len(buckets.models) != len(sizes)
    ):
        raise ManifestError("manifest.json: buckets need inputs, ascending sizes, and a model for each size")
    for name, axis in buckets.axes.items():
        if name not in specs or axis >= len(specs[name].shape) or specs[name].shape[axis] != sizes[-1]:
            raise ManifestError(
                f"manifest.json: no input {name!r} has {sizes[-1]}, its largest bucket, along axis {axis}"
            )
    states = sorted({pair.input for pair in manifest.state} & set(buckets.axes))
    if states:
        raise ManifestError(f"manifest.json: state {states[0]!r} has buckets; a state keeps its shape")
    missing = set(buckets.models) - {entry.path for entry in manifest.files}
    if missing or manifest.engine.model != buckets.models[-1]:
        raise ManifestError(
            f"manifest.json: buckets refer to {sorted(missing) or manifest.engine.model!r}, which is not what the bundle has"
        )
