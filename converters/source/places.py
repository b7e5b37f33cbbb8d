"""Where the user's machine keeps what a build makes once."""

import os
from pathlib import Path


def cache(name: str) -> Path:
    """A folder of that name in `$EDGEKIT_CACHE`, or else in the user's cache folder (XDG Base Directory Specification)."""
    if own := os.environ.get("EDGEKIT_CACHE"):
        return Path(own) / name
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "edgekit" / name
