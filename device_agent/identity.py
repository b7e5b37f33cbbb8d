"""Who this device is: its key, what enrolling gave it, and the count of its starts.

Always true
 1. The private key is made here, mode 0600, and never leaves the state folder.
 2. No (boot, seq) is ever used twice. A start that can be kept takes the next even incarnation, synced before anything
    is sent, and a fresh nonce. A start on a disk that cannot be written takes the odd one before it, with the nonce
    kept for that purpose: so restarts on a read-only disk are one run, not clones of each other, and the first start
    that is kept again orders after them. Their numbers begin at the wall clock in ms, so they do not meet either.
 3. Key, identity and count are kept twice: without them somebody must go to the device.
"""

import hashlib
import secrets
import time
from pathlib import Path
from typing import NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_agent import log
from device_agent.folder import StateFolder
from device_agent.record import Record
from edgekit.errors import MessageError, UsageError
from edgekit.protocol import orders
from edgekit.wire import enrolment
from edgekit.wire.enrolment import EnrolAnswer, EnrolmentFile
from edgekit.wire.messages import Boot


class DeviceIdentity(msgspec.Struct, frozen=True):
    """The enrolment file without its token, of which only the hash is kept, and the fleet's answer."""

    file: EnrolmentFile
    token_sha256: str
    answer: EnrolAnswer
    profile: str

    def for_orders(self, profiles: tuple[str, ...]) -> orders.Identity:
        return orders.Identity(
            fleet=self.file.fleet,
            device=self.answer.device,
            enrolment=self.answer.enrolment,
            profiles=profiles,
            deployments=self.file.deployments,
        )

    def came_from(self, file: EnrolmentFile) -> bool:
        """Whether this device enrolled with exactly this file."""
        same = msgspec.structs.replace(file, token="") == self.file
        return same and token_digest(file.token) == self.token_sha256


def token_digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def made_of(file: EnrolmentFile, answer: EnrolAnswer, profile: str) -> DeviceIdentity:
    return DeviceIdentity(msgspec.structs.replace(file, token=""), token_digest(file.token), answer, profile)


def read_enrolment(path: Path) -> EnrolmentFile:
    """Raises: UsageError if it cannot be read; MessageError for another format."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: the enrolment file cannot be read ({error.strerror})") from error
    try:
        file = msgspec.json.decode(data, type=EnrolmentFile)
    except msgspec.DecodeError as error:
        raise UsageError(
            f"{path}: not an enrolment file ({error}); 'edgekit fleet enroll' makes one"
        ) from error
    if file.format != enrolment.FORMAT:
        raise MessageError(f"{path}: enrolment format {file.format} is not known here; update EdgeKit")
    return file


def load(state: StateFolder) -> DeviceIdentity | None:
    """None before the first enrolment. Raises: UsageError if both copies of what was there are damaged."""
    record = Record(state.identity, DeviceIdentity)
    known = record.load()
    if known is None and record.trouble:
        raise UsageError(
            f"{state.identity}: both copies are damaged and set aside; enrol this device again with a new"
            " --enrolment FILE"
        )
    return known


def save(state: StateFolder, identity: DeviceIdentity) -> None:
    Record(state.identity, DeviceIdentity).save(identity)


class _Key(msgspec.Struct, frozen=True):
    ed25519: str


def key(state: StateFolder) -> Ed25519PrivateKey:
    """The device's key, made on first use. Raises: UsageError if others can read it, or both copies are damaged."""
    record = Record(state.key, _Key)
    for path in record.paths:
        mode = path.stat().st_mode & 0o777 if path.is_file() else 0
        if mode & 0o077:
            raise UsageError(f"{path}: the device key is readable by others (mode {mode:04o}); chmod 600 it")
    kept = record.load()
    if kept is not None:
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(kept.ed25519))
    if record.trouble:
        raise UsageError(f"{state.key}: both copies are damaged; enrol this device again")
    made = Ed25519PrivateKey.generate()
    record.save(_Key(made.private_bytes_raw().hex()))
    return made


class Starts(msgspec.Struct, frozen=True):
    """The incarnation of the newest start that was kept, and the nonce for those that cannot be."""

    incarnation: int
    spare_nonce: str


class Start(NamedTuple):
    """`last_seq` is the number before the first; `error` is why the start could not be kept, `damaged` what was lost."""

    boot: Boot
    last_seq: int
    error: OSError | None
    damaged: tuple[str, ...]


def begin(state: StateFolder, enrolment_number: int) -> Start:
    """The boot of this start."""
    record = Record(state.boot, Starts)
    last = record.load()
    if last is None:
        # Where the count was lost, the clock in seconds is above any count of starts.
        lost = int(time.time()) // 2 * 2 if record.trouble else 0
        last = Starts(lost, secrets.token_hex(8))
    try:
        record.save(Starts(last.incarnation + 2, secrets.token_hex(8)))
    except OSError as error:
        log.trouble("this start cannot be counted on the disk", reason=error)
        unkept = Boot(enrolment_number, last.incarnation + 1, last.spare_nonce)
        return Start(unkept, time.time_ns() // 1_000_000, error, record.trouble)
    kept = Boot(enrolment_number, last.incarnation + 2, secrets.token_hex(8))
    return Start(kept, 0, None, record.trouble)
