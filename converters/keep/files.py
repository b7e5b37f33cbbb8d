"""Files that appear whole or not at all, whatever interrupts."""

from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write beside, then rename; folders are made. Raises: OSError, which names the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        # A full disk is told by a call that knows no name.
        error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)
