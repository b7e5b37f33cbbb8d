"""Secrets that the service must know again, such as what signs a webhook: kept in the database under a key of the home.

Always true
 1. Whoever has the database, or a copy of it, without the home's `keys/secrets.key` reads none of them.
 2. What was sealed for one purpose and name opens for no other: rows cannot be swapped.
"""

import base64
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edgekit.errors import FleetError
from fleet.server.state import Keys

# The purpose of what alert targets keep.
TARGETS = "alert target"
_NONCE_BYTES = 12


class Seal:
    """AES-256-GCM with a random nonce (NIST SP 800-38D), the key derived from the home's secrets key."""

    def __init__(self, keys: Keys, purpose: str) -> None:
        derived = keys.derive(f"seal {purpose}")
        self._cipher = AESGCM(base64.urlsafe_b64decode(derived + "="))
        self._purpose = purpose

    def close(self, name: str, secret: bytes) -> str:
        nonce = os.urandom(_NONCE_BYTES)
        return base64.b64encode(nonce + self._cipher.encrypt(nonce, secret, self._about(name))).decode()

    def open(self, name: str, sealed: str) -> bytes:
        """Raises: FleetError if it was not sealed by this home for this name."""
        data = base64.b64decode(sealed)
        try:
            return self._cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], self._about(name))
        except InvalidTag as error:
            raise FleetError(
                f"{name}: its secrets were sealed by another home's keys/secrets.key; remove it and add it again"
            ) from error

    def _about(self, name: str) -> bytes:
        return f"{self._purpose}\0{name}".encode()
