"""Who this device is: its key, what enrolling gave it, and the count of its starts.

Always true
 1. The private key is made here, mode 0600, and never leaves the state folder.
 2. `incarnation` is raised and synced before anything is sent, so no (boot, seq) is ever used twice.
"""

import secrets
import stat
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_agent import durable
from device_agent.folder import StateFolder
from edgekit.errors import MessageError, UsageError
from edgekit.protocol import orders
from edgekit.wire import enrolment
from edgekit.wire.enrolment import EnrolAnswer, EnrolmentFile
from edgekit.wire.messages import Boot


class DeviceIdentity(msgspec.Struct, frozen=True):
    """The enrolment file without its token, and the fleet's answer."""

    file: EnrolmentFile
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
    """None before the first enrolment. Raises: UsageError if what is there cannot be read."""
    if not state.identity.is_file():
        return None
    try:
        return msgspec.json.decode(state.identity.read_bytes(), type=DeviceIdentity)
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(
            f"{state.identity}: damaged ({error}); enrol this device again with a new state folder"
        ) from error


def save(state: StateFolder, identity: DeviceIdentity) -> None:
    durable.write(state.identity, msgspec.json.encode(identity))


def key(state: StateFolder) -> Ed25519PrivateKey:
    """The device's key, made on first use. Raises: UsageError if others can read it."""
    if not state.key.is_file():
        made = Ed25519PrivateKey.generate()
        durable.write(state.key, made.private_bytes_raw().hex().encode() + b"\n", mode=0o600)
        return made
    mode = stat.S_IMODE(state.key.stat().st_mode)
    if mode & 0o077:
        raise UsageError(f"{state.key}: the device key is readable by others (mode {mode:04o}); chmod 600 it")
    try:
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(state.key.read_text(encoding="ascii")))
    except ValueError as error:
        raise UsageError(f"{state.key}: no ed25519 key; enrol again with a new state folder") from error


class _Starts(msgspec.Struct, frozen=True):
    incarnation: int


def next_boot(state: StateFolder, enrolment_number: int) -> Boot:
    """The boot of this start, its incarnation synced. Raises: UsageError if the counter cannot be read."""
    last = 0
    if state.boot.is_file():
        try:
            last = msgspec.json.decode(state.boot.read_bytes(), type=_Starts).incarnation
        except msgspec.DecodeError as error:
            raise UsageError(
                f"{state.boot}: damaged ({error}); enrol again with a new state folder"
            ) from error
    durable.write(state.boot, msgspec.json.encode(_Starts(last + 1)))
    return Boot(enrolment=enrolment_number, incarnation=last + 1, nonce=secrets.token_hex(8))
