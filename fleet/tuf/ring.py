"""A publisher's private keys: files under a passphrase, or tokens that never give a key away.

Always true
 1. A private key lies in a file of its own, mode 0600, encrypted unless it was asked for otherwise by name, written
    whole or not at all; or it is in a token, and only its address is kept.
 2. A key file that others may read is refused.
 3. Passphrases and PINs come from a file, the environment or a terminal, never from an argument.

A passphrase is turned into a key by scrypt (RFC 7914): the PEM encryption of the libraries counts 2048 rounds of PBKDF2,
which one graphics card runs a million times a second.
"""

import getpass
import os
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import CryptoSigner, HSMSigner, Key, Signer, SSlibKey

from edgekit.errors import ConflictError, UsageError
from fleet.publish import write_private

PASSPHRASE = "EDGEKIT_KEYS_PASSPHRASE"  # noqa: S105  # the name of a variable, not a secret
# A token's PIN, or the file whose first line it is.
PIN, PIN_FILE = "EDGEKIT_KEYS_PIN", "EDGEKIT_KEYS_PIN_FILE"
SCRYPT_N, SCRYPT_R, SCRYPT_P = 1 << 16, 8, 1
_TOKEN = "hsm:"  # noqa: S105  # the beginning of an address

Passphrase = Callable[[], bytes]


class Held(msgspec.Struct, frozen=True):
    """One key of the ring. `uri` is `file:NAME` inside the ring's folder, or an address of securesystemslib's."""

    label: str
    uri: str
    public: dict[str, Any]


class _Box(msgspec.Struct, frozen=True):
    """A key file. `kdf` is empty where there is no passphrase; bytes are in hex."""

    kdf: str
    salt: str
    nonce: str
    data: str
    n: int = 0
    r: int = 0
    p: int = 0


class Ring:
    """The keys of one folder: `ring.json` and `keys/`."""

    def __init__(self, folder: Path, passphrase: Passphrase) -> None:
        self.folder = folder
        self._passphrase = passphrase
        self._given: bytes | None = None
        self._pin_given: str | None = None
        self._signers: dict[str, Signer] = {}

    @property
    def held(self) -> Mapping[str, Held]:
        """Key id → key. Raises: UsageError if the ring cannot be read."""
        try:
            data = (self.folder / "ring.json").read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise UsageError(f"{self.folder}: the keys cannot be listed ({error.strerror})") from error
        try:
            return msgspec.json.decode(data, type=dict[str, Held])
        except msgspec.DecodeError as error:
            raise UsageError(f"{self.folder / 'ring.json'}: damaged ({error})") from error

    def make(self, label: str, token: str = "", *, again: bool = False) -> Key:
        """A new ed25519 key in a file; or, where `token` is `hsm:[LABEL][;id=N]`, that of a PKCS#11 token;
        with `again` one that the ring has already is taken too, as an attempt that failed left it.

        Raises: UsageError, OSError.
        """
        if token:
            uri, public = _of_token(token, self._pin)
        else:
            private = Ed25519PrivateKey.generate()
            public = SSlibKey.from_crypto(private.public_key())
            name = f"{label}-{public.keyid[:8]}.key"
            self._write(name, private.private_bytes_raw())
            uri = f"file:{name}"
        if public.keyid in self.held:
            if again:
                return public
            raise ConflictError(
                f"{self.folder}: this key is in the ring already, as {self.held[public.keyid].label}"
            )
        self._keep({**self.held, public.keyid: Held(label, uri, public.to_dict())})
        return public

    def signer(self, keyid: str) -> Signer | None:
        """What signs as `keyid`; None if this ring does not hold it. Raises: UsageError."""
        if keyid in self._signers:
            return self._signers[keyid]
        held = self.held.get(keyid)
        if held is None:
            return None
        public = Key.from_dict(keyid, dict(held.public))
        if held.uri.startswith("file:"):
            assert isinstance(public, SSlibKey)
            private = Ed25519PrivateKey.from_private_bytes(self._read(held.uri.removeprefix("file:")))
            made: Signer = CryptoSigner(private, public)
        else:
            made = _token_signer(held.uri, public, self._pin)
        self._signers[keyid] = made
        return made

    def _keep(self, held: Mapping[str, Held]) -> None:
        write_private(self.folder / "ring.json", msgspec.json.format(msgspec.json.encode(held), indent=2))

    # -- files ---------------------------------------------------------------------------------------------------

    def _write(self, name: str, private: bytes) -> None:
        folder = self.folder / "keys"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        passphrase = b"" if self._is_open() else self._asked()
        if passphrase:
            salt, nonce = os.urandom(16), os.urandom(12)
            box = _Box("scrypt", salt.hex(), nonce.hex(), "", SCRYPT_N, SCRYPT_R, SCRYPT_P)
            sealed = AESGCM(_derived(box, passphrase)).encrypt(nonce, private, name.encode())
            box = msgspec.structs.replace(box, data=sealed.hex())
        else:
            box = _Box("", "", "", private.hex())
        write_private(folder / name, msgspec.json.encode(box))

    def _read(self, name: str) -> bytes:
        path = self.folder / "keys" / name
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            data = path.read_bytes()
        except OSError as error:
            raise UsageError(f"{path}: the key cannot be read ({error.strerror})") from error
        if mode & 0o077:
            raise UsageError(
                f"{path}: the key is readable by others (mode {mode:04o}); run: chmod 600 {path}"
            )
        try:
            box = msgspec.json.decode(data, type=_Box)
            if not box.kdf:
                return bytes.fromhex(box.data)
            key = _derived(box, self._asked())
            return AESGCM(key).decrypt(bytes.fromhex(box.nonce), bytes.fromhex(box.data), name.encode())
        except InvalidTag as error:
            raise UsageError(f"{path}: the passphrase is not the one of this key") from error
        except (msgspec.DecodeError, ValueError) as error:
            raise UsageError(f"{path}: no key file ({error})") from error

    def _is_open(self) -> bool:
        """Whether the ring was begun without a passphrase: then it goes on so."""
        files = [
            held.uri.removeprefix("file:") for held in self.held.values() if held.uri.startswith("file:")
        ]
        try:
            boxes = [
                msgspec.json.decode((self.folder / "keys" / name).read_bytes(), type=_Box) for name in files
            ]
        except (OSError, msgspec.DecodeError):
            return False
        return bool(boxes) and not any(box.kdf for box in boxes)

    def _pin(self, _what: str) -> str:
        """Asked for once."""
        if self._pin_given is None:
            self._pin_given = _ask_pin()
        return self._pin_given

    def _asked(self) -> bytes:
        if self._given is None:
            self._given = self._passphrase()
        return self._given


