"""The file of a backup: a zip of rows, artifacts and metadata, with a signed list of what is in it.

    manifest.json           what the backup is of, and every member with its size and sha256
    manifest.sig            the same in a DSSE envelope, signed by the fleet's own key (that of its audit log)
    fleet.toml              settings, without the database's address
    tables/NAME.jsonl       `rows`
    artifacts/…  tuf/…      files of the home; keys/ca.pem, the authority's certificate
    keys.enc                only if asked for: private keys, encrypted by a passphrase

Always true
 1. A file of this name is whole: it is written under another name first, and synced.
 2. Nothing is taken from it that the list does not name, or that is not byte for byte what the list says.
 3. No key leaves the home in clear.
"""

import hashlib
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from edgekit.errors import FleetError, SignatureRefusedError, UsageError
from edgekit.trust import dsse
from fleet.publish import SigningKey, sign
from fleet.server.keep.rows import Counted

FORMAT = 1
TYPE = "application/vnd.edgekit.backup.v1+json"
MANIFEST, SIGNATURE, KEYS, SETTINGS = "manifest.json", "manifest.sig", "keys.enc", "fleet.toml"
_CHUNK = 1 << 20
# OWASP's advice for scrypt, 128 MB: a backup is opened seldom, and its passphrase is tried offline.
_SCRYPT = {"n": 2**17, "r": 8, "p": 1}


class Member(msgspec.Struct, frozen=True):
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """`revision` is the schema's, `taken_at` unix seconds; `tables` are what was counted while they were read."""

    fleet: str
    taken_at: float
    revision: str
    edgekit: str
    tables: dict[str, Counted]
    members: dict[str, Member]
    format: int = FORMAT


class Writer:
    """Takes members one after another; `finish` must be last."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._zip = zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=5)
        self.members: dict[str, Member] = {}

    def add(self, name: str, chunks: Iterable[bytes], *, is_packed: bool = False) -> None:
        """`is_packed`: it cannot be made smaller."""
        about = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
        about.compress_type = zipfile.ZIP_STORED if is_packed else zipfile.ZIP_DEFLATED
        digest, size = hashlib.sha256(), 0
        with self._zip.open(about, "w", force_zip64=True) as sink:
            for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                sink.write(chunk)
        self.members[name] = Member(size, digest.hexdigest())

    def add_file(self, name: str, path: Path) -> None:
        with path.open("rb") as source:
            self.add(name, iter(lambda: source.read(_CHUNK), b""), is_packed=path.suffix == ".edgekit")

    def finish(self, manifest: Manifest, key: SigningKey) -> None:
        data = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
        self._zip.writestr(SIGNATURE, sign(data, TYPE, key))
        self._zip.writestr(MANIFEST, data)
        self._zip.close()

    def close(self) -> None:
        """Of one that was given up: its end cannot be written either, perhaps."""
        with suppress(OSError, ValueError):
            self._zip.close()


@contextmanager
def new(path: Path) -> Iterator[Writer]:
    """Raises: UsageError if there is a file already, FleetError if it cannot be written."""
    if path.exists():
        raise UsageError(f"{path}: there is a file already; a backup never replaces another")
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                writer = Writer(stream)
                try:
                    yield writer
                finally:
                    writer.close()
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise FleetError(f"{path}: the backup cannot be written ({error.strerror or error})") from error


class Reader:
    """An opened backup; the caller closes it."""

    def __init__(self, path: Path) -> None:
        """Raises: FleetError for what is no backup, or of a newer EdgeKit."""
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
            self._data = self._zip.read(MANIFEST)
            self._envelope = self._zip.read(SIGNATURE)
            version = msgspec.json.decode(self._data, type=dict[str, object]).get("format")
            if version != FORMAT:
                raise FleetError(
                    f"{path}: a backup of format {version}, which is not known here; update EdgeKit"
                )
            self.manifest = msgspec.json.decode(self._data, type=Manifest)
        except (
            OSError,
            zipfile.BadZipFile,
            KeyError,
            msgspec.DecodeError,
            EOFError,
            NotImplementedError,
        ) as error:
            raise FleetError(f"{path}: no backup of a fleet can be read from it ({error})") from error
        for name in self.manifest.members:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise FleetError(f"{path}: names {name!r}, which is no member of a backup")

    def close(self) -> None:
        self._zip.close()

    def check_signature(self, keys: Mapping[str, str]) -> None:
        """That the list is what a fleet with these keys (id → public key) wrote. Raises: FleetError."""
        try:
            is_right = dsse.verify(self._envelope, TYPE, keys) == self._data
        except SignatureRefusedError as error:
            raise FleetError(f"{self.path}: its list is not signed by these keys' fleet ({error})") from error
        if not is_right:
            raise FleetError(f"{self.path}: its list is not the one that was signed")

    def has(self, name: str) -> bool:
        return name in self.manifest.members

    def below(self, folder: str) -> list[str]:
        """Members inside a folder."""
        return sorted(name for name in self.manifest.members if name.startswith(f"{folder}/"))

    def read(self, name: str) -> bytes:
        return b"".join(self.chunks(name))

    def chunks(self, name: str) -> Iterator[bytes]:
        """A member's bytes. Raises: FleetError, at the end, if they are not what the list says."""
        wanted, digest, size = self.manifest.members[name], hashlib.sha256(), 0
        try:
            with self._zip.open(name) as source:
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    size += len(chunk)
                    yield chunk
        except (OSError, zipfile.BadZipFile, KeyError, EOFError, NotImplementedError) as error:
            raise FleetError(f"{self.path}: {name} cannot be read ({error})") from error
        except zipfile.zlib.error as error:  # type: ignore[attr-defined]  # zipfile hands zlib's own error through
            raise FleetError(f"{self.path}: {name} is damaged ({error})") from error
        if (size, digest.hexdigest()) != (wanted.size, wanted.sha256):
            raise FleetError(f"{self.path}: {name} is not what its list says; the backup is damaged")

    def lines(self, name: str) -> Iterator[bytes]:
        rest = b""
        for chunk in self.chunks(name):
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole
        if rest:
            yield rest

    def extract(self, name: str, to: Path) -> None:
        to.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with to.open("wb") as sink:
            for chunk in self.chunks(name):
                sink.write(chunk)
            sink.flush()
            os.fsync(sink.fileno())


