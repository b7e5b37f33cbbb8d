"""Samples for calibration and evaluation, from an `.npz`, a folder of them, or the user's generator.

Always true
 1. Calibration is a stream: at most one file, or one sample of a generator, is in memory at a time.
 2. The same samples have the same fingerprint, however they are stored.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.source import code
from edgekit.errors import DataError
from edgekit.manifest import TensorSpec
from edgekit.samples import Samples, is_ragged, load_npz, stacked
from edgekit.tensors import Array, fits


@dataclass(frozen=True)
class Source:
    """Where samples come from; `chunks` may be iterated again and again. `what` names it in errors. `may_differ`: the
    model takes samples of several shapes.
    """

    what: str
    chunks: Callable[[], Iterator[Samples]]
    may_differ: bool = False

    def fingerprint(self) -> str:
        """sha256 over every sample's names, types, shapes and bytes, in order."""
        digest = hashlib.sha256()
        for chunk in self.chunks():
            for index in range(len(chunk)):
                for name, array in sorted(chunk.sample(index).items()):
                    digest.update(f"{name}:{array.dtype}:{array.shape};".encode())
                    digest.update(np.ascontiguousarray(array).tobytes())
                digest.update(b"start" if chunk.starts(index) else b"next")
        return digest.hexdigest()

    def collect(self) -> Samples:
        """All samples at once, for evaluation. Raises: DataError."""
        return concatenate(self.what, list(self.chunks()), may_differ=self.may_differ)


def open_source(
    text: str,
    folder: Path,
    specs: Sequence[TensorSpec],
    gate: code.CodeGate,
    *,
    raw: Collection[str],
    states: Collection[str],
) -> Source:
    """The data that `text` names, checked as it is read.

    `raw` are inputs with pre-processing steps; `states` are inputs that the model feeds itself.

    Raises: DataError if there is nothing there; SourceError with `--no-code`.
    """
    may_differ = not all(spec.is_static for spec in specs)
    if code.is_reference(text):
        function = code.load(text, folder, "data", gate)
        return Source(text, lambda: _generated(text, function, specs, raw, states), may_differ)
    path = folder / text
    if path.is_dir():
        files = sorted(path.glob("*.npz"))
        if not files:
            raise DataError(f"{path}: no .npz files in this folder; put one array per input name into each")
        return Source(text, lambda: _files(files, specs, raw, states), may_differ)
    if not path.exists():
        raise DataError(
            f"{path}: there is no such file or folder; give an .npz, a folder of .npz, or file.py:function"
        )
    return Source(text, lambda: _files([path], specs, raw, states), may_differ)


def concatenate(what: str, chunks: Sequence[Samples], *, may_differ: bool = False) -> Samples:
    """One `Samples` of several; sequence ids are made distinct between chunks. Raises: DataError."""
    if not chunks:
        raise DataError(f"{what}: gave no sample")
    ragged = [name for chunk in chunks for name, array in chunk.inputs.items() if is_ragged(array)]
    if ragged and not may_differ:
        raise DataError(
            f"{what}: samples of {ragged[0]!r} differ in shape, which only an input with buckets may do; give it some:"
            f" [inputs.{ragged[0]}] shape = [..., [160, 320]]"
        )
    if len(chunks) == 1:
        return chunks[0]
    join = _joined_rows if may_differ else np.concatenate
    try:
        inputs = {name: join([chunk.inputs[name] for chunk in chunks]) for name in chunks[0].inputs}
        labels = (
            None
            if chunks[0].labels is None
            else np.concatenate([np.asarray(chunk.labels) for chunk in chunks])
        )
    except (ValueError, KeyError) as error:
        raise DataError(f"{what}: its parts do not fit together ({error})") from error
    return Samples(inputs=inputs, labels=labels, sequence=_sequences(chunks), slices=_groups(what, chunks))


def _joined_rows(parts: Sequence[Array]) -> Array:
    """The samples of several arrays in one, ragged where their shapes differ."""
    if len({(part.dtype, part.shape[1:]) for part in parts}) == 1:
        return np.concatenate(parts)
    return stacked([np.asarray(row) for part in parts for row in part])


