"""Where everything lies in the state folder, and the lock that keeps a second agent out of it.

identity.json key boot.json order.json spool.db lock status.json
deployments/NAME/machine.json      intent: the update machine's state
deployments/NAME/{A,B}/            slots: an extracted bundle and slot.json, written last
deployments/NAME/current           link to A or B: the only truth about what runs
deployments/NAME/fetch/            downloads
deployments/NAME/cache/            what an engine compiled
"""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from device_agent import durable
from edgekit.errors import UsageError


@dataclass(frozen=True)
class DeploymentFolder:
    root: Path

    @property
    def machine(self) -> Path:
        return self.root / "machine.json"

    @property
    def current(self) -> Path:
        return self.root / "current"

    @property
    def fetch(self) -> Path:
        return self.root / "fetch"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def slot(self, name: str) -> Path:
        return self.root / name


@dataclass(frozen=True)
class StateFolder:
    root: Path

    @property
    def identity(self) -> Path:
        return self.root / "identity.json"

    @property
    def key(self) -> Path:
        return self.root / "key"

    @property
    def boot(self) -> Path:
        return self.root / "boot.json"

    @property
    def order(self) -> Path:
        return self.root / "order.json"

    @property
    def spool(self) -> Path:
        return self.root / "spool.db"

    @property
    def status(self) -> Path:
        return self.root / "status.json"

    def deployment(self, name: str) -> DeploymentFolder:
        return DeploymentFolder(self.root / "deployments" / name)

    def lock(self) -> int:
        """Take the folder for this process; the descriptor holds it until closed.

        Raises: UsageError if another agent runs on it, or it cannot be written.
        """
        try:
            durable.make_folder(self.root)
            descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UsageError(f"{self.root}: the state folder cannot be used ({error.strerror})") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UsageError(
                f"{self.root}: another agent runs on this state folder; stop it, or give another --state"
            ) from error
        return descriptor

    def is_locked(self) -> bool:
        """Whether an agent runs on this folder now."""
        if not (self.root / "lock").is_file():
            return False
        descriptor = os.open(self.root / "lock", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False
