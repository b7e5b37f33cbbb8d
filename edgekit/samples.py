"""Data files: `.npz` archives of samples for calibration, evaluation, self-tests and prediction.

An archive holds one array per input, samples along the first axis, and optionally `labels` (N, …) and `sequence`
(N,) int64, whose runs of equal ids are the sequences of a stateful model. `slices` (N,) may name the group that each
sample belongs to. Samples of several shapes (a model with
buckets takes them) stand one after the other in a flat array NAME, with their shapes (N, axes) in NAME@shapes. Arrays
may be stored in fewer bytes than they have when read (`edgekit.encoding`).

Always true
 1. Nothing is unpickled: an archive is numbers and text, whoever made it.
 2. All arrays of `Samples` have the same first axis.
 3. `dump_npz` gives the same bytes for the same values: fixed order, time and layout, stored.
"""

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit import encoding
from edgekit.errors import DataError
from edgekit.manifest import TensorSpec
from edgekit.tensors import Array, fits

LABELS = "labels"
# What follows an array's name where its samples differ in shape.
SHAPES = "@shapes"
SEQUENCE = "sequence"
SLICES = "slices"
_RESERVED = (LABELS, SEQUENCE, SLICES)
# What numpy and zipfile raise for bytes that are not what they should be: a header that is no Python literal or asks for
# more memory than there is, an encrypted member (RuntimeError), an unknown method (NotImplementedError, one of those).
DAMAGED = (
    ValueError, OSError, EOFError, KeyError, MemoryError, OverflowError, RuntimeError, SyntaxError, TypeError, struct.error,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
# One instant for all members, the earliest that a zip can hold.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def stacked(arrays: Sequence[Array]) -> Array:
    """(N, *shape); where the shapes differ, a *ragged* array: (N,) objects, each an array."""
    if len({array.shape for array in arrays}) == 1:
        return np.stack(arrays)
    ragged = np.empty(len(arrays), object)
    for index, array in enumerate(arrays):
        ragged[index] = array
    return ragged


def is_ragged(array: Array) -> bool:
    return array.dtype == object


def flat(array: Array) -> Array:
    """All values of all samples in one row."""
    return np.concatenate([part.ravel() for part in array]) if is_ragged(array) else array.ravel()


def rows(arrays: Mapping[str, Array]) -> list[dict[str, Array]]:
    """Stacked arrays sample by sample."""
    count = len(next(iter(arrays.values())))
    return [{name: np.asarray(array[index]) for name, array in arrays.items()} for index in range(count)]


@dataclass(frozen=True, eq=False)
class Samples:
    """N samples: `inputs` by name, each (N, *sample shape) or ragged; `labels` (N, …); `sequence` (N,) int64; `slices` (N,)
    text, the group that each belongs to.

    Raises: DataError if the first axes differ or there is no sample.
    """

    inputs: dict[str, Array]
    labels: Array | None = None
    sequence: NDArray[np.int64] | None = None
    slices: NDArray[np.str_] | None = None
    _length: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        arrays: dict[str, Array] = dict(self.inputs)
        if self.labels is not None:
            arrays[LABELS] = self.labels
        if self.sequence is not None:
            arrays[SEQUENCE] = self.sequence
        if self.slices is not None:
            arrays[SLICES] = self.slices
        object.__setattr__(self, "_length", _common_length("samples", arrays, self.inputs))

    def __len__(self) -> int:
        return self._length

    def sample(self, index: int) -> dict[str, Array]:
        """The inputs of one sample, without the first axis; views, not copies, and arrays where nothing is left."""
        return {
            name: array[index] if is_ragged(array) else array[index, ...]
            for name, array in self.inputs.items()
        }

    def take(self, indices: slice | Sequence[int] | NDArray[np.integer]) -> "Samples":
        """The samples at `indices`, in that order. The caller keeps sequences whole where that matters."""
        chosen = indices if isinstance(indices, slice) else np.asarray(indices, dtype=np.int64)
        return Samples(
            inputs={name: array[chosen] for name, array in self.inputs.items()},
            labels=None if self.labels is None else self.labels[chosen],
            sequence=None if self.sequence is None else self.sequence[chosen],
            slices=None if self.slices is None else self.slices[chosen],
        )

    def starts(self, index: int) -> bool:
        """Whether a new sequence starts at this sample; without `sequence` every sample is its own."""
        return self.sequence is None or index == 0 or self.sequence[index] != self.sequence[index - 1]


def load_npz(
    source: Path | bytes,
    specs: Sequence[TensorSpec] | None = None,
    *,
    raw: Collection[str] = (),
    optional: Collection[str] = (),
    stored_only: bool = False,
) -> Samples:
    """Read an archive.

    With `specs`, the arrays must be those inputs: each sample of the declared shape, where a leading 1 may be left
    out and is added; float widths are converted, any other dtype difference is refused. Inputs named in `raw` have
    pre-processing steps still to come and are taken as they are; those in `optional` (states) may be absent. With
    `stored_only` a compressed member is refused before it is unpacked: in a bundle, what unfolds to more than the
    bundle's own size is no data of ours.

    Raises: DataError naming the file, the array and what was expected.
    """
    where = "data" if isinstance(source, bytes) else str(source)
    arrays = load_arrays(source, stored_only=stored_only)
    declared = {spec.name for spec in specs or ()}
    extra = {name: arrays.pop(name) for name in _RESERVED if name in arrays and name not in declared}
    if specs is not None:
        arrays = _fitted(where, arrays, specs, raw, optional)
    _common_length(where, {**arrays, **extra}, arrays)
    return Samples(
        arrays,
        extra.get(LABELS),
        _sequence_ids(where, extra.get(SEQUENCE)),
        slice_names(where, extra[SLICES]) if SLICES in extra else None,
    )


def dump_npz(samples: Samples) -> bytes:
    """The archive's bytes. Raises: DataError if an input has a reserved name."""
    arrays: dict[str, Array] = dict(samples.inputs)
    for name, array in ((LABELS, samples.labels), (SEQUENCE, samples.sequence)):
        if array is not None and name in arrays:
            raise DataError(f"an input is called {name!r}, which an .npz keeps for itself; rename the input")
        if array is not None:
            arrays[name] = array
    return dump_arrays(arrays)


def dump_arrays(arrays: Mapping[str, Array]) -> bytes:
    """Named arrays, ragged ones too, as deterministic `.npz` bytes, little-endian and C-contiguous.

    Raises: DataError if samples of one array differ in their number of axes.
    """
    plain: dict[str, Array] = {}
    for name, array in arrays.items():
        plain |= _unrolled(name, array) if is_ragged(array) else {name: np.asarray(array)}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(plain):
            array = plain[name]
            little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)
            member = io.BytesIO()
            np.lib.format.write_array(member, little, version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            info.create_system = 3  # Unix, whatever the builder's machine is
            archive.writestr(info, member.getvalue())
    return buffer.getvalue()


def _unrolled(name: str, ragged: Array) -> dict[str, Array]:
    shapes = [part.shape for part in ragged]
    if len({len(shape) for shape in shapes}) > 1:
        raise DataError(f"array {name!r}: its samples differ in their number of axes")
    return {name: flat(ragged), name + SHAPES: np.array(shapes, np.int64)}


def _rolled(where: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Arrays that stand flat beside their shapes, sample by sample again. Raises: DataError."""
    made = {name: array for name, array in arrays.items() if name + SHAPES not in arrays}
    for name in arrays:
        if name + SHAPES not in arrays:
            continue
        values, shapes = arrays[name], made.pop(name + SHAPES)
        if shapes.ndim != 2 or shapes.dtype != np.int64 or not len(shapes) or shapes.min(initial=0) < 0:
            raise DataError(f"{where}: array {name + SHAPES!r} is not made of shapes, (N, axes) int64")
        counts = [math.prod(shape) for shape in shapes.tolist()]
        if values.ndim != 1 or sum(counts) != len(values):
            raise DataError(f"{where}: array {name!r} does not have the values that {name + SHAPES!r} says")
        parts = np.split(values, np.cumsum(counts)[:-1])
        made[name] = stacked([part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)])
    return made


def load_arrays(source: Path | bytes, *, stored_only: bool = False) -> dict[str, Array]:
    """Every array of an archive by name, as what is stored there decodes to. Raises: DataError."""
    where = "data" if isinstance(source, bytes) else str(source)
    plain = encoding.widened(where, _read_arrays(source, where, stored_only=stored_only))
    return _unfolded(where, _rolled(where, plain))


def _unfolded(where: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Samples of which every so many entries are stored, at their whole shapes. Raises: DataError."""
    told = {name: arrays[name + encoding.REPEAT] for name in arrays if name + encoding.REPEAT in arrays}
    made = {name: array for name, array in arrays.items() if name.removesuffix(encoding.REPEAT) not in told}
    for name, table in told.items():
        what, array = f"{where}: array {name!r}", arrays[name]
        parts = [np.asarray(part) for part in array] if array.ndim else []
        made[name] = stacked(encoding.repeated(what, parts, table))
    return made


def _read_arrays(source: Path | bytes, where: str, *, stored_only: bool) -> dict[str, Array]:
    if isinstance(source, Path) and not source.is_file():
        raise DataError(f"{where}: there is no such file")
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        archive = np.load(stream, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{where}: one bare array; expected an .npz with one array per input name")
        with archive:
            members = archive.zip.infolist() if archive.zip is not None else []
            packed = [item.filename for item in members if item.compress_type]
            if stored_only and packed:
                raise DataError(
                    f"{where}: {packed[0]} is compressed; a bundle's data is stored (zip method 0)"
                )
            return {name: archive[name] for name in archive.files}
    except DAMAGED as error:
        raise DataError(f"{where}: not an .npz of plain arrays, or damaged ({error})") from error


def _fitted(
    where: str,
    arrays: Mapping[str, Array],
    specs: Sequence[TensorSpec],
    raw: Collection[str],
    optional: Collection[str],
) -> dict[str, Array]:
    names = [spec.name for spec in specs]
    unknown = sorted(set(arrays) - set(names))
    if unknown:
        raise DataError(
            f"{where}: array {unknown[0]!r} is no input of the model; expected {', '.join(names)},"
            f" and optionally {', '.join(_RESERVED)}"
        )
    fitted: dict[str, Array] = {}
    for spec in specs:
        if spec.name not in arrays:
            if spec.name not in optional:
                raise DataError(
                    f"{where}: array {spec.name!r} is missing; expected N samples of {spec.describe()}"
                )
            continue
        array = arrays[spec.name]
        fitted[spec.name] = array if spec.name in raw else _fit(where, spec, array)
    return fitted


def _fit(where: str, spec: TensorSpec, array: Array) -> Array:
    if is_ragged(array):
        return stacked([_fit(where, spec, part[None])[0] for part in array])
    shape = array.shape[1:]
    if array.ndim and not fits(spec, shape) and spec.shape[:1] == (1,) and fits(spec, (1, *shape)):
        array = array[:, None]
    elif not array.ndim or not fits(spec, shape):
        have = "x".join(map(str, array.shape)) or "scalar"
        raise DataError(
            f"{where}: array {spec.name!r} has shape {have}; expected N samples of {spec.describe()}"
        )
    wanted = np.dtype(spec.dtype)
    if array.dtype == wanted:
        return array
    if not (np.issubdtype(array.dtype, np.floating) and np.issubdtype(wanted, np.floating)):
        raise DataError(
            f"{where}: array {spec.name!r} has dtype {array.dtype}; expected N samples of {spec.describe()}"
        )
    return array.astype(wanted)


def _sequence_ids(where: str, array: Array | None) -> NDArray[np.int64] | None:
    if array is None:
        return None
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise DataError(
            f"{where}: array {SEQUENCE!r} is {array.dtype} of {array.ndim} axes; expected one id a sample, (N,) int64"
        )
    return array.astype(np.int64)


def slice_names(where: str, array: Array) -> NDArray[np.str_]:
    """Names of groups as text; integers and flags are names too. Raises: DataError."""
    if array.ndim != 1 or array.dtype.kind not in "Uiub":
        raise DataError(
            f"{where}: array {SLICES!r} is {array.dtype} of {array.ndim} axes; expected one name a sample, (N,) text or"
            " integers"
        )
    return array.astype(np.str_)


def _common_length(where: str, arrays: Mapping[str, Array], inputs: Collection[str]) -> int:
    lengths = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if not inputs:
        raise DataError(f"{where}: holds no input array")
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(
            f"{where}: arrays differ in their number of samples ({told}); the first axis is N for all"
        )
    length = next(iter(lengths.values()))
    if not length:
        raise DataError(f"{where}: holds no sample")
    return length
