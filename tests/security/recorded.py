"""A wire that remembers: TCP connections to one port are passed on to another, and every byte of them is kept."""

import contextlib
import socket
import threading
from dataclasses import dataclass, field


@dataclass
class Conversation:
    """One connection: what the device sent, and what it got."""

    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)


class Recorder:
    """Listens on `port` of loopback, and passes everything on to `target`."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.conversations: list[Conversation] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def sent(self) -> list[bytes]:
        """What devices sent, by connection."""
        return [bytes(one.sent) for one in self.conversations]

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                made = Conversation()
                self.conversations.append(made)
                for source, sink, kept in ((client, server, made.sent), (server, client, made.received)):
                    threading.Thread(target=_pump, args=(source, sink, kept), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            kept += data
            sink.sendall(data)
    for end, how in ((sink, socket.SHUT_WR), (source, socket.SHUT_RD)):
        with contextlib.suppress(OSError):
            end.shutdown(how)
