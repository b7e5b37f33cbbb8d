"""What hardware this is, so that a state folder that was copied with its card is told from the original.

A mark is something that a maker wrote into a part: it stays when the card is written anew, and does not travel with a
copy. /etc/machine-id is no mark, since it is a file. Where a board has several, the strongest kind decides that both
sides know, so that another network adapter or a changed SD card makes no other device of a board with a serial number.

Always true
 1. Marks are kept and sent as hashes.
 2. Hardware that cannot be told apart (a virtual machine without marks) is taken for the same.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

# The folder that stands for `/` here: for tests, and for containers that see their host's elsewhere.
ROOT_VARIABLE = "EDGEKIT_HARDWARE_ROOT"
# What makers leave in where a serial number should be; the UUID is one that many boards share.
_PLACEHOLDERS = frozenset(
    {"", "none", "n/a", "default string", "not specified", "not applicable", "to be filled by o.e.m.",
     "system serial number", "unknown", "03000200-0400-0500-0006-000700080009"}
)  # fmt: skip


class Hardware(msgspec.Struct, frozen=True):
    """Hashes of the marks by kind, and the kinds that are there but may not be read by this user."""

    marks: dict[str, tuple[str, ...]] = {}
    unreadable: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """The first mark of the strongest kind, as sha256 in hex; empty where there is none."""
        return next((self.marks[kind][0] for kind in KINDS if kind in self.marks), "")


def root() -> Path:
    return Path(os.environ.get(ROOT_VARIABLE) or "/")


def look(place: Path) -> Hardware:
    """The marks of the hardware whose `/proc` and `/sys` lie below `place`."""
    marks: dict[str, tuple[str, ...]] = {}
    unreadable: list[str] = []
    for kind, (find, _told) in KINDS.items():
        try:
            found = sorted({_digest(kind, value) for value in find(place) if _is_mark(value)})
        except PermissionError:
            unreadable.append(kind)
            continue
        if found:
            marks[kind] = tuple(found)
    return Hardware(marks, tuple(unreadable))


def difference(kept: Hardware, now: Hardware) -> str:
    """How the hardware differs from what was kept of it, in words; empty if it is, or may be, the same.

    Where one kind has several marks (network adapters), one in common is enough.
    """
    for kind, (_find, told) in KINDS.items():
        if kind in kept.marks and kind in now.marks:
            return "" if set(kept.marks[kind]) & set(now.marks[kind]) else f"its {told} is another"
    if not kept.marks or not now.marks or set(kept.marks) & set(now.unreadable):
        return ""
    return "nothing that identified it is here"


def serial(place: Path) -> str:
    """The serial number that a person can read on the board or ask it for; empty where there is none."""
    for find in (_board, _product):
        try:
            found = [value for value in find(place) if _is_mark(value)]
        except PermissionError:
            continue
        if found:
            return found[0]
    return ""


def _is_mark(value: str) -> bool:
    # A serial of one repeated digit was never written.
    return value.lower() not in _PLACEHOLDERS and len(set(value) - set(":-. ")) > 1


def _digest(kind: str, value: str) -> str:
    return hashlib.sha256(f"{kind}:{value.lower()}".encode()).hexdigest()


def _text(path: Path) -> str:
    """A small file's text; empty if it is not there. Raises: PermissionError."""
    try:
        return path.read_bytes().rstrip(b"\0\n").decode("utf-8", "replace").strip()
    except PermissionError:
        raise
    except OSError:
        return ""


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _board(place: Path) -> Iterator[str]:
    """Of boards with a device tree; a Raspberry Pi has it in cpuinfo too, where containers see it."""
    yield _text(place / "sys/firmware/devicetree/base/serial-number")
    for line in _text(place / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "Serial":
            yield value.strip()


def _product(place: Path) -> Iterator[str]:
    """Of boards with a BIOS (SMBIOS 3.7, 7.2.1 and 7.3); only root may read them."""
    yield _text(place / "sys/class/dmi/id/product_uuid")
    yield _text(place / "sys/class/dmi/id/board_serial")


def _storage(place: Path, kind: str) -> Iterator[str]:
    """The CID register, which the maker of a card or a soldered memory wrote (JESD84-B51, 7.2)."""
    for block in _entries(place / "sys/block"):
        if block.name.startswith("mmcblk") and _text(block / "device/type") == kind:
            yield _text(block / "device/cid")


def _adapters(place: Path) -> Iterator[str]:
    """Addresses that adapters were made with: not virtual, not random, not given by an administrator."""
    for adapter in _entries(place / "sys/class/net"):
        if not (adapter / "device").exists() or _text(adapter / "addr_assign_type") != "0":
            continue
        address = _text(adapter / "address")
        # Bit 1 of the first byte: locally administered (IEEE 802, 8.2.2), as virtual machines have it.
        if len(address) == 17 and not int(address[:2], 16) & 2:
            yield address


# Strongest first: how each kind of mark is found, and what it is called.
KINDS: dict[str, tuple[Callable[[Path], Iterator[str]], str]] = {
    "board": (_board, "serial number"),
    "product": (_product, "system UUID"),
    "emmc": (lambda place: _storage(place, "MMC"), "soldered memory"),
    "adapter": (_adapters, "network adapter"),
    "card": (lambda place: _storage(place, "SD"), "SD card"),
}
