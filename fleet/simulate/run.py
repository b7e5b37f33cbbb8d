"""A run: devices join, connect, live for a while, and end so that nothing they sent is left open."""

import asyncio
import contextlib
import random
import resource
import secrets
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edgekit import profile as profiles
from edgekit.errors import ProfileError, UsageError
from edgekit.wire.enrolment import is_loopback
from fleet import api
from fleet.client.rest import Client
from fleet.simulate import joining
from fleet.simulate.behaviour import Windows, World
from fleet.simulate.carrier import Carrier
from fleet.simulate.device import Device, Shared
from fleet.simulate.joining import Book
from fleet.simulate.tally import Tally, Told

# Connections from one address to one broker: the kernel has some 28,000 ports for them.
_PER_ADDRESS = 20_000
_SPARE_FILES = 200


@dataclass(frozen=True)
class Wanted:
    """What a run is to be. `per_connection` devices share a connection. `duration_s` None: until it is interrupted; `settle_s` is how long it waits at the end for
    acknowledgements; `ramp` are connections begun per second.
    """

    devices: int
    deployments: tuple[str, ...]
    world: World = field(default_factory=World)
    profiles: tuple[str, ...] = ("x86-64-v3",)
    labels: dict[str, str] = field(default_factory=dict)
    engines: dict[str, str] = field(default_factory=dict)
    state: Path | None = None
    duration_s: float | None = None
    settle_s: float = 30.0
    ramp: float = 500.0
    per_connection: int = 1
    seed: int = 1


def run(wanted: Wanted, client: Client, progress: Callable[[str], None]) -> Told:
    """Raises: UsageError, FleetError."""
    _allow_files(-(-wanted.devices // wanted.per_connection))
    tally = Tally()
    book = _book(wanted, client)
    if book.file.broker.tls and wanted.per_connection > 1:
        raise UsageError(
            "--per-connection: a broker with TLS lets each connection speak for one device only; leave it out"
        )
    new = _names(wanted, book)
    return asyncio.run(_run(wanted, book, new, tally, progress))


def _book(wanted: Wanted, client: Client) -> Book:
    """Who is there already, and a batch file for the others."""
    fleet = client.status().fleet
    book = joining.load(wanted.state, fleet)
    lacking = wanted.devices - len(book.devices if book else ())
    if lacking <= 0 and book is not None:
        return book
    file = client.batch(api.NewBatch(lacking, wanted.deployments, wanted.labels))
    return Book(file, book.devices if book else [])


def _names(wanted: Wanted, book: Book) -> list[tuple[str, str]]:
    prefix = f"sim-{secrets.token_hex(2)}"
    lacking = wanted.devices - len(book.devices)
    return [(f"{prefix}-{n:06}", wanted.profiles[n % len(wanted.profiles)]) for n in range(lacking)]


def _allow_files(count: int) -> None:
    """Each connection is an open file. Raises: UsageError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise UsageError(
                f"--devices {count}: this shell allows {hard} open files; run: ulimit -n {needed}"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


async def _run(
    wanted: Wanted,
    book: Book,
    new: list[tuple[str, str]],
    tally: Tally,
    progress: Callable[[str], None],
) -> Told:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for told in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(told, stopping.set)
    if new:
        await joining.join(
            book, new, wanted.state, tally, lambda: progress(f"enrolled {tally.enrolled} of {len(new)}")
        )
    shared = Shared(
        file=book.file,
        world=wanted.world,
        windows=Windows(wanted.world, wanted.seed),
        tally=tally,
        engines=wanted.engines,
        random=random.Random(wanted.seed),  # noqa: S311  # a simulation, not a secret
        chain={name: _chain(name) for name in {one.profile for one in book.devices}},
    )
    is_here = is_loopback(book.file.broker.host) and ":" not in book.file.broker.host
    devices = [Device(one, shared) for one in book.devices[: wanted.devices]]
    carriers = [
        Carrier(
            devices[at : at + wanted.per_connection],
            shared,
            f"127.0.0.{2 + at // wanted.per_connection // _PER_ADDRESS}" if is_here else None,
        )
        for at in range(0, len(devices), wanted.per_connection)
    ]
    started = time.monotonic()
    telling = asyncio.ensure_future(_tell(len(devices), len(carriers), tally, wanted, progress))
    await _start(carriers, wanted.ramp, stopping)
    with contextlib.suppress(TimeoutError):
        rest = None if wanted.duration_s is None else wanted.duration_s - (time.monotonic() - started)
        await asyncio.wait_for(stopping.wait(), None if rest is None else max(0.01, rest))
    seconds = time.monotonic() - started
    for carrier in carriers:
        carrier.end()
    deadline = time.monotonic() + wanted.settle_s
    while any(carrier.waiting for carrier in carriers) and time.monotonic() < deadline:  # noqa: ASYNC110  # a look at each now and then is cheaper than an event in each
        await asyncio.sleep(0.1)
    made = tally.told(
        devices=len(devices),
        seconds=seconds,
        window_s=wanted.world.window_s,
        waiting=sum(carrier.waiting for carrier in carriers),
    )
    for carrier in carriers:
        carrier.stop()
    telling.cancel()
    await asyncio.sleep(0.5)
    book.devices[: len(devices)] = [device.kept for device in devices]
    joining.save(wanted.state, book)
    return made


async def _start(carriers: list[Carrier], ramp: float, stopping: asyncio.Event) -> None:
    """Connect them one after another, so many a second."""
    began = time.monotonic()
    tasks: set[asyncio.Task[None]] = set()
    for at, carrier in enumerate(carriers):
        if stopping.is_set():
            break
        task = asyncio.ensure_future(carrier.start())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        ahead_s = at / ramp - (time.monotonic() - began)
        if ahead_s > 0.005:
            await asyncio.sleep(ahead_s)
    await asyncio.gather(*tasks)


async def _tell(
    devices: int, connections: int, tally: Tally, wanted: Wanted, progress: Callable[[str], None]
) -> None:
    while True:
        before = tally.reports_made
        await asyncio.sleep(1)
        waiting = tally.reports_made - tally.reports_acknowledged - tally.reports_lost
        progress(
            f"{tally.connected} of {connections} connected, {tally.reports_made - before} reports/s of "
            f"{devices / wanted.world.window_s:.0f}, {tally.reports_acknowledged} acknowledged, {waiting} waiting, "
            f"{tally.orders_followed} orders followed"
        )


def _chain(profile: str) -> tuple[str, ...]:
    try:
        return profiles.load(profile).chain
    except ProfileError:
        return (profile,)
