"""A publisher's folder and a fleet: what the one has is brought to the other."""

from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec
from securesystemslib.signer import Key

from edgekit.errors import UsageError
from edgekit.trust.target import DeltaTarget, Target
from fleet import api
from fleet.client.rest import Client
from fleet.tuf import documents
from fleet.tuf.documents import FLEET, ROOT, Documents
from fleet.tuf.home import Home


def public_key(told: api.PublicKey) -> Key:
    """Raises: UsageError if it is no key."""
    try:
        return Key.from_dict(told.keyid, dict(told.key))
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{told.keyid}: no public key ({error})") from error


def read_public_key(data: bytes, where: str) -> Key:
    """A key from the JSON that `edgekit keys new` and the fleet write. Raises: UsageError."""
    try:
        return public_key(msgspec.json.decode(data, type=api.PublicKey))
    except msgspec.DecodeError as error:
        raise UsageError(f"{where}: no public key file ({error})") from error


def fleets(view: api.MetadataView) -> Documents:
    """What the fleet has. Raises: SignatureRefusedError if that is no metadata."""
    return Documents(
        tuple(documents.parse(text.encode(), ROOT) for text in view.roots),
        {role: documents.parse(text.encode(), role) for role, text in view.roles.items()},
    )


def refresh(client: Client, home: Home) -> None:
    """Take over what another publisher of this fleet signed meanwhile."""
    there = fleets(client.metadata())
    if there.roots:
        home.adopt(there)


def upload(client: Client, home: Home) -> tuple[str, ...]:
    """Bring the fleet what it has not; the names of these roles."""
    there, here = fleets(client.metadata()), home.documents()
    newest = there.roots[-1].signed.version if there.roots else 0
    roots = tuple(documents.encode(one).decode() for one in here.roots if one.signed.version > newest)
    roles = {
        role: documents.encode(one).decode()
        for role, one in here.roles.items()
        if role not in there.roles or one.signed.version > there.roles[role].signed.version
    }
    if roots or roles:
        files = {path: data.decode() for path, data in home.files().items()} if FLEET in roles else {}
        client.offer(api.NewMetadata(roots, roles, files))
    return (*([ROOT] if roots else []), *roles)


def publish(client: Client, home: Home, target: Target, deltas: Iterable[DeltaTarget] = ()) -> None:
    """Make a bundle, and deltas to it, targets of its model's role, and bring that to the fleet."""
    refresh(client, home)
    home.add(target, datetime.now(UTC), deltas)
    upload(client, home)
