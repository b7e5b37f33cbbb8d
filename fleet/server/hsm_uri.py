"""Which key of which PKCS#11 token: the part of RFC 7512 that names a private key, and nothing secret.

Pure.

Always true
 1. A PIN is never part of an address: neither `pin-value` nor `pin-source` is followed.
 2. What is not understood is refused, so that no address means more than it says.
"""

from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from edgekit.errors import UsageError

SCHEME = "pkcs11:"
EXAMPLE = "pkcs11:token=fleet;object=ca?module-path=/usr/lib/softhsm/libsofthsm2.so"
_PATH = ("token", "serial", "manufacturer", "model", "object", "id", "type")
_PIN = ("pin-value", "pin-source")


@dataclass(frozen=True)
class KeyAddress:
    """What narrows down token and key; an empty one matches any. `module` is the library that speaks to the token."""

    token: str = ""
    serial: str = ""
    manufacturer: str = ""
    model: str = ""
    label: str = ""
    id: bytes = b""
    module: str = ""

    def __str__(self) -> str:
        """For messages: the key first."""
        key = [f"label {self.label!r}"] if self.label else []
        key += [f"id {self.id.hex()}"] if self.id else []
        return f"the key with {' and '.join(key)} in {self.where}"

    @property
    def where(self) -> str:
        parts = [
            f"{name} {value!r}"
            for name, value in (
                ("label", self.token),
                ("serial", self.serial),
                ("manufacturer", self.manufacturer),
                ("model", self.model),
            )
            if value
        ]
        return f"the PKCS#11 token with {' and '.join(parts)}" if parts else "the PKCS#11 token"


def parse(text: str) -> KeyAddress:
    """`pkcs11:token=…;object=…[;id=%01][?module-path=…]` (RFC 7512, 2.3). Raises: UsageError."""
    if not text.startswith(SCHEME):
        raise UsageError(f"--ca-key {text!r}: write {EXAMPLE}")
    path, _, query = text.removeprefix(SCHEME).partition("?")
    found: dict[str, bytes] = {}
    for known, part in (
        *((_PATH, part) for part in path.split(";") if part),
        *((("module-path",), part) for part in query.split("&") if part),
    ):
        name, equals, value = part.partition("=")
        if name in _PIN:
            # Its value may be the secret itself: not repeated.
            raise UsageError(
                f"--ca-key: {name} is not taken: the PIN stands in --ca-passphrase-file or the environment, never in "
                "an address"
            )
        if not equals or name not in known:
            raise UsageError(f"--ca-key: {name!r} is not followed here; write {EXAMPLE}")
        if name in found:
            raise UsageError(f"--ca-key: {name} is there twice")
        found[name] = unquote_to_bytes(value)
    if found.pop("type", b"private") != b"private":
        raise UsageError("--ca-key: type is private; a CA signs")
    key_id = found.pop("id", b"")
    try:
        words = {name: value.decode() for name, value in found.items()}
    except UnicodeDecodeError as error:
        raise UsageError("--ca-key: names are UTF-8, percent-encoded") from error
    address = KeyAddress(
        token=words.get("token", ""),
        serial=words.get("serial", ""),
        manufacturer=words.get("manufacturer", ""),
        model=words.get("model", ""),
        label=words.get("object", ""),
        id=key_id,
        module=words.get("module-path", ""),
    )
    if not address.label and not address.id:
        raise UsageError(f"--ca-key {text}: says no key of the token; add object=NAME, e.g. {EXAMPLE}")
    return address
