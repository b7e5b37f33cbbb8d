"""As much of MQTT 5 as a virtual device speaks, as bytes: a hundred thousand connections leave no room for a thread, or
a client library's state, for each. Pure.

Source: MQTT Version 5.0, OASIS Standard, sections named below.
"""

from collections.abc import Iterator
from typing import NamedTuple

CONNACK, PUBLISH, PUBACK, SUBACK, PINGRESP, DISCONNECT = 2, 3, 4, 9, 13, 14
PING_REQUEST = b"\xc0\x00"
GOODBYE = b"\xe0\x00"
# Property identifiers (2.2.2.2) of a CONNACK that matter here.
_RECEIVE_MAXIMUM = 0x21
_WIDTHS = {
    0x11: 4,
    0x24: 1,
    0x25: 1,
    0x27: 4,
    0x22: 2,
    0x28: 1,
    0x29: 1,
    0x2A: 1,
    0x13: 2,
    _RECEIVE_MAXIMUM: 2,
}


class Will(NamedTuple):
    """What the broker says, and keeps, when the connection ends without a goodbye."""

    topic: str
    payload: bytes


class Published(NamedTuple):
    """A message from the broker; `number` is None for QoS 0."""

    topic: str
    payload: bytes
    number: int | None


def connect(client: str, will: Will, keepalive_s: int) -> bytes:
    """3.1: a clean start, and a retained will of QoS 1."""
    flags = 0x02 | 0x04 | 0x08 | 0x20
    head = _text("MQTT") + bytes((5, flags)) + keepalive_s.to_bytes(2) + b"\x00"
    payload = _text(client) + b"\x00" + _text(will.topic) + len(will.payload).to_bytes(2) + will.payload
    return _packet(0x10, head + payload)


def subscribe(number: int, topics: tuple[tuple[str, int], ...]) -> bytes:
    """3.8: topics with the QoS that is asked for."""
    wanted = b"".join(_text(topic) + bytes((qos,)) for topic, qos in topics)
    return _packet(0x82, number.to_bytes(2) + b"\x00" + wanted)


def publish(topic: str, payload: bytes, number: int, *, retain: bool) -> bytes:
    """3.3, QoS 1."""
    return _packet(0x32 | retain, _text(topic) + number.to_bytes(2) + b"\x00" + payload)


def puback(number: int) -> bytes:
    """3.4, success."""
    return b"\x40\x02" + number.to_bytes(2)


def packets(data: bytearray) -> Iterator[tuple[int, int, bytes]]:
    """(type, flags, body) of each whole packet at the front of `data`, which is taken away from it.

    Raises: ValueError for a length that is none.
    """
    start = 0
    try:
        while (found := _length(data, start + 1)) is not None:
            length, at = found
            if len(data) < at + length:
                break
            yield data[start] >> 4, data[start] & 15, bytes(data[at : at + length])
            start = at + length
    finally:
        del data[:start]


def read_publish(flags: int, body: bytes) -> Published:
    """3.3 as received. Raises: IndexError, UnicodeDecodeError for what is none."""
    length = int.from_bytes(body[:2])
    topic, at = body[2 : 2 + length].decode(), 2 + length
    number = None
    if flags & 0x06:
        number, at = int.from_bytes(body[at : at + 2]), at + 2
    properties, at = _length(body, at) or (0, at)
    return Published(topic, body[at + properties :], number)


def read_connack(body: bytes) -> tuple[int, int]:
    """3.2: (reason code, how many QoS 1 messages may be under way to the broker)."""
    at, most = 3, 65_535
    while at < len(body) and body[at] in _WIDTHS:
        width = _WIDTHS[body[at]]
        if body[at] == _RECEIVE_MAXIMUM:
            most = int.from_bytes(body[at + 1 : at + 1 + width])
        at += 1 + width
    return body[1], most


def _packet(head: int, body: bytes) -> bytes:
    return bytes((head,)) + _varint(len(body)) + body


def _text(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(2) + data


def _varint(value: int) -> bytes:
    """1.5.5."""
    made = bytearray()
    while True:
        value, digit = divmod(value, 128)
        made.append(digit | (0x80 if value else 0))
        if not value:
            return bytes(made)


def _length(data: bytes | bytearray, at: int) -> tuple[int, int] | None:
    """(value, where it ends) of a variable byte integer; None while it is not whole. Raises: ValueError."""
    value = 0
    for place in range(4):
        if at + place >= len(data):
            return None
        digit = data[at + place]
        value |= (digit & 0x7F) << (7 * place)
        if not digit & 0x80:
            return value, at + place + 1
    raise ValueError("a length of more than four bytes")
