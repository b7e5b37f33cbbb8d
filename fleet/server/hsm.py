"""A private key in a PKCS#11 token, where `cryptography` expects one of its own.

`cryptography` builds certificates and lists, and asks any `EllipticCurvePrivateKey` for the signature: this one passes
the digest to the token (PKCS#11 3.1, 6.3.12: ECDSA without hashing) and the answer back. No ASN.1 is put together here.

Always true
 1. The private half never leaves the token: it is made there, sensitive and not extractable.
 2. A signature is given out only after it was verified by the public half that the fleet's certificate names.
 3. A PIN that was refused is not tried again by this process: tokens lock themselves after a few.
 4. The token is spoken to by one thread at a time: libraries need not bear more.
"""

import os
import threading
from contextlib import suppress
from secrets import token_bytes
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from edgekit.distribution import extra
from edgekit.errors import HardwareKeyError, UsageError
from fleet.server.hsm_uri import KeyAddress

# As securesystemslib names it for publisher keys: one library serves both.
MODULE = "PYKCS11LIB"
_COORDINATE_BYTES = 32
_lock = threading.Lock()


def find_or_make(address: KeyAddress, pin: str) -> "TokenKey":
    """The EC P-256 key at `address`, made there if there is none. Raises: UsageError, HardwareKeyError."""
    with _lock:
        session = _Session(address, pin)
        private = session.private()
        if private is None:
            session.close()
            public = _made(address, pin)
            session = _Session(address, pin)
        else:
            public = session.public(private)
    key = TokenKey(address, pin, public, session)
    key.sign(b"edgekit", ec.ECDSA(hashes.SHA256()))
    return key


def open_key(address: KeyAddress, pin: str, public: ec.EllipticCurvePublicKey) -> "TokenKey":
    """The private half of `public`, which must be at `address`. Raises: UsageError, HardwareKeyError."""
    with _lock:
        session = _Session(address, pin)
        if session.private() is None:
            session.close()
            raise UsageError(f"{address} is not there; is it the token that this fleet was made with?")
    key = TokenKey(address, pin, public, session)
    try:
        key.sign(b"edgekit", ec.ECDSA(hashes.SHA256()))
    except _AnotherKeyError as error:
        raise UsageError(f"{address} is not the key of this fleet's ca.pem") from error
    return key


class _AnotherKeyError(HardwareKeyError):
    """The token signed with a key that is not the certificate's."""


