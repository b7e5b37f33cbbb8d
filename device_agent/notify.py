"""What the agent tells the service manager: that it is ready, that it lives, that it ends (sd_notify(3)).

Always true
 1. Without `NOTIFY_SOCKET` nothing is sent; a message that cannot be sent is no reason for anything.
 2. The watchdog is petted from the event loop alone, so an event loop that hangs stops petting it (sd_watchdog_enabled(3)).
 3. What this process starts does not learn the socket.
"""

import asyncio
import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress

_SOCKET, _WATCHDOG_US, _WATCHDOG_PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
# Of the watchdog's time: systemd recommends half, and a loop that is busy may miss one turn.
_SHARE = 3


class Notifier:
    """`pause_s` is how often the manager wants a sign of life; None if it wants none."""

    def __init__(self, address: str = "", pause_s: float | None = None) -> None:
        self.pause_s = pause_s if address else None
        self._address = b"\0" + os.fsencode(address[1:]) if address.startswith("@") else os.fsencode(address)

    def ready(self, status: str) -> None:
        self._tell("READY=1", f"STATUS={status}")

    def stopping(self) -> None:
        self._tell("STOPPING=1", "STATUS=finishing what was begun")

    async def beat(self) -> None:
        """Pet the watchdog for ever, if there is one."""
        while self.pause_s is not None:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(self.pause_s)

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        told = "\n".join(" ".join(line.splitlines()) for line in lines).encode()
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
        ):
            # A manager that does not read must not stop the loop.
            sock.setblocking(False)
            sock.sendto(told, self._address)


def of(environment: MutableMapping[str, str], pid: int) -> Notifier:
    """The notifier that `environment` asks for; the variables are taken out of it."""
    address, every, whose = (environment.pop(name, "") for name in (_SOCKET, _WATCHDOG_US, _WATCHDOG_PID))
    if not address.startswith(("/", "@")):
        return Notifier()
    is_watched = every.isdecimal() and int(every) > 0 and (not whose or whose == str(pid))
    return Notifier(address, int(every) / 1e6 / _SHARE if is_watched else None)
