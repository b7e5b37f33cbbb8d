"""Files that commands write: never over another, secrets for their owner alone."""

import os
from pathlib import Path

from edgekit.errors import UsageError


def check_new(out: Path) -> None:
    """Raises: UsageError where something is there already, or the folder is not."""
    if out.exists():
        raise UsageError(f"{out}: exists already; remove it or choose another name")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"{out.parent}: there is no such folder")


def write_secret(path: Path, data: bytes) -> None:
    """A new file, 0600 from its first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
