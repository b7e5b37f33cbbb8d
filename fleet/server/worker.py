"""`edgekit fleet worker`: takes reports in, beside the service; any number of them share the work.

Always true
 1. It keeps nothing that another could not take up: a report is in the database, or its device sends it again.
 2. It goes by the time that the controller keeps, and says every `BEAT_S` that it is there and whether it hears.
 3. Two workers on one machine never show the broker the same name.
"""

import contextlib
import fcntl
import logging
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from sqlalchemy.exc import SQLAlchemyError

from edgekit.errors import ConflictError, HardwareKeyError, UsageError
from fleet.publish import load_key
from fleet.server import home
from fleet.server.ca import MOST_WORKERS, Authority, worker_name
from fleet.server.clock import Clock
from fleet.server.database import Database, sqlite_url
from fleet.server.home import Config
from fleet.server.ingest import Ingest
from fleet.server.intake import Intake
from fleet.server.logins import how_to_log_in, telemetry_group
from fleet.server.places import EMBEDDED, settle
from fleet.server.service import Options, merged
from fleet.server.store import workers

log = logging.getLogger(__name__)

_RENEW_S = 3600.0
# Whether a batch that waits for the database still counts as hearing.
_LATE_S = 5.0


class _Worker(NamedTuple):
    name: str
    intake: Intake
    ingest: Ingest
    database: Database
    clock: Clock
    renew: Callable[[], None]


def run(options: Options, announce: Callable[[str], None]) -> None:
    """Work until SIGINT or SIGTERM. Raises: UsageError, ConflictError, FleetError if it cannot start."""
    config = home.read_config(options.state)
    places = settle(merged(config, options.wanted))
    if places.broker == EMBEDDED:
        raise UsageError(
            "the embedded broker does not share a subscription; start the service with --broker mosquitto, or "
            "--broker mqtts://HOST:PORT for a broker that runs already"
        )
    stopping = threading.Event()
    for told in (signal.SIGINT, signal.SIGTERM):
        signal.signal(told, lambda *_: stopping.set())
    with contextlib.ExitStack() as stack:
        keys = options.state / "keys"
        number = stack.enter_context(_number(keys))
        database = Database(options.database or config.database or sqlite_url(options.state))
        stack.callback(database.close)
        home.check_database(database, config)
        clock = Clock()
        certificate = _Certificate(options.broker_files or keys, keys, config, number, options)
        login = how_to_log_in(options.broker_login, places, options.broker_files, certificate.context)
        group = telemetry_group(load_key(keys / "secrets.key"))
        intake = Intake(places.mqtt, group, login, clock)
        ingest = Ingest(database, intake, clock)
        name = f"{socket.gethostname()[:40]}-{number}-{os.getpid()}"
        worker = _Worker(name, intake, ingest, database, clock, certificate.renew)
        _beat(worker)
        stack.callback(_leave, worker)
        # Nothing new comes in before what is here is stored.
        stack.callback(intake.stop)
        stack.callback(ingest.stop)
        ingest.start()
        intake.start()
        announce(name)
        while not stopping.wait(workers.BEAT_S):
            _beat(worker)
            worker.renew()


@contextlib.contextmanager
def _number(keys: Path) -> Iterator[int]:
    """A number of its own among the workers of this home. Raises: ConflictError if there are too many."""
    for number in range(1, MOST_WORKERS + 1):
        handle = os.open(keys / f"worker-{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            continue
        try:
            yield number
        finally:
            os.close(handle)
        return
    raise ConflictError(
        f"{keys.parent}: {MOST_WORKERS} workers of this home run already, which is as many as may"
    )


class _Certificate:
    """What the worker shows a broker that knows certificates; made and renewed by the fleet's authority."""

    def __init__(self, place: Path, keys: Path, config: Config, number: int, options: Options) -> None:
        self._place, self._keys, self._config, self._number = place, keys, config, number
        self._passphrase = options.ca_passphrase
        self._authority: Authority | None = None
        self._context: ssl.SSLContext | None = None
        self._looked_at = time.monotonic()

    def context(self) -> ssl.SSLContext:
        """Raises: UsageError, HardwareKeyError if the authority's key cannot be used."""
        self._authority = home.authority(self._keys, self._config, self._passphrase)
        self._context = ssl.create_default_context(cadata=self._authority.pem)
        self._load()
        return self._context

    def renew(self) -> None:
        if self._context is None or time.monotonic() - self._looked_at < _RENEW_S:
            return
        self._looked_at = time.monotonic()
        try:
            self._load()
        except HardwareKeyError as error:
            log.warning("the worker goes on with the certificate that it has: %s", error)

    def _load(self) -> None:
        assert self._context is not None
        assert self._authority is not None
        files = home.worker_files(self._place, self._authority, self._config.fleet, self._number, time.time())
        if files.is_new:
            log.info("a new certificate for %s", worker_name(self._number))
        self._context.load_cert_chain(files.certificate, files.key)


def _beat(worker: _Worker) -> None:
    late_since = worker.ingest.late_since
    now = worker.clock.now().steady
    is_hearing = worker.intake.is_connected and (late_since is None or now - late_since < _LATE_S)
    try:
        with worker.database.begin() as connection:
            worker.clock.follow(connection)
            workers.beat(
                connection,
                worker.name,
                socket.gethostname(),
                now=worker.clock.now().steady,
                is_hearing=is_hearing,
                stored=worker.ingest.stored,
                dropped=dict(worker.ingest.dropped),
            )
    except SQLAlchemyError as error:
        # What cannot be stored is said by ingest, once; here it is seen again and again.
        log.debug("no sign of life could be written: %s", error)
        return
    if is_hearing:
        worker.clock.hears()


def _leave(worker: _Worker) -> None:
    with contextlib.suppress(SQLAlchemyError), worker.database.begin() as connection:
        workers.leave(connection, worker.name)