class TokenKey(ec.EllipticCurvePrivateKey):
    """Signs with SHA-256, and does nothing else that a private key might be asked for."""

    def __init__(
        self, address: KeyAddress, pin: str, public: ec.EllipticCurvePublicKey, session: "_Session"
    ) -> None:
        self._address = address
        self._pin = pin
        self._public = public
        self._session: _Session | None = session
        self._is_refused = False

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._public.curve

    @property
    def key_size(self) -> int:
        return self._public.key_size

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """The signature in DER. Raises: HardwareKeyError while the token does not sign."""
        assert isinstance(signature_algorithm, ec.ECDSA)
        assert isinstance(signature_algorithm.algorithm, hashes.SHA256)
        digest = hashes.Hash(hashes.SHA256())
        digest.update(data)
        with _lock:
            raw = self._signed(digest.finalize())
        if len(raw) != 2 * _COORDINATE_BYTES:
            raise HardwareKeyError(
                f"{self._address}: its signature has {len(raw)} bytes; an EC P-256 key's has 64"
            )
        r, s = raw[:_COORDINATE_BYTES], raw[_COORDINATE_BYTES:]
        signature = encode_dss_signature(int.from_bytes(r), int.from_bytes(s))
        try:
            self._public.verify(signature, data, signature_algorithm)
        except InvalidSignature as error:
            raise _AnotherKeyError(f"{self._address} does not sign as the fleet's CA") from error
        return signature

    def _signed(self, digest: bytes) -> bytes:
        """The signature as r, then s. A token that was away for a while is opened anew, once."""
        try:
            if self._session is not None:
                return self._session.sign(digest)
        except HardwareKeyError:
            self._drop()
        if self._is_refused:
            raise HardwareKeyError(
                f"{self._address.where} refused the PIN; start the service anew with the right one"
            )
        try:
            self._session = _Session(self._address, self._pin)
            return self._session.sign(digest)
        except UsageError as error:
            self._is_refused = isinstance(error, _PinError)
            raise HardwareKeyError(str(error)) from error
        except HardwareKeyError:
            self._drop()
            raise

    def _drop(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> bytes:
        raise NotImplementedError("the CA's key signs only")

    def private_numbers(self) -> NoReturn:
        raise NotImplementedError("the key is in the token")

    def private_bytes(self, *_format: object) -> NoReturn:
        raise NotImplementedError("the key is in the token")

    def __copy__(self) -> "TokenKey":
        return self

    def __deepcopy__(self, _memo: object) -> "TokenKey":
        return self


class _PinError(UsageError):
    """The token refused the PIN."""


class _Session:
    """A session with the token, logged in. Every method raises HardwareKeyError if the token does not answer as it
    should.
    """

    def __init__(self, address: KeyAddress, pin: str, *, is_writing: bool = False) -> None:
        """Raises: UsageError if there is no such token, or the PIN is not its."""
        import pkcs11

        self._address = address
        self.library = pkcs11
        self._key: Any = None
        token = _token(address)
        try:
            self.raw = token.open(rw=is_writing, user_pin=pin)
        except pkcs11.exceptions.UserAlreadyLoggedIn:
            self.raw = token.open(rw=is_writing)
        except (
            pkcs11.exceptions.PinIncorrect,
            pkcs11.exceptions.PinInvalid,
            pkcs11.exceptions.PinLenRange,
        ) as error:
            raise _PinError(
                f"{address.where} refused the PIN; after a few wrong ones it locks itself"
            ) from error
        except pkcs11.exceptions.PinLocked as error:
            raise _PinError(f"{address.where} is locked after too many wrong PINs; its maker's tool unlocks it") from error  # fmt: skip
        except pkcs11.exceptions.PKCS11Error as error:
            raise HardwareKeyError(f"{address.where} cannot be opened ({_why(error)})") from error

    def private(self) -> Any:
        """The private key's handle; None if there is none. Raises: UsageError if several fit."""
        found = self._objects(self.library.ObjectClass.PRIVATE_KEY, self._address.label, self._address.id)
        if len(found) > 1:
            raise UsageError(
                f"{self._address} is there {len(found)} times; say which by id=%… (in hex), or remove the others"
            )
        return found[0] if found else None

    def public(self, private: Any) -> ec.EllipticCurvePublicKey:
        """The public half of a private key. Raises: UsageError if it is not in the token, or is no EC P-256 key."""
        attribute = self.library.Attribute
        try:
            key_id = private[attribute.ID]
        except self.library.exceptions.PKCS11Error:
            key_id = b""
        found = self._objects(
            self.library.ObjectClass.PUBLIC_KEY, "" if key_id else self._address.label, key_id
        )
        if len(found) != 1:
            raise UsageError(f"{self._address}: its public half is there {len(found)} times, not once")
        return _public(self._address, found[0])

    def _objects(self, kind: Any, label: str, key_id: bytes) -> list[Any]:
        attribute = self.library.Attribute
        wanted = {attribute.CLASS: kind, attribute.KEY_TYPE: self.library.KeyType.EC}
        if label:
            wanted[attribute.LABEL] = label
        if key_id:
            wanted[attribute.ID] = key_id
        try:
            return list(self.raw.get_objects(wanted))
        except self.library.exceptions.PKCS11Error as error:
            raise HardwareKeyError(f"{self._address.where} cannot be read ({_why(error)})") from error

    def sign(self, digest: bytes) -> bytes:
        if self._key is None:
            self._key = self.private()
        if self._key is None:
            raise UsageError(f"{self._address} is not there")
        try:
            return bytes(self._key.sign(digest, mechanism=self.library.Mechanism.ECDSA))
        except self.library.exceptions.PKCS11Error as error:
            raise HardwareKeyError(f"{self._address} does not sign ({_why(error)})") from error

    def close(self) -> None:
        with suppress(self.library.exceptions.PKCS11Error):  # it may be gone already
            self.raw.close()


def _made(address: KeyAddress, pin: str) -> ec.EllipticCurvePublicKey:
    """A new key in the token."""
    session = _Session(address, pin, is_writing=True)
    library = session.library
    attribute = library.Attribute
    curve = {attribute.EC_PARAMS: library.util.ec.encode_named_curve_parameters("secp256r1")}
    try:
        domain = session.raw.create_domain_parameters(library.KeyType.EC, curve, local=True)
        public, _private = domain.generate_keypair(
            id=address.id or token_bytes(16),
            label=address.label or "edgekit-ca",
            store=True,
            mechanism=library.Mechanism.EC_KEY_PAIR_GEN,
            capabilities=library.MechanismFlag.SIGN | library.MechanismFlag.VERIFY,
            private_template={attribute.SENSITIVE: True, attribute.EXTRACTABLE: False},
        )
        return _public(address, public)
    except library.exceptions.PKCS11Error as error:
        raise HardwareKeyError(f"{address} cannot be made ({_why(error)})") from error
    finally:
        session.close()


def _public(address: KeyAddress, handle: Any) -> ec.EllipticCurvePublicKey:
    from pkcs11.util.ec import encode_ec_public_key

    try:
        key = load_der_public_key(encode_ec_public_key(handle))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{address}: its public half cannot be read ({error})") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise UsageError(f"{address} is no EC P-256 key")
    return key


def _token(address: KeyAddress) -> Any:
    """The one token that fits. Raises: UsageError, HardwareKeyError."""
    try:
        import pkcs11
    except ModuleNotFoundError as error:
        raise UsageError(f"a key in a PKCS#11 token needs another package; run: {extra('pkcs11')}") from error
    module = address.module or os.environ.get(MODULE, "")
    if not module:
        raise UsageError(
            f"{address.where}: which library speaks to it? add ?module-path=FILE to the address, or set {MODULE}"
        )
    try:
        library = pkcs11.lib(module)
        tokens = [slot.get_token() for slot in library.get_slots(token_present=True)]
        if not any(_fits(address, token) for token in tokens):
            # Some libraries look at what is plugged in only when they begin.
            library.reinitialize()
            tokens = [slot.get_token() for slot in library.get_slots(token_present=True)]
    except pkcs11.exceptions.PKCS11Error as error:
        raise HardwareKeyError(f"{module}: the PKCS#11 library does not work ({_why(error)})") from error
    fitting = [token for token in tokens if _fits(address, token)]
    if len(fitting) != 1:
        there = ", ".join(repr(_text(token.label)) for token in tokens if token.label) or "none"
        what = "is not there" if not fitting else f"is there {len(fitting)} times; narrow it down by serial=…"
        raise UsageError(f"{address.where} {what} (tokens found: {there})")
    return fitting[0]


def _fits(address: KeyAddress, token: Any) -> bool:
    wanted = (address.token, address.serial, address.manufacturer, address.model)
    has = (token.label, token.serial, token.manufacturer_id, token.model)
    return all(not want or want == _text(found) for want, found in zip(wanted, has, strict=True))


def _text(found: str | bytes) -> str:
    return (found.decode(errors="replace") if isinstance(found, bytes) else found).strip("\0 ")


def _why(error: Exception) -> str:
    """PKCS#11 errors carry their name and seldom a text."""
    name = type(error).__name__
    return f"{name}: {error}" if str(error) else name
