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
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import FrameType

import uvicorn

from edgekit.errors import UsageError
from fleet.rules.retention import DEFAULT
from fleet.server import broker_config, home, signin, tls, trusted
from fleet.server.api.app import make_app
from fleet.server.api.context import Context
from fleet.server.broker import Broker, EmbeddedBroker, KeptUp, Mosquitto, check_free
from fleet.server.certificates import Certificates
from fleet.server.clock import Clock
from fleet.server.controller import Controller
from fleet.server.crew import Crew
from fleet.server.database import Database, sqlite_url
from fleet.server.home import Config
from fleet.server.ingest import Ingest
from fleet.server.link import Link
from fleet.server.logins import BrokerLogin, how_to_log_in, telemetry_group
from fleet.server.monitoring import Monitoring, Watched
from fleet.server.notary import Notary
from fleet.server.places import EMBEDDED, MOSQUITTO, Address, Places, Wanted, settle
from fleet.server.sealing import TARGETS, Seal
from fleet.server.serving import Server
from fleet.server.signin import SignIns
from fleet.server.state import Keys, StateFolder
from fleet.server.store import settings
from fleet.server.store.orders import Issuer
from fleet.server.trusted import TlsFiles, Trust, path_of
from fleet.tuf.online import Chore, Online

log = logging.getLogger(__name__)

_FIRST_CONNECT_S = 5.0


@dataclass(frozen=True)
class Options:
    """What `edgekit fleet up` was asked for; what is empty here is the home's `fleet.toml`'s to say."""

    state: Path
    wanted: Wanted = field(default_factory=Wanted)
    database: str | None = None
    tick_s: float = 1.0
    tls: TlsFiles = field(default_factory=TlsFiles)
    broker_login: BrokerLogin = field(default_factory=BrokerLogin)
    broker_files: Path | None = None
    ca_passphrase: bytes | None = field(default=None, repr=False)
    workers: int = 0


@dataclass(frozen=True)
class Announcement:
    """Where the service listens, once it does. `made` is a home that was made just now."""

    fleet: str
    url: str
    broker: str
    broker_kind: str
    database: str
    client_file: Path
    is_broker_connected: bool
    made: Path | None


