"""Bodies about releases, their metadata, and what is blocked."""

from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from edgekit.manifest import Sha256
from edgekit.wire.enrolment import Key
from fleet.api.common import Subject, Text


class NewBundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /bundles` after its file was uploaded and listed in the metadata; evidence is a JSON document as text.

    An `alternate` lies beside the release's picked bundle of its profile; no device is ordered to run it.
    """

    sha256: Sha256
    evidence: str | None = None
    alternate: bool = False


class BundleView(msgspec.Struct, frozen=True):
    name: str
    version: str
    profile: str
    sha256: str
    length: int
    engine: str
    published: datetime
    has_evidence: bool
    # Of an alternate: how it was made. Empty for what devices get.
    alternate: str = ""


class PublishAnswer(msgspec.Struct, frozen=True):
    bundle: BundleView
    was_there: bool


class ReleaseView(msgspec.Struct, frozen=True):
    name: str
    version: str
    published: datetime
    bundles: tuple[BundleView, ...]
    alternates: tuple[BundleView, ...] = ()


class Block(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /blocked`: no new order names `subject`, a release (NAME@VERSION) or a bundle's sha256."""

    subject: Subject
    reason: Text = ""


class BlockAnswer(msgspec.Struct, frozen=True):
    """`is_changed` is False where it was so before."""

    subject: str
    is_changed: bool


class BlockedView(msgspec.Struct, frozen=True):
    subject: str
    reason: str
    actor: str
    at: datetime


class KeysView(msgspec.Struct, frozen=True):
    """Public halves only, key id → hex."""

    fleet: str
    order_keys: dict[str, str]
    audit_keys: dict[str, str]


class OrderKey(msgspec.Struct, frozen=True):
    """The key that is to sign orders once the publisher lists it: its id and ed25519 public key in hex."""

    keyid: str
    public: Key


class PublicKey(msgspec.Struct, frozen=True):
    """A public key as TUF metadata writes it; `key` has `keytype`, `scheme` and `keyval`."""

    keyid: str
    key: dict[str, Any]


class MetadataView(msgspec.Struct, frozen=True):
    """`GET /metadata`: the publishers' signed documents as text, and the key that signs snapshot and timestamp."""

    online_key: PublicKey
    roots: tuple[str, ...] = ()
    roles: dict[str, str] = {}


class NewMetadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /metadata`: new roots in order, the newest version of other roles, and what of the role `fleet` lists is new.

    Taken all or none.
    """

    roots: Annotated[tuple[str, ...], Meta(max_length=256)] = ()
    roles: Annotated[dict[str, str], Meta(max_length=1000)] = {}
    files: Annotated[dict[str, str], Meta(max_length=4)] = {}
