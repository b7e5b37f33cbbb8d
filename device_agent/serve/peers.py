"""Whom a connection comes from, so that one client's many connections are known to be his.

A TCP client is his address; a client of a Unix socket is his user; a connection that the front decrypts comes through a
socket pair of the front's own, whose other end is bound to an abstract name that holds the client's address. Only the
front can make one that counts: the kernel says which process made a pair.

Linux only: abstract names (unix(7)) and SO_PEERCRED (socket(7)).
"""

import itertools
import os
import socket
import struct
from dataclasses import dataclass

_PREFIX = b"\0edgekit-tls/"
_serial = itertools.count(1)


@dataclass(frozen=True)
class Peer:
    """`name` tells clients apart. `is_local` has no address of its own, so many programs may share it. What is
    `is_relayed` must come back to the front after each request, which checks its token.
    """

    name: str
    is_local: bool = False
    is_relayed: bool = False


UNKNOWN = Peer("?", is_local=True)


def peer_of(sock: socket.socket) -> Peer:
    """Never raises: a connection that is gone already belongs to nobody."""
    try:
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            address = str(sock.getpeername()[0]).removeprefix("::ffff:")
            return Peer(address, is_local=address.startswith("127.") or address == "::1")
        size = struct.calcsize("3i")
        pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        name = sock.getpeername()
    except OSError:
        return UNKNOWN
    if isinstance(name, bytes) and name.startswith(_PREFIX) and pid in (os.getpid(), os.getppid()):
        return Peer(name.removeprefix(_PREFIX).split(b"/")[0].decode("ascii", "replace"), is_relayed=True)
    return Peer(f"uid {uid}", is_local=True)


def relay_pair(address: str) -> tuple[socket.socket, socket.socket]:
    """A socket pair for a decrypted connection from `address`: the front's own end, and the one that is served.

    Raises: OSError.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        ours.bind(_PREFIX + f"{address}/{os.getpid()}/{next(_serial)}".encode("ascii", "replace"))
    except OSError:
        ours.close()
        theirs.close()
        raise
    return ours, theirs
