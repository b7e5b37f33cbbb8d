"""A publisher and the fleet's metadata in one folder, real but small: what tests of the device ask for signatures."""

from datetime import UTC, datetime
from pathlib import Path

from edgekit.trust.orderkeys import OrderKeys
from edgekit.trust.target import Target
from fleet.tuf import documents, together
from fleet.tuf.online import Files, Online


class Publisher:
    """`file` is what the metadata server has under a path below `/tuf/`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.online = Online(folder / "tuf")
        together.start(folder, self.online, datetime.now(UTC))
        self.home = together.home(folder)

    @property
    def root(self) -> str:
        return self.online.root()

    def publish(self, target: Target) -> None:
        self.home.add(target, datetime.now(UTC))
        self._offer()

    def set_order_keys(self, keys: dict[str, str]) -> None:
        self.home.set_order_keys(OrderKeys(keys), datetime.now(UTC))
        self._offer()

    def file(self, path: str) -> bytes | None:
        found = self.online.metadata / path
        return found.read_bytes() if found.is_file() else None

    def _offer(self) -> None:
        here = self.home.documents()
        roles = {role: documents.encode(one) for role, one in here.roles.items()}
        self.online.offer((), roles, datetime.now(UTC), Files(self.home.files()))
