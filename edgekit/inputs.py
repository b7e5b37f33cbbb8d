"""Input files for `edgekit run`: which are read, and of what kind each is. What the kinds hold stands in `decode`."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from edgekit.decode import Kind, decode
from edgekit.errors import DataError, InputError
from edgekit.manifest import Manifest
from edgekit.samples import Samples

KINDS: Mapping[str, Kind] = {
    ".npz": "npz",
    ".npy": "npy",
    ".json": "json",
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp", ".webp"), "image"),
    **dict.fromkeys((".wav", ".flac"), "audio"),
}


def input_files(paths: Iterable[Path]) -> Iterator[Path]:
    """The files themselves, and in their order the readable ones below each folder.

    Raises: DataError for what is not there, and for a folder without any input.
    """
    for path in paths:
        if path.is_dir():
            found = sorted(entry for entry in path.rglob("*") if entry.suffix.lower() in KINDS)
            if not found:
                raise DataError(f"{path}: no input files in this folder; read are {', '.join(KINDS)}")
            yield from found
        elif path.is_file():
            yield path
        else:
            raise DataError(f"{path}: there is no such file or folder")


def read_input(path: Path, manifest: Manifest) -> Samples:
    """The samples in one file. Raises: DataError naming the file and what is wrong."""
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise DataError(
            f"{path}: {path.suffix or 'a file without suffix'} is not read; use {', '.join(KINDS)}"
        )
    try:
        return decode(kind, path.read_bytes(), manifest).samples
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except InputError as error:
        raise DataError(f"{path}: {error}") from error
