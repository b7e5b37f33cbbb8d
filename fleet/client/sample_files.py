"""Downloaded samples as files: `.npz` archives that a build takes as `[data]`, and an index of what is in them.

    raw.npz      what pre-processing takes, one array an input: `[data] calibration = "raw.npz"`, or evaluation
    tensors.npz  what came as tensors of a model with pre-processing; only where some did
    index.json   in the order of the arrays: device, reason, digest, confidence, time, what the model answered

Samples of several shapes are written as `edgekit.samples` has them. What cannot be read is left out, and told.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from edgekit.errors import DataError, EdgeKitError, UsageError
from edgekit.samples import Samples, dump_npz, load_arrays, stacked
from edgekit.tensors import Array
from edgekit.transforms.post import as_json
from edgekit.wire.samples import INPUT, OUTPUT, Kind, unpack
from fleet import api

INDEX = "index.json"
# Larger answers, such as a segmentation, are left in the sample's own file.
_MOST_ANSWERED = 1000


class Entry(msgspec.Struct, frozen=True):
    """One sample: where it is (`row` of `file`), what is known of it, and what the model answered, by output."""

    file: str
    row: int
    about: api.SampleView
    outputs: dict[str, Any]


class Written(msgspec.Struct, frozen=True):
    """What a download wrote: how many samples each file has, and what could not be read (sha256 and why)."""

    out: str
    files: dict[str, int]
    unreadable: tuple[tuple[str, str], ...] = ()


class _Kind:
    """Samples of one kind that have the same inputs."""

    def __init__(self) -> None:
        self.inputs: list[dict[str, Array]] = []
        self.entries: list[tuple[api.SampleView, dict[str, Array]]] = []


def write(out: Path, found: Iterable[tuple[api.SampleView, bytes]]) -> Written:
    """Into a new folder. Raises: UsageError if there is something already, or it cannot be written."""
    try:
        out.mkdir(parents=True, mode=0o700)
    except FileExistsError as error:
        raise UsageError(f"{out}: exists already; choose another folder, or remove it") from error
    except OSError as error:
        raise UsageError(f"{out}: cannot be made ({error.strerror})") from error
    kinds: dict[Kind, _Kind] = {}
    unreadable = []
    for view, data in found:
        try:
            inputs, outputs = _parts(data)
            group = kinds.setdefault(view.kind, _Kind())
            if group.inputs and not _is_alike(group.inputs[0], inputs):
                raise DataError("its inputs have other names, types or axes than those before it")
        except EdgeKitError as error:
            unreadable.append((view.sha256, str(error)))
            continue
        group.inputs.append(inputs)
        group.entries.append((view, outputs))
    files = {f"{kind}.npz": _save(out / f"{kind}.npz", group.inputs) for kind, group in kinds.items()}
    index = list(_entries(kinds))
    _put(out / INDEX, msgspec.json.format(msgspec.json.encode(index), indent=1))
    return Written(str(out), files, tuple(unreadable))


def _parts(data: bytes) -> tuple[dict[str, Array], dict[str, Array]]:
    """Inputs and outputs by name. Raises: MessageError, DataError."""
    _about, archive = unpack(data)
    arrays = load_arrays(archive)
    inputs = {name.removeprefix(INPUT): array for name, array in arrays.items() if name.startswith(INPUT)}
    outputs = {name.removeprefix(OUTPUT): array for name, array in arrays.items() if name.startswith(OUTPUT)}
    if not inputs:
        raise DataError("a sample without an input")
    return inputs, outputs


def _is_alike(first: dict[str, Array], other: dict[str, Array]) -> bool:
    return first.keys() == other.keys() and all(
        (first[name].dtype, first[name].ndim) == (other[name].dtype, other[name].ndim) for name in first
    )


def _save(path: Path, inputs: list[dict[str, Array]]) -> int:
    arrays = {name: stacked([one[name] for one in inputs]) for name in inputs[0]}
    _put(path, dump_npz(Samples(arrays)))
    return len(inputs)


def _entries(kinds: dict[Kind, _Kind]) -> Iterator[Entry]:
    for kind, group in kinds.items():
        for row, (view, outputs) in enumerate(group.entries):
            yield Entry(f"{kind}.npz", row, view, {name: _told(array) for name, array in outputs.items()})


def _told(array: Array) -> Any:
    if array.size > _MOST_ANSWERED or array.dtype.kind not in "fiub":
        return None
    return as_json(array)


def _put(path: Path, data: bytes) -> None:
    """Inputs are people's: for their owner alone."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as sink:
        sink.write(data)
