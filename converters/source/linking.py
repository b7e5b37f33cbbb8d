"""A file under a second name: linked where it is large, so that weights are neither held nor copied.

Always true
 1. The two names hold the same bytes. Whoever keeps a linked file for later compares digests: its owner may write into it.
 2. A copy goes piece by piece.
"""

import os
import shutil
from pathlib import Path

# What is smaller is copied in no time, and nobody can change it from outside.
LEAST_BYTES = 64_000_000


def put(source: Path, target: Path, *, least_bytes: int = LEAST_BYTES) -> None:
    """Raises: OSError."""
    if source.stat().st_size >= least_bytes:
        try:
            # What a link of the user's points to, such as a file of a download cache.
            os.link(source.resolve(), target)
        except OSError:
            # Another file system, another's file, or one that takes no links.
            pass
        else:
            return
    shutil.copyfile(source, target)