def _derived(box: _Box, passphrase: bytes) -> bytes:
    if box.n > 1 << 20 or box.r > 32 or box.p > 16:
        raise ValueError("it asks for more memory than any key of ours")
    return Scrypt(salt=bytes.fromhex(box.salt), length=32, n=box.n, r=box.r, p=box.p).derive(passphrase)


# -- tokens ----------------------------------------------------------------------------------------------------------


def _of_token(token: str, pin: Callable[[str], str]) -> tuple[str, SSlibKey]:
    """Address and public half of a key in a token: `hsm:[LABEL][;id=N]`, N being 2 unless it is said (PIV's slot 9c)."""
    label, _, rest = token.removeprefix(_TOKEN).partition(";")
    name, _, number = rest.partition("=")
    if not token.startswith(_TOKEN) or (rest and (name != "id" or not number.isdecimal())):
        raise UsageError(f"{token!r}: a key in a token is named hsm:, hsm:LABEL or hsm:LABEL;id=N")
    try:
        return HSMSigner.import_(int(number) if number else None, label or None, pin)
    except UnsupportedLibraryError as error:
        raise UsageError(f"{token}: needs the extra 'pkcs11' ({error})") from error
    # python-pkcs11's errors are RuntimeErrors.
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"{token}: {said(error)}") from error


def _token_signer(uri: str, public: Key, pin: Callable[[str], str]) -> Signer:
    try:
        return Signer.from_priv_key_uri(uri, public, pin)
    except UnsupportedLibraryError as error:
        raise UsageError(f"{uri}: needs another extra of securesystemslib ({error})") from error
    except (ValueError, OSError) as error:
        raise UsageError(f"{uri}: {error}") from error


# What the names of PKCS#11's errors say to whom it concerns.
_SAID = {
    "PinIncorrect": "the PIN is not the token's; after a few wrong ones it locks itself",
    "PinLocked": "the token is locked after too many wrong PINs; its maker's tool unlocks it",
    "PinLenRange": "the PIN is too short or too long for this token",
}


def said(error: BaseException) -> str:
    """PKCS#11 errors carry their name and seldom a text."""
    name = type(error).__name__
    return _SAID.get(name) or str(error) or name


def _ask_pin() -> str:
    """From the environment, a file that it names, or the terminal. Raises: UsageError."""
    if given := os.environ.get(PIN):
        return given
    if file := os.environ.get(PIN_FILE):
        return _first_line(Path(file), "the PIN").decode()
    if sys.stdin is not None and sys.stdin.isatty():
        return getpass.getpass("PIN of the token: ")
    raise UsageError(f"the token's PIN? set {PIN_FILE} to a file that holds it, or {PIN}")


# -- passphrases -----------------------------------------------------------------------------------------------------


def passphrase(path: Path | None, *, none: bool = False) -> Passphrase:
    """From the file, else the environment, else the terminal; `none` means that there is none."""

    def ask() -> bytes:
        if none:
            return b""
        if path is not None:
            return _first_line(path, "the passphrase")
        given = os.environ.get(PASSPHRASE, "")
        if given:
            return given.encode()
        if sys.stdin.isatty():
            return getpass.getpass("passphrase of the publisher's keys: ").encode()
        raise UsageError(f"which passphrase? give --passphrase-file FILE, or set {PASSPHRASE}")

    return ask


def _first_line(path: Path, what: str) -> bytes:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"{path}: {what} cannot be read ({error.strerror})") from error
    if not lines or not lines[0]:
        raise UsageError(f"{path}: {what} stands on the first line, which is empty")
    return lines[0]
