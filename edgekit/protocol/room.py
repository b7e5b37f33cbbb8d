"""How much room an update needs: one rule, which the fleet plans by and the device decides by."""

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
