"""Key custody and signing: the publisher's and the fleet's side of trust.md.

Always true
 1. A private key lies in a file of its own, mode 0600, written whole or not at all; it is never sent anywhere.
 2. A key file that others may read is refused.
 3. What is signed is the DSSE pre-authentication encoding, the same function that `edgekit.trust.dsse` verifies with.
"""

import base64
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from edgekit.bundle import Bundle
from edgekit.errors import ConflictError, UsageError
from edgekit.trust import dsse
from edgekit.trust.target import Target


@dataclass(frozen=True)
class SigningKey:
    """An ed25519 private key; `keyid` is the head of the sha256 of its public half."""

    private: Ed25519PrivateKey

    @property
    def public_hex(self) -> str:
        return self.private.public_key().public_bytes_raw().hex()

    @property
    def keyid(self) -> str:
        return hashlib.sha256(bytes.fromhex(self.public_hex)).hexdigest()[:16]


def write_private(path: Path, data: bytes) -> None:
    """Write a secret file, mode 0600, whole or not at all; an existing one is replaced.

    What root writes belongs to whom the folder belongs to: a broker reads its files as a user of its own.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            if os.geteuid() == 0:
                owner = path.parent.stat()
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def make_key(path: Path) -> SigningKey:
    """A new key in `path`. Raises: ConflictError if there is a file already; keys are never overwritten."""
    if path.exists():
        raise ConflictError(f"{path}: there is a key already; move it away first if it is to be replaced")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    private = Ed25519PrivateKey.generate()
    write_private(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return SigningKey(private)


def load_key(path: Path) -> SigningKey:
    """The key in `path`. Raises: UsageError if it is missing, readable by others, or no ed25519 key."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: the signing key cannot be read ({error.strerror})") from error
    if mode & 0o077:
        raise UsageError(
            f"{path}: the signing key is readable by others (mode {mode:04o}); run: chmod 600 {path}"
        )
    try:
        private = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{path}: no unencrypted PEM private key ({error})") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise UsageError(f"{path}: not an ed25519 key")
    return SigningKey(private)


def sign(payload: bytes, payload_type: str, key: SigningKey) -> bytes:
    """A DSSE envelope around `payload`, as JSON."""
    signature = key.private.sign(dsse.pae(payload_type, payload))
    envelope = dsse.Envelope(
        payload=base64.b64encode(payload).decode(),
        payload_type=payload_type,
        signatures=(dsse.Signature(keyid=key.keyid, sig=base64.b64encode(signature).decode()),),
    )
    return msgspec.json.encode(envelope)


def target_of(bundle: Bundle) -> Target:
    """What a publisher says of a checked bundle."""
    manifest = bundle.manifest
    return Target(
        name=manifest.name,
        version=manifest.version,
        profile=manifest.profile,
        length=bundle.size_bytes,
        sha256=bundle.sha256,
    )