class _Sealed(msgspec.Struct, frozen=True):
    salt: bytes
    nonce: bytes
    text: bytes
    n: int = _SCRYPT["n"]
    r: int = _SCRYPT["r"]
    p: int = _SCRYPT["p"]


def seal(files: Mapping[str, bytes], passphrase: bytes, fleet: str) -> bytes:
    """Private files (path → content) under a passphrase: scrypt (RFC 7914), AES-256-GCM; bound to the fleet's id."""
    salt, nonce = os.urandom(16), os.urandom(12)
    key = Scrypt(salt, 32, **_SCRYPT).derive(passphrase)
    text = AESGCM(key).encrypt(nonce, msgspec.msgpack.encode(dict(files)), fleet.encode())
    return msgspec.json.encode(_Sealed(salt, nonce, text))


def unseal(data: bytes, passphrase: bytes, fleet: str) -> dict[str, bytes]:
    """Raises: FleetError if the passphrase is wrong, or what was sealed is damaged."""
    try:
        sealed = msgspec.json.decode(data, type=_Sealed)
        if (sealed.n, sealed.r, sealed.p) != tuple(_SCRYPT.values()):
            raise FleetError(f"{KEYS}: sealed in a way that is not known here; update EdgeKit")
        key = Scrypt(sealed.salt, 32, **_SCRYPT).derive(passphrase)
        return msgspec.msgpack.decode(
            AESGCM(key).decrypt(sealed.nonce, sealed.text, fleet.encode()), type=dict[str, bytes]
        )
    except InvalidTag as error:
        raise FleetError("the keys in the backup cannot be opened: is the passphrase right?") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise FleetError(f"the keys in the backup cannot be read ({error})") from error
