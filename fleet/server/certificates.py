"""The certificates in use while the service runs: what it shows itself, what devices get, and whom it no longer knows.

Always true
 1. A revocation is in the database first, then in the broker's list; then the device's connection is ended. A broker
    that is not ours reads its list when it does, so there the connection is ended several times.
 2. Certificates of the service's own are renewed in place: the same TLS contexts go on with the new files.
"""

import logging
import os
import ssl
import tempfile
import threading
from datetime import UTC, datetime
from pathlib import Path

from edgekit.errors import FleetError, HardwareKeyError
from fleet.publish import write_private
from fleet.server import broker_folder, ca, home
from fleet.server.broker import Broker, Mosquitto
from fleet.server.broker_config import ACL, acl
from fleet.server.broker_folder import Source
from fleet.server.ca import Authority
from fleet.server.database import Database
from fleet.server.link import end_session
from fleet.server.places import Places
from fleet.server.store import certificates as store

log = logging.getLogger(__name__)

_LOOK_S = 3600.0
# After a token did not sign.
_TRY_S = 60.0
# After a revocation: when a connection is ended at a broker that reads its list in its own time.
_LET_GO_S = (0.0, 10.0, 90.0)


class Certificates:
    """Issues, renews, revokes; `api_context` is the HTTP side's, once there is one."""

    def __init__(
        self,
        database: Database,
        authority: Authority,
        fleet: str,
        keys: Path,
        places: Places,
        *,
        broker: Broker | None,
        broker_files: Path | None,
        is_api_ours: bool,
    ) -> None:
        self.authority = authority
        self.fleet = fleet
        self.api_context: ssl.SSLContext | None = None
        self._database = database
        self._keys = keys
        self._places = places
        self._broker = broker
        # The folder of a broker that is not ours (`broker_folder`).
        self._broker_files = broker_files
        self._to_let_go: list[tuple[float, str]] = []
        # Revoked, and in no list of the broker's yet.
        self._unlisted: set[str] = set()
        self._is_api_ours = is_api_ours
        self._service_context: ssl.SSLContext | None = None
        self._looked_at = 0.0
        # The broker has read other files than there are now.
        self._is_stale = False
        self._lock = threading.Lock()

    def service_context(self) -> ssl.SSLContext:
        """How the service speaks to its own broker."""
        place = self._broker_files or self._keys
        files = home.service_files(place, self.authority, self.fleet, datetime.now(UTC).timestamp())
        made = ssl.create_default_context(cadata=self.authority.pem)
        made.load_cert_chain(files.certificate, files.key)
        self._service_context = made
        return made

    def write_revocations(self, now: float) -> None:
        """The broker's list, and its rules, as the database has it now."""
        with self._lock:
            with self._database.begin() as connection:
                revoked, shut_out = store.revoked(connection, now), store.shut_out(connection, now)
            # First what needs no signature.
            write_private(self._keys / ACL, acl(shut_out).encode())
            made = self.authority.revocations(revoked, datetime.fromtimestamp(now, UTC))
            write_private(self._keys / "crl.pem", made)
            if self._broker_files is not None:
                self._refresh(self._broker_files, now)

    def revoked(self, device: str, now: float) -> None:
        """After a device's certificates were revoked in the database: the broker learns it, and lets go of the device.

        The service itself asks the database each time. Whatever else fails here is made good within a minute.

        Raises: HardwareKeyError while the token with the CA's key is away.
        """
        try:
            self.write_revocations(now)
        except HardwareKeyError as error:
            self._unlisted.add(device)
            # Its rules needed no signature, and shut the device out already.
            self._reread()
            self._looked_at = now - _LOOK_S + _TRY_S
            raise HardwareKeyError(
                f"{device} is revoked here, but not yet at the broker: its list cannot be signed ({error}); it is "
                "tried again once a minute"
            ) from error
        self._left_out(device, now)

    def _left_out(self, device: str, now: float) -> None:
        """The list without `device` is written: the broker reads it, and lets go of the device."""
        if not self._places.has_mqtt_tls:
            return
        if isinstance(self._broker, Mosquitto):
            self._reread()
            if not self._is_stale:
                self._let_go(device, now)
        elif self._broker_files is not None:
            with self._lock:
                self._to_let_go += [(now + delay, device) for delay in _LET_GO_S]

    def _reread(self) -> None:
        """The files of a broker of ours are others than those it has read."""
        if isinstance(self._broker, Mosquitto) and self._broker.must_restart:
            # Once for all that are revoked by then; it ends every connection.
            self._is_stale = True
        elif self._broker is not None:
            self._broker.reload()

    def keep_fresh(self, now: float) -> None:
        """Often, by one thread: ends connections that are to be ended, starts a broker anew that has to be.

        Once an hour: writes the list anew, and renews what the service shows itself where two thirds of its life are over.
        """
        with self._lock:
            due = {device for at, device in self._to_let_go if at <= now}
            self._to_let_go = [(at, device) for at, device in self._to_let_go if at > now]
        if self._is_stale:
            self._is_stale = False
            self._restart()
        for device in due:
            # A broker that does not answer holds up nothing else.
            threading.Thread(target=self._let_go, args=(device, now), daemon=True).start()
        if 0 <= now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        try:
            self._renew(now)
        except HardwareKeyError as error:
            self._looked_at = now - _LOOK_S + _TRY_S
            log.error("the CA's key does not sign, tried again in a minute: %s", error)  # noqa: TRY400  # the message says it all

    def _restart(self) -> None:
        if not isinstance(self._broker, Mosquitto) or not self._broker.is_running:
            return
        self._broker.stop()
        try:
            self._broker.start()
        except FleetError as error:
            log.error("%s", error)  # noqa: TRY400  # the message says it all; it is tried again by who watches the broker

    def _renew(self, now: float) -> None:
        self.write_revocations(now)
        while self._unlisted:
            self._left_out(self._unlisted.pop(), now)
        if self._is_api_ours or self._places.has_mqtt_tls:
            files = home.server_files(self._keys, self.authority, self.fleet, self._places.hosts, now)
            if files.is_new:
                log.warning("the service's certificate was renewed")
                self._reread()
                if self.api_context is not None and self._is_api_ours:
                    self.api_context.load_cert_chain(files.certificate, files.key)
        if self._service_context is not None:
            files = home.service_files(self._broker_files or self._keys, self.authority, self.fleet, now)
            if files.is_new:
                log.warning("the certificate that the service shows its broker was renewed")
            self._service_context.load_cert_chain(files.certificate, files.key)

    def _refresh(self, folder: Path, now: float) -> None:
        try:
            broker_folder.refresh(folder, Source(self._keys, self.authority, self.fleet, self._places), now)
        except OSError as error:
            log.error("--broker-files %s cannot be kept fresh: %s", folder, error)  # noqa: TRY400  # the message says it all; tried again within the hour

    def _let_go(self, device: str, now: float) -> None:
        try:
            end_session(self._places.mqtt, self._context_as(device, now), device)
        except (OSError, HardwareKeyError) as error:
            log.warning("the connection of %s could not be ended: %s", device, error)

    def _context_as(self, device: str, now: float) -> ssl.SSLContext:
        """A client's context in the device's own name, on a key that is gone at once: mosquitto ends a session only for
        one who takes it over.
        """
        key = ca.make_key()
        certificate = self.authority.device(
            key.public_key(), device, self.fleet, datetime.fromtimestamp(now, UTC)
        )
        made = ssl.create_default_context(cadata=self.authority.pem)
        descriptor, name = tempfile.mkstemp(dir=self._keys, suffix=".part")
        try:
            os.write(descriptor, ca.key_pem(key) + ca.pem(certificate).encode())
            made.load_cert_chain(name)
        finally:
            os.close(descriptor)
            Path(name).unlink()
        return made
