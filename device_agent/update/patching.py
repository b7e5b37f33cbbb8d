"""Applying a delta, in a process of its own: `python -m device_agent.confined … device_agent.update.patching`.

A delta is signed, and has its digest before it comes here; but it is compressed, and says how to read, so it is taken
apart where it can break nothing: without keys, network or anything to write, in bounded memory and time.

Always true
 1. The child reads the slot and the delta, and writes the new bundle's bytes to its standard output, nothing else.
 2. Whoever reads them counts and hashes them, and writes them down: what is right the signed digest alone decides.
"""

import argparse
import os
import select
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

from device_agent import confined, parent
from device_agent.blocking import Stopper
from edgekit import delta
from edgekit.errors import EdgeKitError
from edgekit.extracted import Extracted

# The interpreter's share (15 MB), three decompressors of 4 MB each and pieces, whatever the size of the bundle.
MEMORY_BYTES = 96 << 20
# A gigabyte on the slowest board takes a few minutes.
TIMEOUT_S = 900.0
_LOOK_S = 0.2
_PIECE_BYTES = 256 * 1024


def patched(
    state: Path, slot: Path, patch: Path, length: int, stopping: Stopper
) -> Generator[bytes, None, None]:
    """What the child makes of the bundle in `slot`; ends early if it fails, takes too long, or is to stop.

    Blocking. The thread must not end before this does: the child ends with it. Raises: OSError if no process can be had.
    """
    bounds = confined.Bounds(hidden=(state,), readable=(slot, patch), writable=(), memory_bytes=MEMORY_BYTES)
    words = (
        "--parent",
        str(os.getpid()),
        "--slot",
        str(slot),
        "--delta",
        str(patch),
        "--length",
        str(length),
    )
    child = subprocess.Popen(
        confined.command("device_agent.update.patching", bounds, *words),
        stdout=subprocess.PIPE, start_new_session=True, **confined.options(bounds),
    )  # fmt: skip
    assert child.stdout is not None
    deadline = time.monotonic() + TIMEOUT_S
    try:
        while not stopping.is_set and time.monotonic() < deadline:
            ready, _, _ = select.select([child.stdout], [], [], _LOOK_S)
            if not ready:
                continue
            piece = os.read(child.stdout.fileno(), _PIECE_BYTES)
            if not piece:
                return
            yield piece
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Applies a delta; started by 'edgekit agent run'.")
    parser.add_argument("--parent", type=int, required=True, help="the process that this one ends with")
    parser.add_argument("--slot", type=Path, required=True, help="the extracted bundle that it begins from")
    parser.add_argument("--delta", type=Path, required=True)
    parser.add_argument("--length", type=int, required=True, help="bytes of the result, as signed")
    chosen = parser.parse_args()
    parent.die_with(chosen.parent)
    try:
        with Extracted(chosen.slot) as base, chosen.delta.open("rb") as patch:
            for piece in delta.apply(base, patch, chosen.length):
                sys.stdout.buffer.write(piece)
            sys.stdout.flush()
    except (EdgeKitError, OSError, MemoryError) as error:
        sys.exit(f"the delta cannot be applied: {error or type(error).__name__}")


if __name__ == "__main__":
    main()