def _groups(what: str, chunks: Sequence[Samples]) -> Any:
    named = [chunk.slices for chunk in chunks if chunk.slices is not None]
    if not named:
        return None
    if len(named) < len(chunks):
        raise DataError(
            f"{what}: some of its parts name the groups of their samples (slices) and some do not"
        )
    return np.concatenate(named)


def _sequences(chunks: Sequence[Samples]) -> Any:
    if all(chunk.sequence is None for chunk in chunks):
        return None
    parts: list[Array] = []
    following = 0
    for chunk in chunks:
        runs = np.cumsum([chunk.starts(index) for index in range(len(chunk))]) - 1
        parts.append(runs + following)
        following += int(runs[-1]) + 1
    return np.concatenate(parts).astype(np.int64)


def _files(
    files: Sequence[Path], specs: Sequence[TensorSpec], raw: Collection[str], states: Collection[str]
) -> Iterator[Samples]:
    for file in files:
        yield load_npz(file, specs, raw=raw, optional=states)


def _generated(
    text: str,
    function: Callable[[], Any],
    specs: Sequence[TensorSpec],
    raw: Collection[str],
    states: Collection[str],
) -> Iterator[Samples]:
    """Each item is `inputs`, `(inputs, label)` or `(inputs, label, sequence)`; a chunk is one sample, or the samples
    of one sequence.
    """
    waiting: list[Samples] = []
    current: Any = None
    for item in _given(text, function):
        inputs, label, sequence = _parts(text, item)
        sample = Samples(
            inputs=_checked(text, inputs, specs, raw, states),
            labels=None if label is None else np.asarray(label)[None],
            sequence=None if sequence is None else np.asarray([sequence], np.int64),
        )
        if waiting and (sequence is None or sequence != current):
            yield _joined(text, waiting)
            waiting = []
        waiting.append(sample)
        current = sequence
    if waiting:
        yield _joined(text, waiting)


def _given(text: str, function: Callable[[], Any]) -> Iterator[Any]:
    """What the user's function gives. Raises: DataError with the place in it that failed."""
    try:
        yield from function()
    except Exception as error:
        raise DataError(f"{text}: the data function failed: {code.told(error)}") from error


def _joined(text: str, parts: list[Samples]) -> Samples:
    joined = concatenate(text, parts, may_differ=True)
    if joined.sequence is None or len(parts) == 1:
        return joined
    return Samples(joined.inputs, joined.labels, np.zeros(len(joined), np.int64))


def _checked(
    text: str,
    inputs: dict[str, Any],
    specs: Sequence[TensorSpec],
    raw: Collection[str],
    states: Collection[str],
) -> dict[str, Array]:
    by_name = {spec.name: spec for spec in specs}
    checked: dict[str, Array] = {}
    for name, value in inputs.items():
        if name not in by_name:
            raise DataError(
                f"{text}: gave {name!r}, which is no input; expected {', '.join(sorted(by_name))}"
            )
        array = np.asarray(value)
        checked[name] = (array if name in raw else _fit(text, by_name[name], array))[None]
    missing = set(by_name) - set(checked) - set(states)
    if missing:
        raise DataError(f"{text}: gave no {', '.join(sorted(missing))}")
    return checked


def _parts(text: str, item: Any) -> tuple[dict[str, Any], Any, Any]:
    if isinstance(item, dict):
        return item, None, None
    if isinstance(item, tuple) and 1 <= len(item) <= 3 and isinstance(item[0], dict):
        label, sequence = (*item[1:], None, None)[:2]
        return item[0], label, sequence
    raise DataError(
        f"{text}: gave a {type(item).__name__}; expected {{name: array}}, or a tuple of that,"
        " a label, and a sequence id"
    )


def _fit(text: str, spec: TensorSpec, array: Array) -> Array:
    if not fits(spec, array.shape) and spec.shape[:1] == (1,) and fits(spec, (1, *array.shape)):
        array = array[None]
    if not fits(spec, array.shape) or array.dtype.kind != np.dtype(spec.dtype).kind:
        have = "x".join(map(str, array.shape)) or "scalar"
        raise DataError(f"{text}: gave {array.dtype} {have}; expected {spec.describe()}")
    return array.astype(spec.dtype)
