"""Input files for `edgekit run`: what each kind of file holds, as samples of a bundle's inputs.

| kind | holds |
|---|---|
| `.npz` | samples along the first axis, one array per input name; `sequence` ids for stateful models |
| `.npy` | one sample of the only input |
| `.json` | one sample: an object with one (nested) list per input name, or the bare list of the only input |
| image | one sample of the only input, HxWx3 uint8 RGB, for bundles that pre-process it; needs Pillow |

States are not inputs here: they start as zeros. Decoding an image is outside the promise that the same bytes give
the same tensor (decoders differ).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np

from edgekit.distribution import extra
from edgekit.errors import DataError
from edgekit.manifest import Manifest, TensorSpec
from edgekit.samples import Samples, load_npz
from edgekit.tensors import Array

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def input_files(paths: Iterable[Path]) -> Iterator[Path]:
    """The files themselves, and in their order the readable ones below each folder.

    Raises: DataError for what is not there, and for a folder without any input.
    """
    for path in paths:
        if path.is_dir():
            found = sorted(entry for entry in path.rglob("*") if entry.suffix.lower() in READERS)
            if not found:
                raise DataError(f"{path}: no input files in this folder; read are {', '.join(READERS)}")
            yield from found
        elif path.is_file():
            yield path
        else:
            raise DataError(f"{path}: there is no such file or folder")


def read_input(path: Path, manifest: Manifest) -> Samples:
    """The samples in one file. Raises: DataError naming the file and what is wrong."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: {path.suffix or 'a file without suffix'} is not read; use {', '.join(READERS)}"
        )
    return reader(path, manifest)


def _npz(path: Path, manifest: Manifest) -> Samples:
    return load_npz(
        path,
        manifest.admitted,
        raw=tuple(manifest.preprocess),
        optional=tuple(pair.input for pair in manifest.state),
    )


def _npy(path: Path, manifest: Manifest) -> Samples:
    spec = _only_input(path, manifest)
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: not a plain .npy array, or damaged ({error})") from error
    return _one_sample({spec.name: array})


def _json(path: Path, manifest: Manifest) -> Samples:
    try:
        value = msgspec.json.decode(path.read_bytes())
    except msgspec.DecodeError as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    given = value if isinstance(value, dict) else {_only_input(path, manifest).name: value}
    specs = {spec.name: spec for spec in manifest.admitted}
    unknown = sorted(set(given) - set(specs))
    if unknown:
        raise DataError(f"{path}: {unknown[0]!r} is no input; the model takes {', '.join(specs)}")
    return _one_sample({name: _array(path, specs[name], manifest, entry) for name, entry in given.items()})


def _array(path: Path, spec: TensorSpec, manifest: Manifest, value: object) -> Array:
    """Numbers as the declared type, or, before pre-processing, as float32 or int64 by what they are."""
    refused = f"{path}: {spec.name!r} is no rectangular list of {spec.dtype} values"
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{refused}: {error}") from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"{refused}, but of {array.dtype}")
    if spec.name in manifest.preprocess:
        return array.astype(np.float32) if array.dtype == np.float64 else array
    cast: Array = array.astype(spec.dtype)
    if cast.dtype.kind in "biu" and not np.array_equal(cast, array):
        raise DataError(f"{refused}: some do not fit that type")
    return cast


def _image(path: Path, manifest: Manifest) -> Samples:
    spec = _only_input(path, manifest)
    if spec.name not in manifest.preprocess:
        raise DataError(
            f"{path}: {manifest.title} has no pre-processing for {spec.name!r}, so it takes no images;"
            f" give it {spec.describe()} as .npy, .npz or .json"
        )
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise DataError(f"{path}: images need Pillow; {extra('images')}") from error
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise DataError(f"{path}: not a readable image: {error}") from error
    return _one_sample({spec.name: pixels})


def _only_input(path: Path, manifest: Manifest) -> TensorSpec:
    states = {pair.input for pair in manifest.state}
    specs = [spec for spec in manifest.admitted if spec.name not in states]
    if len(specs) != 1:
        raise DataError(
            f"{path}: the model takes {len(specs)} inputs ({', '.join(spec.name for spec in specs)});"
            " name them in an .npz or a .json object"
        )
    return specs[0]


def _one_sample(arrays: Mapping[str, Array]) -> Samples:
    return Samples({name: array[None] for name, array in arrays.items()})


READERS: Mapping[str, Callable[[Path, Manifest], Samples]] = {
    ".npz": _npz,
    ".npy": _npy,
    ".json": _json,
    **dict.fromkeys(IMAGES, _image),
}
