"""What watches the fleet, put together: alarms, the courier that brings their messages, and metrics."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fleet.rules.findings import Expiry
from fleet.server import expiries
from fleet.server.alarms import Alarms, Own
from fleet.server.clock import Clock
from fleet.server.controller import Controller
from fleet.server.courier import Courier
from fleet.server.database import Database
from fleet.server.ingest import Ingest
from fleet.server.link import Link
from fleet.server.metrics import Metrics, Process
from fleet.server.notary import Notary
from fleet.server.places import MOSQUITTO, Places
from fleet.server.sealing import Seal
from fleet.tuf.online import Online


@dataclass(frozen=True)
class Watched:
    """The parts of a service that are watched. `given` is a certificate of the user's own for the API."""

    fleet: str
    database: Database
    clock: Clock
    places: Places
    link: Link
    ingest: Ingest
    notary: Notary
    tuf: Online
    folder: Path
    has_workers: bool = False
    broker_files: Path | None = None
    given: Path | None = None


class Monitoring:
    """Made before the controller, which it then watches too (`start`)."""

    def __init__(self, watched: Watched, seal: Seal) -> None:
        self._watched = watched
        self._controller: Controller | None = None
        self.alarms = Alarms(
            Own(
                fleet=watched.fleet,
                broker=str(watched.link.address),
                url=watched.places.url,
                is_connected=lambda: watched.link.is_connected,
                late_since=lambda: watched.ingest.late_since,
                overflowed=lambda: watched.link.inbox.overflowed,
                is_audit_whole=lambda: watched.notary.is_whole,
                expiries=self._expiries(),
                disks=(watched.folder,),
                has_workers=watched.has_workers,
            )
        )
        self.courier = Courier(
            watched.database,
            seal,
            watched.clock,
            watched.fleet,
            is_leading=lambda: self._controller is not None and self._controller.is_leading,
            failing_since=lambda: self._controller.failing_since if self._controller is not None else None,
        )
        self.metrics = Metrics(watched.database, self._process(), watched.fleet)

    def start(self, controller: Controller) -> None:
        self._controller = controller
        self.courier.start()

    def stop(self) -> None:
        self.courier.stop()

    def _process(self) -> Process:
        watched = self._watched

        def dropped() -> dict[str, int]:
            found = dict(watched.ingest.dropped)
            if watched.link.inbox.overflowed:
                found["queue full"] = watched.link.inbox.overflowed
            return found

        return Process(
            is_controller=lambda: self._controller is not None and self._controller.is_leading,
            is_connected=lambda: watched.link.is_connected,
            stored=lambda: watched.ingest.stored,
            dropped=dropped,
            queued=lambda: len(watched.link.inbox),
            late_since=lambda: watched.ingest.late_since,
            messages=lambda: (self.courier.sent, self.courier.failed),
            clock=watched.clock,
        )

    def _expiries(self) -> Callable[[float], list[Expiry]]:
        watched, places = self._watched, self._watched.places
        keys = watched.folder / "keys"
        own = []
        if (places.has_tls and watched.given is None) or (places.broker == MOSQUITTO and places.has_mqtt_tls):
            own.append(keys / "server.pem")
        if places.has_mqtt_tls or watched.broker_files is not None:
            own.append((watched.broker_files or keys) / "service.pem")
        given = watched.given if places.has_tls else None
        return lambda _now: [
            *expiries.of_files(keys / "ca.pem", own, given),
            *expiries.of_metadata(watched.tuf),
        ]