def run(options: Options, announce: Callable[[Announcement], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises: UsageError, ConflictError, FleetError if it cannot start; KeyboardInterrupt if stopped while starting.
    """
    config = home.read_config(options.state) if home.is_home(options.state) else None
    places = settle(merged(config, options.wanted))
    signal.signal(signal.SIGTERM, _interrupt)
    with ExitStack() as stack:
        try:
            server, listener, announcement = _start(options, config, places, stack)
            try:
                announce(announcement)
                server.run(sockets=[listener])
            except KeyboardInterrupt:
                # uvicorn has shut down, and raises the signal that made it do so once more.
                log.info("stopping")
        finally:
            _ignore_interrupts()


def merged(config: Config | None, wanted: Wanted) -> Wanted:
    """The options of this start, and behind them the home's."""
    if config is None:
        return wanted
    given = {f.name: value for f in fields(wanted) if (value := getattr(wanted, f.name))}
    return replace(config.wanted, **given)


def _clock(database: Database) -> Clock:
    """The fleet's time, as far as the database has it."""
    clock = Clock()
    with database.read() as connection:
        clock.resume(connection)
    return clock


def _start(
    options: Options, config: Config | None, places: Places, stack: ExitStack
) -> tuple[Server, socket.socket, Announcement]:
    """Everything up to the point of serving; each part registers on the stack how it is stopped."""
    made = None
    if config is None:
        config, made = _make_home(options, places), options.state
    folder = StateFolder(options.state)
    stack.callback(folder.close)
    check_free(places.http, "--http")
    listener = socket.create_server(
        (places.http.host, places.http.port), family=_family(places.http), backlog=512
    )
    stack.callback(listener.close)
    database = Database(options.database or config.database or sqlite_url(options.state))
    stack.callback(database.close)
    home.check_database(database, config)
    trust = trusted.trust(
        config,
        places,
        folder,
        options.tls,
        broker_ca=options.broker_login.authorities,
        passphrase=options.ca_passphrase,
    )
    sign_ins = SignIns(signin.provider(config.oidc, options.state, places.url) if config.oidc else None)
    tuf = Online(folder.path / "tuf")
    broker = _broker(places, folder, trust, config)
    certificates = Certificates(
        database,
        trust.authority,
        config.fleet,
        folder.keys_folder,
        places,
        broker=broker,
        broker_files=options.broker_files,
        is_api_ours=not options.tls.certificate and not config.tls_cert,
    )
    certificates.write_revocations(time.time())
    if broker is not None:
        stack.callback(broker.stop)
        broker.start()
    issuer = _issuer(config, folder, tuf, trust.keys, database)
    notary = Notary(database, config.fleet, trust.keys.audit, folder.path)
    clock = _clock(database)
    has_workers = options.workers > 0
    link = _link(options, places, trust, certificates, clock)
    ingest = Ingest(database, link, clock)
    parts = Watched(
        config.fleet,
        database,
        clock,
        places,
        link,
        ingest,
        notary,
        tuf,
        folder.path,
        has_workers,
        options.broker_files,
        options.tls.certificate or path_of(config.tls_cert),
    )
    monitoring = Monitoring(parts, Seal(trust.keys, TARGETS))
    watch, signing = KeptUp(broker), Chore(tuf)
    crew = stack.enter_context(Crew(options, places))

    def chores() -> None:
        watch()
        crew.watch()
        certificates.keep_fresh(time.time())
        signing()
        notary.sign_if_due(time.time())

    # Only the controller listens: the broker knows the fleet's service by one name, and keeps one connection of it.
    controller = Controller(
        database,
        issuer,
        link,
        clock,
        tick_s=options.tick_s,
        chores=chores,
        on_lead=link.start,
        on_lose=link.stop,
        has_workers=has_workers,
        retention=config.history or DEFAULT,
        samples=folder.samples,
        alarms=monitoring.alarms,
        took=monitoring.metrics.tick,
    )
    link.on_connect = controller.reconnected
    context = Context(
        database=database,
        folder=folder,
        keys=trust.keys,
        issuer=issuer,
        link=link,
        places=places,
        certificates=certificates,
        ca_bundle=trust.bundle,
        wake=controller.wake,
        tuf=tuf,
        notary=notary,
        metrics=monitoring.metrics,
        dropped=ingest.dropped,
        time=clock,
        is_controller=lambda: controller.is_leading,
        sign_ins=sign_ins,
    )
    # On the way out the lock is the last to go: who takes over finds nobody else at the broker.
    stack.callback(controller.stop)
    stack.callback(ingest.stop)
    stack.callback(link.stop)
    stack.callback(monitoring.stop)
    ingest.start()
    controller.start()
    monitoring.start(controller)
    is_connected = not controller.is_leading or _wait_for(lambda: link.is_connected)
    announcement = _announcement(context, is_connected, made)
    return Server(_uvicorn(context, trust, certificates), context.hub), listener, announcement


def _announcement(context: Context, is_connected: bool, made: Path | None) -> Announcement:
    """What is said of a service that works; its client.toml is written first."""
    places, database = context.places, context.database
    pins = context.ca_bundle if places.url.startswith("https:") else ""
    client_file = context.folder.write_client_file(database, places.url, pins, time.time())
    return Announcement(
        context.issuer.fleet,
        places.url,
        f"mqtt{'s' if places.announced.tls else ''}://{places.announced.host}:{places.announced.port}",
        places.broker,
        database.shown_url,
        client_file,
        is_connected,
        made,
    )


def _issuer(config: Config, folder: StateFolder, tuf: Online, keys: Keys, database: Database) -> Issuer:
    """Raises: ConflictError if the database's devices do not know the key."""
    with database.read() as connection:
        above = settings.number(connection, settings.ORDERS_ABOVE)
    key = folder.take_order_key(tuf.order_keys(), keys.order)
    home.check_order_key(database, key.keyid, tuf.order_keys())
    return Issuer(config.fleet, key, above)


def _link(options: Options, places: Places, trust: Trust, certificates: Certificates, clock: Clock) -> Link:
    """The connection to the broker, not started yet."""
    return Link(
        places.mqtt,
        certificates.fleet,
        how_to_log_in(options.broker_login, places, options.broker_files, certificates.service_context),
        clock,
        telemetry_group=None if places.broker == EMBEDDED else telemetry_group(trust.keys.secrets),
        has_telemetry=not options.workers,
    )


def _make_home(options: Options, places: Places) -> Config:
    """A home made in passing, for a fleet that stays on this machine. Raises: UsageError for any other."""
    if not places.is_local:
        raise UsageError(
            f"{options.state}: no fleet's home yet; make it first, once: edgekit fleet init {options.state} "
            "--public-url https://HOST:PORT --mqtt-public mqtts://HOST:PORT"
        )
    return home.create(options.state, {}, options.database, options.ca_passphrase, time.time())


def _broker(places: Places, folder: StateFolder, trust: Trust, config: Config) -> Broker | None:
    if places.broker == EMBEDDED:
        return EmbeddedBroker(places.mqtt, folder.path)
    if places.broker != MOSQUITTO:
        return None
    path = folder.path / broker_config.CONFIG
    if places.has_mqtt_tls:
        files = home.server_files(
            folder.keys_folder, trust.authority, config.fleet, places.hosts, time.time()
        )
        text = broker_config.in_home(folder.path, files, places)
    else:
        text = broker_config.plain(places.mqtt.host, places.mqtt.port)
    path.write_text(text, encoding="utf-8")
    return Mosquitto(places.mqtt, path, has_websockets=places.websocket_listener is not None)


def _uvicorn(context: Context, trust: Trust, certificates: Certificates) -> uvicorn.Config:
    config = uvicorn.Config(
        make_app(context),
        http=tls.Protocol,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=3,
        # Only with --plain-http is there a proxy, on this machine, whose word on where a request comes from counts.
        proxy_headers=context.places.url.startswith("https:") and not context.places.has_tls,
        forwarded_allow_ips=["127.0.0.1", "::1"],
    )
    config.load()
    if trust.api is not None:
        try:
            config.ssl = tls.server_context(trust.api.certificate, trust.api.key, [trust.authority.pem])
        except OSError as error:
            raise UsageError(
                f"{trust.api.certificate}, {trust.api.key}: cannot be used for TLS ({error})"
            ) from error
        certificates.api_context = config.ssl
    return config


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
