"""A served input with its answer, as one packet from the worker to the shadow's process.

A SEQPACKET socket. From the shadow comes a byte when it wants the next copy, from the worker a copy for each: four bytes with
the length of a JSON head, the head, the arrays one after the other; where that is large, in an anonymous file that goes along.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Mapping

import msgspec
import numpy as np

from edgekit.tensors import V2_DTYPES, Array

# What a packet holds itself; more goes by an anonymous file.
INLINE_BYTES = 64 * 1024
MAX_COPY_BYTES = 256 << 20
WANTED = b"+"
_BY_FILE = b"F"
_LENGTH = struct.Struct("<I")


class Described(msgspec.Struct, frozen=True, array_like=True):
    name: str
    dtype: str
    shape: tuple[int, ...]


class Head(msgspec.Struct, frozen=True):
    """`is_raw`: the inputs are as they came, before pre-processing. `skipped` inputs were served since the last copy
    without one; `took_ms` is the served engine call.
    """

    inputs: tuple[Described, ...]
    outputs: tuple[Described, ...]
    is_raw: bool
    took_ms: float
    skipped: int


class Copy(msgspec.Struct, frozen=True):
    head: Head
    inputs: dict[str, Array]
    outputs: dict[str, Array]


def packed(
    inputs: Mapping[str, Array], outputs: Mapping[str, Array], *, is_raw: bool, took_ms: float, skipped: int
) -> list[bytes]:
    """The pieces of a copy; empty if it has arrays that cannot be copied."""
    arrays = [np.ascontiguousarray(array) for array in (*inputs.values(), *outputs.values())]
    if any(array.dtype.name not in V2_DTYPES for array in arrays):
        return []
    head = msgspec.json.encode(
        Head(_described(inputs), _described(outputs), is_raw, round(took_ms, 4), skipped)
    )
    return [_LENGTH.pack(len(head)), head, *(array.tobytes() for array in arrays)]


def _described(arrays: Mapping[str, Array]) -> tuple[Described, ...]:
    return tuple(Described(name, array.dtype.name, array.shape) for name, array in arrays.items())


def send(sock: socket.socket, pieces: list[bytes]) -> bool:
    """Without waiting; whether it went. Raises: OSError if nobody is there any more."""
    size = sum(map(len, pieces))
    if size > MAX_COPY_BYTES:
        return False
    try:
        if size <= INLINE_BYTES:
            sock.send(b"".join(pieces))
            return True
        memory = os.memfd_create("copy", os.MFD_CLOEXEC)
        try:
            with open(memory, "wb", closefd=False) as file:  # a descriptor has no path
                file.writelines(pieces)
            socket.send_fds(sock, [_BY_FILE], [memory])
        finally:
            os.close(memory)
    except BlockingIOError:
        return False
    return True


def receive(sock: socket.socket) -> Copy | None:
    """The next copy; None if what came is none. Raises: OSError."""
    packet, descriptors, _flags, _address = socket.recv_fds(sock, INLINE_BYTES + 1, 1)
    if descriptors:
        try:
            size = min(os.fstat(descriptors[0]).st_size, MAX_COPY_BYTES)
            packet = os.pread(descriptors[0], size, 0)
        finally:
            os.close(descriptors[0])
    with contextlib.suppress(msgspec.DecodeError, ValueError, TypeError, struct.error):
        return _read(packet)
    return None


def _read(packet: bytes) -> Copy:
    (length,) = _LENGTH.unpack_from(packet)
    at = _LENGTH.size + length
    head = msgspec.json.decode(packet[_LENGTH.size : at], type=Head)
    found: list[dict[str, Array]] = []
    for side in (head.inputs, head.outputs):
        arrays: dict[str, Array] = {}
        for each in side:
            if each.dtype not in V2_DTYPES or min(each.shape, default=0) < 0:
                raise ValueError(each.dtype)
            count = int(np.prod(each.shape, dtype=np.int64))
            array = np.frombuffer(packet, each.dtype, count, at)
            arrays[each.name] = array.reshape(each.shape)
            at += array.nbytes
        found.append(arrays)
    return Copy(head, *found)
