"""The folder in which a build works, gone when it ends."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekit.errors import ToolFailedError, UsageError

_VARIABLE = "TMPDIR"
# A disk with less than this left is full, whatever a tool made of the error.
FULL_BYTES = 500_000


@contextmanager
def scratch() -> Iterator[Path]:
    """The folder; inside, what tools leave in the temporary folder goes there too, and with it.

    Raises: UsageError for a `$TMPDIR` that cannot be written: Python would take another folder without a word.
    """
    asked = os.environ.get(_VARIABLE)
    if asked and not os.access(asked, os.W_OK | os.X_OK):
        what = "cannot be written" if Path(asked).is_dir() else "there is no such folder"
        raise UsageError(f"${_VARIABLE} is {asked}: {what}; make it, or set {_VARIABLE} to another")
    with tempfile.TemporaryDirectory(prefix="edgekit-build-", dir=asked or None) as name:
        folder = Path(name)
        tools = folder / "tmp"
        tools.mkdir()
        os.environ[_VARIABLE] = str(tools)
        try:
            yield folder
        finally:
            if asked is None:
                del os.environ[_VARIABLE]
            else:
                os.environ[_VARIABLE] = asked


def check_room(folder: Path) -> None:
    """Call it where a tool failed: what lacks the disk fails every candidate, and is no candidate's fault.

    Raises: ToolFailedError.
    """
    if shutil.disk_usage(folder).free < FULL_BYTES:
        raise ToolFailedError(
            f"the disk of {folder.parent} is full; free some space there, or set {_VARIABLE} to a folder on another"
        )
