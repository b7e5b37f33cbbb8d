"""Files that appear whole or not at all, whatever interrupts."""

from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write beside, then rename; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
