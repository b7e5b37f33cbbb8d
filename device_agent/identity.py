"""Who this device is: its key, what enrolling gave it, and the count of its starts.

Always true
 1. A private key is made here, mode 0600, and never leaves the state folder.
 2. A key belongs to one token and one piece of hardware: whoever asks again with the same token, as after an answer
    that was lost, asks with the same key; a copy of the folder on other hardware makes one of its own.
 3. The identity that was is there until the one that follows it is on disk.
 4. No (boot, seq) is ever used twice. A start that can be kept takes the next even incarnation, synced before anything
    is sent, and a fresh nonce. A start on a disk that cannot be written takes the odd one before it, with the nonce
    kept for that purpose: so restarts on a read-only disk are one run, not clones of each other, and the first start
    that is kept again orders after them. Their numbers begin at the wall clock in ms, so they do not meet either.
 5. Keys, identity and count are kept twice: without them somebody must go to the device.
"""

import base64
import hashlib
import secrets
import time
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from device_agent import hardware, log
from device_agent.folder import StateFolder
from device_agent.hardware import Hardware
from device_agent.record import Record
from edgekit.errors import AuthError, MessageError, UsageError
from edgekit.protocol import orders
from edgekit.wire import enrolment
from edgekit.wire.enrolment import EnrolAnswer, EnrolmentFile
from edgekit.wire.messages import Boot


class DeviceIdentity(msgspec.Struct, frozen=True):
    """The enrolment file without its token, of which only the hash is kept, and the fleet's newest answer."""

    file: EnrolmentFile
    token_sha256: str
    answer: EnrolAnswer
    profile: str
    hardware: Hardware

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

    @property
    def life(self) -> tuple[datetime, datetime]:
        """From when to when the certificate is valid."""
        certificate = x509.load_pem_x509_certificate(self.answer.certificate.encode())
        return certificate.not_valid_before_utc, certificate.not_valid_after_utc


def token_digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def made_of(file: EnrolmentFile, answer: EnrolAnswer, profile: str, here: Hardware) -> DeviceIdentity:
    kept = msgspec.structs.replace(file, token="")
    return DeviceIdentity(kept, token_digest(file.token), answer, profile, here)


def renewed(known: DeviceIdentity, answer: EnrolAnswer) -> DeviceIdentity:
    return msgspec.structs.replace(known, answer=answer)


def read_enrolment(path: Path) -> EnrolmentFile:
    """Raises: UsageError if it cannot be read, or would be unprotected; MessageError for another format."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: the enrolment file cannot be read ({error.strerror})") from error
    try:
        known = msgspec.json.decode(data, type=_Format).format
        if known != enrolment.FORMAT:
            raise MessageError(
                f"{path}: enrolment format {known} is not known here, {enrolment.FORMAT} is; take a file and an agent"
                " of one release of EdgeKit"
            )
        file = msgspec.json.decode(data, type=EnrolmentFile)
    except msgspec.DecodeError as error:
        raise UsageError(
            f"{path}: not an enrolment file ({error}); 'edgekit fleet enroll' makes one"
        ) from error
    if bare := enrolment.unprotected(file):
        raise UsageError(
            f"{path}: {', '.join(bare)} would be reached without TLS that the file's 'ca' pins, which only loopback"
            " addresses may be; ask for a file of a fleet that has --public-url https://… and --mqtt-public mqtts://…"
        )
    return file


class _Format(msgspec.Struct, frozen=True):
    format: int


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
    record = Record(state.identity, DeviceIdentity)
    record.load()
    record.save(identity)


# -- keys ------------------------------------------------------------------------------------------------------------


class DeviceKey(msgspec.Struct, frozen=True):
    """An EC P-256 key as PKCS#8 in PEM, the hash of the token that it was made for, and the hardware it was made on."""

    pem: str
    token_sha256: str
    hardware: Hardware

    @property
    def private(self) -> ec.EllipticCurvePrivateKey:
        key = serialization.load_pem_private_key(self.pem.encode(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key

    def request(self, device: str, fleet: str) -> str:
        """A certificate request in PEM (PKCS#10, RFC 2986)."""
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, fleet),
                x509.NameAttribute(NameOID.COMMON_NAME, device),
            ]
        )
        csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(self.private, hashes.SHA256())
        return csr.public_bytes(serialization.Encoding.PEM).decode("ascii")

    def proof(self, csr: str) -> str:
        """That whoever sends `csr` has this key, where TLS does not show it (`RenewRequest.proof`)."""
        signed = self.private.sign(enrolment.PROOF_PREFIX + csr.encode(), ec.ECDSA(hashes.SHA256()))
        return base64.b64encode(signed).decode("ascii")

    def check(self, answer: EnrolAnswer) -> None:
        """Raises: AuthError unless the answer is for this key."""
        try:
            certificate = x509.load_pem_x509_certificate(answer.certificate.encode())
            theirs = certificate.public_key()
        except ValueError as error:
            raise AuthError(f"the fleet gave no certificate: {error}") from error
        if theirs != self.private.public_key():
            raise AuthError("the fleet gave a certificate for another key than this device's")
        names = [each.value for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        if names != [answer.device]:
            raise AuthError(f"the fleet gave a certificate for {names}, this device is {answer.device}")


class _Keys(msgspec.Struct, frozen=True):
    """That of the present identity, if there is one, and the one that was made last."""

    keys: tuple[DeviceKey, ...] = ()


def key_for(state: StateFolder, token_sha256: str, here: Hardware) -> DeviceKey:
    """The key for a token on this hardware, made on first use and kept before it is used.

    Raises: UsageError if others can read it, or both copies are damaged; OSError if it cannot be kept.
    """
    record, kept = _load_keys(state)
    if (found := _found(kept, token_sha256, here)) is not None:
        return found
    made = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    new = DeviceKey(made.decode("ascii"), token_sha256, here)
    present = load(state)
    used = _found(kept, present.token_sha256, present.hardware) if present is not None else None
    record.save(_Keys((new,) if used is None else (used, new)))
    return new


def key_of(state: StateFolder, known: DeviceIdentity) -> DeviceKey:
    """The key of this identity. Raises: UsageError if it is not there, damaged, or readable by others."""
    _record, kept = _load_keys(state)
    found = _found(kept, known.token_sha256, known.hardware)
    if found is None:
        raise UsageError(
            f"{state.key}: the key of {known.answer.device} is not there; enrol this device again"
        )
    return found


def peek_key(state: StateFolder, known: DeviceIdentity) -> DeviceKey | None:
    """As `key_of`, for those who look at the folder of another process: nothing is written."""
    kept = Record(state.key, _Keys).peek()
    return _found(kept, known.token_sha256, known.hardware) if kept is not None else None


def _load_keys(state: StateFolder) -> tuple[Record[_Keys], _Keys]:
    record = Record(state.key, _Keys)
    for path in record.paths:
        mode = path.stat().st_mode & 0o777 if path.is_file() else 0
        if mode & 0o077:
            raise UsageError(f"{path}: the device key is readable by others (mode {mode:04o}); chmod 600 it")
    kept = record.load()
    if kept is None and record.trouble:
        raise UsageError(f"{state.key}: both copies are damaged and set aside; enrol this device again")
    return record, kept or _Keys()


def _found(kept: _Keys, token_sha256: str, here: Hardware) -> DeviceKey | None:
    for key in reversed(kept.keys):
        if key.token_sha256 == token_sha256 and not hardware.difference(key.hardware, here):
            return key
    return None


# -- starts ----------------------------------------------------------------------------------------------------------
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
