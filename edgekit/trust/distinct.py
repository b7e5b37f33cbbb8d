"""A threshold counts keys, not names of keys.

python-tuf 7.0.1 counts key ids, and a document may list one key under several (an id need not be the hash of the key:
well-known repositories have others). Whoever may write such a list holds the role's delegator anyway; but a mistake
there, or a repository tool that was fooled, would make one stolen key enough where several are asked for.
Source: specification 4.2 and 5.3.4, "a threshold of unique keys".
"""

from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from securesystemslib.signer import Key
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, Root, Targets


def check(data: bytes, role: str, delegator: Root | Targets) -> None:
    """That `data` is signed by as many different keys as `delegator` asks for. Raises: RepositoryError.

    What is signed wrongly in other ways is the trusted set's business.
    """
    threshold = delegator.get_delegated_role(role).threshold
    if threshold < 2:
        return
    # The type of what is signed is of no interest here, only that and by whom.
    document: Metadata[Any] = Metadata.from_bytes(data)
    result = delegator.get_verification_result(role, document.signed_bytes, document.signatures)
    keys = {_material(key) for key in result.signed.values()}
    if len(keys) < threshold:
        raise UnsignedMetadataError(f"{role} was signed by {len(keys)}/{threshold} keys")


def _material(key: Key) -> bytes:
    """What makes it this key, whatever it is called and however its text is wrapped."""
    public = str(key.keyval["public"])
    if key.keytype == "ed25519":
        return bytes.fromhex(public)
    return load_pem_public_key(public.encode()).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
