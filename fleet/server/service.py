"""`edgekit fleet up`: broker, ingest, controller and HTTP in one process (and the broker's child).

Always true
 1. What was started is stopped, in reverse, however it ends: an error in the middle of the start, Ctrl-C, SIGTERM.
 2. Nothing is announced (client.toml, the printed addresses) before it works.
"""

import logging
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import uvicorn

from edgekit.errors import FleetError
from edgekit.wire.enrolment import BrokerAddress
from fleet.server.api.app import make_app
from fleet.server.api.context import Context
from fleet.server.broker import (
    Address,
    Broker,
    EmbeddedBroker,
    Mosquitto,
    check_free,
    parse_address,
    parse_url,
)
from fleet.server.controller import Controller
from fleet.server.database import Database, sqlite_url
from fleet.server.ingest import Ingest
from fleet.server.link import Link
from fleet.server.state import StateFolder
from fleet.server.store import settings
from fleet.server.store.orders import Issuer
from fleet.tuf import together
from fleet.tuf.online import Chore, Online

log = logging.getLogger(__name__)

_FIRST_CONNECT_S = 5.0


@dataclass(frozen=True)
class Options:
    """What `edgekit fleet up` was asked for."""

    state: Path
    http: str = "127.0.0.1:8080"
    mqtt: str = "127.0.0.1:1883"
    broker: str = "embedded"
    database: str | None = None
    tick_s: float = 1.0


@dataclass(frozen=True)
class Announcement:
    """Where the service listens, once it does."""

    fleet: str
    url: str
    broker: str
    database: str
    client_file: Path
    is_broker_connected: bool


def run(options: Options, announce: Callable[[Announcement], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises: UsageError, ConflictError, FleetError if it cannot start; KeyboardInterrupt if stopped while starting.
    """
    http = parse_address(options.http, "--http")
    signal.signal(signal.SIGTERM, _interrupt)
    with ExitStack() as stack:
        try:
            server, listener, announcement = _start(options, http, stack)
            try:
                announce(announcement)
                server.run(sockets=[listener])
            except KeyboardInterrupt:
                # uvicorn has shut down, and raises the signal that made it do so once more.
                log.info("stopping")
        finally:
            _ignore_interrupts()


def _start(
    options: Options, http: Address, stack: ExitStack
) -> tuple[uvicorn.Server, socket.socket, Announcement]:
    """Everything up to the point of serving; each part registers on the stack how it is stopped."""
    broker_address = parse_address(options.mqtt, "--mqtt") if _is_ours(options) else parse_url(options.broker)
    folder = StateFolder(options.state)
    stack.callback(folder.close)
    check_free(http, "--http")
    listener = socket.create_server((http.host, http.port), family=_family(http), backlog=512)
    stack.callback(listener.close)
    keys = folder.keys()
    database = Database(options.database or sqlite_url(options.state))
    stack.callback(database.close)
    with database.begin() as connection:
        fleet = settings.fleet_id(connection)
        settings.trust_publisher(connection, keys.publisher.keyid, keys.publisher.public_hex)
    tuf = Online(folder.path / "tuf")
    together.start(folder.path, tuf, datetime.now(UTC))
    broker = _broker(options, broker_address, folder.path)
    if broker is not None:
        stack.callback(broker.stop)
        broker.start()
    issuer = Issuer(fleet, keys.order)
    link = Link(broker_address, fleet, shares_telemetry=options.broker != "embedded")
    ingest = Ingest(database, link)
    chores = _Chores(_BrokerWatch(broker), Chore(tuf))
    controller = Controller(database, issuer, link, tick_s=options.tick_s, chores=chores)
    link.on_connect = controller.reconnected
    url = f"http://{http}"
    context = Context(
        database=database,
        folder=folder,
        keys=keys,
        issuer=issuer,
        link=link,
        url=url,
        broker=BrokerAddress(broker_address.host, broker_address.port),
        wake=controller.wake,
        tuf=tuf,
        dropped=ingest.dropped,
    )
    stack.callback(controller.stop)
    controller.start()
    stack.callback(ingest.stop)
    ingest.start()
    stack.callback(link.stop)
    link.start()
    is_connected = _wait_for(lambda: link.is_connected)
    client_file = folder.write_client_file(database, url, time.time())
    config = uvicorn.Config(
        make_app(context), log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=3
    )
    announcement = Announcement(
        fleet, url, str(broker_address), database.shown_url, client_file, is_connected
    )
    return uvicorn.Server(config), listener, announcement


def _is_ours(options: Options) -> bool:
    return options.broker in ("embedded", "mosquitto")


def _broker(options: Options, address: Address, folder: Path) -> Broker | None:
    if options.broker == "embedded":
        return EmbeddedBroker(address, folder)
    if options.broker == "mosquitto":
        return Mosquitto(address, folder)
    return None


class _Chores:
    """Several things to look after, one after the other."""

    def __init__(self, *chores: Callable[[], None]) -> None:
        self._chores = chores

    def __call__(self) -> None:
        for chore in self._chores:
            chore()


class _BrokerWatch:
    """Starts a broker of ours again if it died; the link reconnects by itself, and orders are published again."""

    def __init__(self, broker: Broker | None) -> None:
        self._broker = broker
        self._not_before = 0.0

    def __call__(self) -> None:
        if self._broker is None or self._broker.is_running or time.monotonic() < self._not_before:
            return
        self._not_before = time.monotonic() + 5
        log.warning("the broker on %s died; starting it again", self._broker.address)
        try:
            self._broker.start()
        except FleetError as error:
            log.error("%s", error)  # noqa: TRY400  # the message says it all; it is tried again in 5 s


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address.host else socket.AF_INET


def _wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _FIRST_CONNECT_S
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _ignore_interrupts() -> None:
    """On the way out, which is bounded in time: a second Ctrl-C must not leave half of it running."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
