"""Whether a board can hold a bundle at all, whatever the contract says.

Pure: figures in, a sentence out.

Always true
 1. Storage holds two bundles: an update is written beside the one that runs.
 2. Only what is certain refuses: memory measured for this profile, or what an accelerator's compiler allocated.
"""

from edgekit.evidence import Compiled
from edgekit.profile import Profile

SLOTS = 2
MEGABYTE = 1_000_000


def grown(size_bytes: int, most_bytes: int) -> str:
    """Why a candidate is too large beside the file that it was made of; empty if it is not, or there is no limit."""
    if not most_bytes or size_bytes <= most_bytes:
        return ""
    return (
        f"size: {size_bytes / MEGABYTE:.4g} MB, made of a file that is quantized already and may grow to"
        f" {most_bytes / MEGABYTE:.4g} MB"
    )


def misfit(profile: Profile, bundle_bytes: int, memory_mb: float | None, compiled: Compiled | None) -> str:
    """Why it does not fit; empty if it does, or if nothing says that it does not."""
    needed_mb = SLOTS * bundle_bytes / MEGABYTE
    if needed_mb > profile.storage_mb:
        return (
            f"storage_mb: {SLOTS} slots of {bundle_bytes / MEGABYTE:.4g} MB (model and self-test) need"
            f" {needed_mb:.4g} MB, and {profile.name} has {profile.storage_mb:g}"
        )
    if memory_mb is not None and memory_mb > profile.memory_mb:
        return f"memory_mb: {memory_mb:.4g} MB at its peak, and {profile.name} has {profile.memory_mb:g}"
    if compiled is None:
        return ""
    if compiled.memory_mb > profile.memory_mb:
        return (
            f"memory_mb: {compiled.compiler} allocates {compiled.memory_mb:.4g} MB, and {profile.name} has"
            f" {profile.memory_mb:g}"
        )
    limit = compiled.sram_limit_kb
    if limit is not None and compiled.sram_kb > limit:
        return (
            f"memory_mode: {compiled.compiler} needs {compiled.sram_kb:g} kB of SRAM, and {compiled.memory_mode}"
            f" gives {limit:g} kB"
        )
    return ""
