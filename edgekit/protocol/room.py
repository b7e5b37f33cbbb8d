"""How much room an update needs, on disk and in memory: rules that the fleet plans by and the device decides by."""

# What stays free beside the download and its extracted copy: state files, the spool, what engines compile.
RESERVE_BYTES = 64 << 20


def needed(length: int, have: int = 0) -> int:
    """Bytes that must be free to fetch and extract a bundle of `length` bytes, `have` of which are here already."""
    return 2 * length - have + RESERVE_BYTES


def refusal(free: int, length: int, have: int = 0) -> str:
    """Why a device with `free` bytes cannot take the bundle now; empty if it can."""
    if free >= needed(length, have):
        return ""
    return f"not enough space: {free >> 20} MiB free, {needed(length, have) >> 20} MiB needed"


def memory_refusal(free_mb: float | None, peak_mb: float | None, running_mb: float, *, overlap: bool) -> str:
    """Why a bundle that takes `peak_mb` at most does not fit now; empty if it does, or a figure is not known.

    `free_mb` is what can still be taken while what runs in its place holds `running_mb`: with `overlap` both are there
    at once, otherwise the new one takes the old one's.
    """
    if free_mb is None or peak_mb is None:
        return ""
    if peak_mb <= free_mb + (0.0 if overlap else running_mb):
        return ""
    how = "beside" if overlap else "in place of"
    return f"not enough memory: needs {peak_mb:.0f} MB {how} the {running_mb:.0f} MB of what runs, {free_mb:.0f} MB are free"
