"""The headers of a bundle's zip, whose members are stored one after the other.

They follow from names, lengths and check sums alone: one instant for all members, the earliest that the format can hold, and
the same attributes. Lengths and places have 32 bits without sign and no ZIP64 record, so a bundle is smaller than 4 GiB;
Python's `zipfile` writes such records from 2 GiB on.

Layout: PKWARE APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.16 (its end).
"""

import struct

MOST_BYTES = (1 << 32) - 1
LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
# Version 2.0, made on Unix; 1980-01-01; a regular file of mode 0644.
_VERSION, _MADE_BY = 20, 3 << 8 | 20
_DATE = 1 << 5 | 1
_ATTRIBUTES = 0o100644 << 16


def local(name: str, length: int, crc: int) -> bytes:
    """What stands before a member."""
    return LOCAL.pack(b"PK\x03\x04", _VERSION, *_shared(name, length, crc), 0) + name.encode()


def central(name: str, length: int, crc: int, start: int) -> bytes:
    """A member's entry in the directory; `start` is where its local header stands."""
    fields = _shared(name, length, crc)
    entry = CENTRAL.pack(b"PK\x01\x02", _MADE_BY, _VERSION, *fields, 0, 0, 0, 0, _ATTRIBUTES, start)
    return entry + name.encode()


def end(count: int, size: int, start: int) -> bytes:
    """What stands behind a directory of that many members and bytes, which begins at `start`."""
    return END.pack(b"PK\x05\x06", 0, 0, count, count, size, start, 0)


def size_of(lengths: dict[str, int]) -> int:
    """Of a whole file of members of these lengths, by name."""
    headers = sum(LOCAL.size + CENTRAL.size + 2 * len(name.encode()) for name in lengths)
    return headers + sum(lengths.values()) + END.size


def _shared(name: str, length: int, crc: int) -> tuple[int, ...]:
    return (0, 0, 0, _DATE, crc, length, length, len(name.encode()))
