"""Samples that stand in memory, written down as the files that a build reads.

Always true
 1. The same samples give the same bytes.
 2. An iterable is read once, and only as many of its samples are in memory as a file holds.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import DataError
from edgekit.samples import LABELS, SEQUENCE, SLICES, dump_arrays, stacked
from edgekit.tensors import Array

# Samples of an iterable that go into one file.
_IN_A_FILE = 256


def write(what: str, value: Any, names: Sequence[str], path: Path) -> Path:
    """The file, or a folder of them for an iterable; `path` has no suffix. `what` names the samples in errors, `names` are
    the model's inputs as far as they are known.

    Raises: DataError for what are no samples.
    """
    named = as_arrays(what, value, names)
    if named is not None:
        file = path.with_suffix(".npz")
        file.write_bytes(dump_arrays(_text_as_text(named)))
        return file
    if not isinstance(value, Iterable):
        raise DataError(
            f"{what}: a {type(value).__name__} holds no samples; give {{input: array}}, (arrays, labels), an iterable of"
            " (inputs, label), or a path"
        )
    path.mkdir()
    for index, chunk in enumerate(_chunks(_samples(what, value, names))):
        (path / f"{index:06}.npz").write_bytes(dump_arrays(_stacked(what, chunk)))
    if not any(path.iterdir()):
        raise DataError(f"{what}: gave no sample")
    return path


def write_slices(names: Any, path: Path) -> Path:
    """The group of each sample, (N,), as `[data] slices` reads it."""
    path.write_bytes(dump_arrays(_text_as_text({SLICES: _array(names)})))
    return path


def as_arrays(what: str, value: Any, names: Sequence[str]) -> dict[str, Array] | None:
    """Whole arrays by name; None for an iterable of single samples."""
    if isinstance(value, Mapping):
        return {str(name): _array(array) for name, array in value.items()}
    if _is_array(value):
        return {_only(what, names): _array(value)}
    if isinstance(value, tuple) and len(value) == 2 and not isinstance(value[0], tuple):
        arrays, labels = value
        if labels is None and (isinstance(arrays, Mapping) or _is_array(arrays)):
            return as_arrays(what, arrays, names)
        if (isinstance(arrays, Mapping) or _is_array(arrays)) and _is_array(labels):
            found = as_arrays(what, arrays, names)
            assert found is not None
            return {**found, LABELS: _array(labels)}
    return None


def _samples(what: str, items: Iterable[Any], names: Sequence[str]) -> Iterator[dict[str, Array]]:
    """Each item's arrays, reserved names for its label and its sequence."""
    for item in items:
        parts = item if isinstance(item, tuple) else (item,)
        if not 1 <= len(parts) <= 3 or not (isinstance(parts[0], Mapping) or _is_array(parts[0])):
            raise DataError(
                f"{what}: gave a {type(item).__name__}; expected inputs, (inputs, label) or (inputs, label, sequence id)"
            )
        inputs = parts[0] if isinstance(parts[0], Mapping) else {_only(what, names): parts[0]}
        found = {str(name): _array(array) for name, array in inputs.items()}
        reserved = zip((LABELS, SEQUENCE), parts[1:], strict=False)
        yield found | {name: _array(part) for name, part in reserved if part is not None}


def _chunks(samples: Iterator[dict[str, Array]]) -> Iterator[list[dict[str, Array]]]:
    """So many together; a sequence is not torn apart, since each file's are its own."""
    waiting: list[dict[str, Array]] = []
    for sample in samples:
        is_next = bool(waiting) and SEQUENCE in sample and sample[SEQUENCE] == waiting[-1].get(SEQUENCE)
        if len(waiting) >= _IN_A_FILE and not is_next:
            yield waiting
            waiting = []
        waiting.append(sample)
    if waiting:
        yield waiting


def _stacked(what: str, chunk: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    if any(set(sample) != set(chunk[0]) for sample in chunk):
        raise DataError(f"{what}: one sample has other inputs than the next, or a label where that has none")
    return {name: stacked([sample[name] for sample in chunk]) for name in chunk[0]}


def _only(what: str, names: Sequence[str]) -> str:
    """Raises: DataError where a bare array could be any input's."""
    if len(names) == 1:
        return names[0]
    have = (
        f"the model takes {', '.join(names)}"
        if names
        else "the model's inputs have no names yet (inputs=...)"
    )
    raise DataError(f"{what}: a bare array, and {have}; give {{name: array}}")


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") and hasattr(value, "shape")


def _array(value: Any) -> Array:
    """numpy's, of a tensor on any device too."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value)


def _text_as_text(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Names of groups may come as objects or numbers; everything else stays as it is."""
    if SLICES not in arrays:
        return dict(arrays)
    names = arrays[SLICES]
    unnamed = [index for index, name in enumerate(names.ravel()) if name is None or name != name]  # noqa: PLR0124  # NaN
    if unnamed:
        raise DataError(
            f"slices name no group for {len(unnamed)} samples (the first is {unnamed[0]}, counted from 0); give each sample one,"
            " 'other' perhaps"
        )
    return {**arrays, SLICES: arrays[SLICES].astype(str)}
