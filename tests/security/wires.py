"""Hosts that are separate, on one machine: network namespaces, and the wires between them, which this process plays.

Not every kernel has netem. So each namespace gets a TAP device whose other end is a descriptor here, and frames come late,
get lost, are cut off, or go to somebody else, as `Wires` is told. Addresses on the wire are fixed; nobody asks for one.
"""

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

Result = TypeVar("Result")

# linux/if_tun.h, sched.h
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
_FRAME_BYTES = 2048


def refusal() -> str:
    """Why there can be no namespaces here; "" if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"ek-try-{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except (OSError, subprocess.CalledProcessError) as error:
        return f"there are no network namespaces here ({error})"
    return ""


@dataclass(frozen=True)
class Host:
    """A namespace with one address on the wires, and its own loopback."""

    name: str
    number: int

    @property
    def space(self) -> str:
        return f"ek{os.getpid()}-{self.number}"

    @property
    def address(self) -> str:
        return f"10.77.0.{self.number}"

    @property
    def mac(self) -> bytes:
        return bytes((2, 0, 0, 0, 0, self.number))

    @property
    def before(self) -> list[str]:
        """What goes before the words of a command that runs there."""
        return ["ip", "netns", "exec", self.space]

    def within(self, work: Callable[[], Result]) -> Result:
        """The result of `work` there; the sockets that it makes stay there. Raises: as `work`."""
        results: list[Result] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                self.enter()
                results.append(work())
            except BaseException as error:  # noqa: BLE001  # raised again by who waits for the thread
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def enter(self) -> None:
        """Take this thread there, for good."""
        descriptor = os.open(f"/run/netns/{self.space}", os.O_RDONLY)
        try:
            if _LIBC.setns(descriptor, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"setns into {self.space}")
        finally:
            os.close(descriptor)


@dataclass
class Wires:
    """`delay_s` and `loss` are of each frame, one way; `cut` hosts hear nobody; of `diverted` hosts whatever they send
    to others arrives at the given one instead.
    """

    delay_s: float = 0.0
    loss: float = 0.0
    cut: set[str] = field(default_factory=set)
    diverted: dict[str, Host] = field(default_factory=dict)
    lost: int = 0
    carried: int = 0

    def __post_init__(self) -> None:
        self.hosts: dict[str, Host] = {}
        self._ends: dict[int, Host] = {}
        self._late: list[tuple[float, int, Host, bytes]] = []
        self._order = itertools.count()
        self._random = random.Random(77)
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def host(self, name: str, number: int, *more: str) -> Host:
        """A new host; `more` are further addresses of it, for which nobody else sends anything to it by itself."""
        made = Host(name, number)
        _ip("netns", "add", made.space)
        self.hosts[name] = made
        device = f"ek{number}"
        end = made.within(lambda: _tap(device))
        there = ("-n", made.space)
        _ip(*there, "link", "set", device, "address", made.mac.hex(":"))
        for address in (f"{made.address}/24", *more):
            _ip(*there, "address", "add", address, "dev", device)
        _ip(*there, "link", "set", device, "up")
        _ip(*there, "link", "set", "lo", "up")
        self._ends[end] = made
        return made

    def begin(self) -> None:
        """After all hosts were made: they learn of each other, and frames flow."""
        for host, other in itertools.permutations(self.hosts.values(), 2):
            self.teach(host, other.address, other)
        self._thread.start()

    def teach(self, host: Host, address: str, owner: Host) -> None:
        where = ("dev", f"ek{host.number}", "nud", "permanent")
        _ip("-n", host.space, "neighbour", "replace", address, "lladdr", owner.mac.hex(":"), *where)

    def close(self) -> None:
        self._is_closed = True
        if self._thread.is_alive():
            self._thread.join(5)
        for end in self._ends:
            os.close(end)
        for host in self.hosts.values():
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", host.space)

    # -- the thread's --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        ears = select.poll()
        for end in self._ends:
            ears.register(end, select.POLLIN)
        while not self._is_closed:
            wait_s = min(0.2, max(0.0, self._late[0][0] - time.monotonic())) if self._late else 0.2
            for end, _ in ears.poll(wait_s * 1000):
                self._take(self._ends[end], os.read(end, _FRAME_BYTES))
            self._deliver(time.monotonic())

    def _take(self, sender: Host, frame: bytes) -> None:
        if sender.name in self.cut:
            return
        whom = [host for host in self.hosts.values() if host.mac == frame[:6]]
        if whom and sender.name in self.diverted:
            whom = [self.diverted[sender.name]]
            frame = whom[0].mac + frame[6:]
        for host in whom:
            if host.name in self.cut:
                continue
            if self._random.random() < self.loss:
                self.lost += 1
                continue
            self.carried += 1
            due = time.monotonic() + self.delay_s * self._random.uniform(0.8, 1.2)
            heapq.heappush(self._late, (due, next(self._order), host, frame))

    def _deliver(self, now: float) -> None:
        ends = {host.name: end for end, host in self._ends.items()}
        while self._late and self._late[0][0] <= now:
            _, _, host, frame = heapq.heappop(self._late)
            with contextlib.suppress(OSError):
                os.write(ends[host.name], frame)


def _tap(device: str) -> int:
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH", device.encode(), _IFF_TAP | _IFF_NO_PI))
    return end


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def wires() -> Iterator[Wires]:
    made = Wires()
    try:
        yield made
    finally:
        made.close()
