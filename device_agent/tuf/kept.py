"""The metadata that this device has verified, one file a role, under its unversioned name.

Always true
 1. A file holds the whole of one verified version, byte for byte as it came, or it is not there; it is synced.
 2. No role's name leads out of the folder, nor to another role's file: names are percent-encoded, every sign that is
    not a letter, a digit or one of `_.-~`.
 3. What else lies in the folder is neither read nor changed.
"""

from pathlib import Path
from urllib.parse import quote

from device_agent import durable


class Kept:
    """A folder of metadata."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, root: bytes) -> None:
        """Trust `root` from now on; what else is kept goes on guarding against older versions. Raises: OSError."""
        durable.make_folder(self.folder)
        self.write("root", root)

    def read(self, role: str) -> bytes | None:
        """None if it is not there or cannot be read: it is fetched again then."""
        try:
            return self._path(role).read_bytes()
        except OSError:
            return None

    def write(self, role: str, data: bytes) -> None:
        """Raises: OSError."""
        durable.write(self._path(role), data, mode=0o644)

    def _path(self, role: str) -> Path:
        return self.folder / f"{quote(role, safe='')}.json"
