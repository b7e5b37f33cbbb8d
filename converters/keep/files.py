"""Files that appear whole or not at all, whatever interrupts."""

import shutil
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write beside, then rename; folders are made. Raises: OSError, which names the file."""
    _whole(path, lambda partial: partial.write_bytes(data))


def place_whole(path: Path, source: Path) -> None:
    """The same of what lies in a file, which may be large. Raises: OSError, which names the file."""
    _whole(path, lambda partial: shutil.copyfile(source, partial))


def _whole(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    try:
        write(partial)
        partial.replace(path)
    except OSError as error:
        # A full disk is told by a call that knows no name.
        error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)
