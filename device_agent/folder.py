"""Where everything lies in the state folder, and the lock that keeps a second agent out of it.

identity.json key.json boot.json order.json     records, each with its second copy NAME.2; the keys and the certificate
                                           are in the first two, and in no other file
tuf/                                       verified metadata, and what they began with (`tuf.kept`)
commands.json                              a record too: what the fleet asked for once, and what came of it
spool.db
traffic.json                               a record: bytes by purpose, and where day and month began
drift.json                                 a record of one copy: counts of what deployments met, as of the last hour
measuring/N/                               bundles that are only timed here, each like a deployment; gone when that is over
samples/                                   inputs that wait for the fleet, only while an order has a policy for that
status.json                                the last words of an agent, and its present ones where no RAM disk is
shadows/NAME/{A,fetch,cache}/              a bundle that is only compared, while an order names one
deployments/NAME/machine.json              intent: the update machine's state
deployments/NAME/{A,B}/                    slots: an extracted bundle and slot.json, written last
deployments/NAME/current                   link to A or B: the only truth about what runs
deployments/NAME/fetch/                    downloads
deployments/NAME/cache/                    what an engine compiled
agent.toml                                 sources and sinks, as the user wrote them
sources/NAME/backlog.db                    answers that not every sink has taken yet

What may be lost at a power cut lies in `runtime`, in memory and not on the card, where the system offers that.
"""

import fcntl
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from device_agent import durable
from edgekit.errors import UsageError

# Where the first of these is set or there, files live in memory. The variable is for tests and unusual systems.
_RUNTIME_VARIABLES = ("EDGEKIT_RUNTIME_DIR", "XDG_RUNTIME_DIR")
_RUNTIME = "/run"


@dataclass(frozen=True)
class DeploymentFolder:
    root: Path

    @property
    def state(self) -> Path:
        """The state folder that this one is in."""
        return self.root.parents[1]

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
        return self.root / "key.json"

    @property
    def boot(self) -> Path:
        return self.root / "boot.json"

    @property
    def order(self) -> Path:
        return self.root / "order.json"

    @property
    def commands(self) -> Path:
        return self.root / "commands.json"

    @property
    def measuring(self) -> Path:
        """What is only here to be timed; anything in it may go at any time."""
        return self.root / "measuring"

    @property
    def metadata(self) -> Path:
        return self.root / "tuf"

    @property
    def spool(self) -> Path:
        return self.root / "spool.db"

    @property
    def traffic(self) -> Path:
        return self.root / "traffic.json"

    @property
    def drift(self) -> Path:
        return self.root / "drift.json"

    @property
    def samples(self) -> Path:
        return self.root / "samples"

    @property
    def status(self) -> Path:
        return self.root / "status.json"

    def source(self, name: str) -> Path:
        """A source's own folder: the answers that no sink has taken yet."""
        return self.root / "sources" / name

    def deployment(self, name: str) -> DeploymentFolder:
        return DeploymentFolder(self.root / "deployments" / name)

    def shadow(self, name: str) -> DeploymentFolder:
        return DeploymentFolder(self.root / "shadows" / name)

    @property
    def runtime(self) -> Path:
        """The state folder's own place in memory; whoever reads it finds the same as who writes it."""
        chosen = next((value for name in _RUNTIME_VARIABLES if (value := os.environ.get(name))), _RUNTIME)
        name = hashlib.sha256(os.fsencode(self.root.resolve())).hexdigest()[:16]
        return Path(chosen) / "edgekit" / name

    def lock(self) -> int:
        """Take the folder for this process; the descriptor holds it until closed. Nothing needs to be written.

        Raises: UsageError if another agent runs on it, or it is not there and cannot be made.
        """
        try:
            durable.make_folder(self.root)
            descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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
        try:
            descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False
