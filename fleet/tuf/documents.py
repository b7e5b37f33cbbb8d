"""Metadata: what a repository of ours is, how it changes, and what a fleet takes from a publisher.

Pure: documents in, documents out; the caller supplies keys and time.

Always true of a set that `check` accepts
 1. Each root follows the one before by one, signed by both; it is consistent, and trusts one online key of the fleet's
    for snapshot and timestamp.
 2. Top-level targets name no files: they delegate `NAME/*/*/*` of each model to the role `model.NAME` and `_fleet/*` to
    the role `fleet`, and every role that they delegate to is there, signed, not expired.
 3. No version of anything is below the one that was known.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from securesystemslib.signer import Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from edgekit.errors import ConflictError, SignatureRefusedError
from edgekit.trust import distinct, orderkeys
from edgekit.trust.orderkeys import OrderKeys
from edgekit.trust.target import DeltaTarget, Target

ROOT, TARGETS, SNAPSHOT, TIMESTAMP = Root.type, Targets.type, Snapshot.type, Timestamp.type
ONLINE = (SNAPSHOT, TIMESTAMP)
# How long each lives. Offline ones are signed anew by a person, whom `edgekit keys status` reminds in time; online ones
# by the service, at half their life.
OFFLINE_LIFE = timedelta(days=365)
REMIND = timedelta(days=30)
SNAPSHOT_LIFE = timedelta(days=14)
TIMESTAMP_LIFE = timedelta(days=3)
# The role that says whose orders are followed.
FLEET = "fleet"
MAX_DOCUMENT_BYTES = 5_000_000

Document = Metadata[Any]


def model_role(name: str) -> str:
    """The role that speaks for a model; the prefix keeps it apart from the top-level roles."""
    return f"model.{name}"


@dataclass(frozen=True)
class Documents:
    """A repository's offline half: roots in order, from a trusted one on, and the newest of the others by role."""

    roots: tuple[Metadata[Root], ...] = ()
    roles: Mapping[str, Metadata[Targets]] = field(default_factory=dict)

    @property
    def root(self) -> Root:
        return self.roots[-1].signed

    @property
    def targets(self) -> Targets:
        return self.roles[TARGETS].signed

    @property
    def delegated(self) -> Mapping[str, DelegatedRole]:
        delegations = self.targets.delegations
        return (delegations.roles or {}) if delegations is not None else {}

    def delegator(self, role: str) -> Root | Targets:
        return self.root if role in (ROOT, TARGETS, *ONLINE) else self.targets

    def document(self, role: str) -> Document:
        return self.roots[-1] if role == ROOT else self.roles[role]


def parse(data: bytes, role: str) -> Document:
    """Raises: SignatureRefusedError if these are no metadata of the role's type."""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise SignatureRefusedError(
            f"{role}: {len(data)} bytes of metadata; at most {MAX_DOCUMENT_BYTES} are taken"
        )
    try:
        document: Document = Metadata.from_bytes(data)
    except RepositoryError as error:
        raise SignatureRefusedError(f"{role}: no metadata ({error})") from error
    kind = role if role in (ROOT, *ONLINE) else TARGETS
    if document.signed.type != kind:
        raise SignatureRefusedError(f"{role}: these are metadata of the type {document.signed.type}")
    return document


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def encode(document: Document) -> bytes:
    return document.to_bytes(JSONSerializer(compact=True))


# -- making and changing ---------------------------------------------------------------------------------------------


def first(
    root: Iterable[Key], targets: Key, online: Key, *, threshold: int, now: datetime
) -> tuple[Metadata[Root], Metadata[Targets]]:
    """Version 1 of root and targets, unsigned. Raises: ConflictError for a threshold that cannot be reached."""
    made = Root(version=1, expires=life(now), consistent_snapshot=True)
    for key in root:
        made.add_key(key, ROOT)
    made.add_key(targets, TARGETS)
    for role in ONLINE:
        made.add_key(online, role)
    set_threshold(made, ROOT, threshold)
    listed = Targets(version=1, expires=life(now), delegations=Delegations({}, {}))
    return Metadata(made), Metadata(listed)


def life(now: datetime) -> datetime:
    return (now + OFFLINE_LIFE).replace(microsecond=0)


def set_threshold(delegator: Root | Targets, role: str, threshold: int) -> None:
    found = delegator.get_delegated_role(role)
    if not 1 <= threshold <= len(found.keyids):
        raise ConflictError(
            f"{role} has {len(found.keyids)} keys; its threshold is from 1 to that, not {threshold}"
        )
    found.threshold = threshold


def delegate(targets: Targets, role: str, key: Key, now: datetime) -> Metadata[Targets]:
    """Give a model's files, or the fleet's, to a role of their own; the role's empty version 1."""
    path = "_fleet/*" if role == FLEET else f"{role.removeprefix('model.')}/*/*/*"
    assert targets.delegations is not None
    assert targets.delegations.roles is not None
    if role in targets.delegations.roles:
        raise ConflictError(f"there is a role {role} already")
    targets.delegations.roles[role] = DelegatedRole(
        role, [], 1, terminating=True, paths=[path], unrecognized_fields={}
    )
    targets.add_key(key, role)
    return Metadata(Targets(version=1, expires=life(now)))


def add_target(targets: Targets, target: Target | DeltaTarget) -> bool:
    """List a bundle or a delta; whether it was not listed before."""
    listed = TargetFile(target.length, {"sha256": target.sha256}, target.path)
    if isinstance(target, DeltaTarget):
        listed.unrecognized_fields["custom"] = {"base": target.base, "method": target.method}
    if targets.targets.get(target.path) == listed:
        return False
    targets.targets[target.path] = listed
    return True


def blocked_of(targets: Targets, subjects: Iterable[str]) -> dict[str, str]:
    """Path of each bundle that is listed though a block list names its release (NAME@VERSION) or its sha256 → which."""
    wanted, found = set(subjects), {}
    for path, listed in targets.targets.items():
        name, _, rest = path.partition("/")
        for subject in (listed.hashes.get("sha256", ""), f"{name}@{rest.partition('/')[0]}"):
            if subject in wanted:
                found[path] = subject
    return found


def set_order_keys(targets: Targets, keys: OrderKeys) -> bool:
    """List whose orders devices follow, in the role `fleet`; whether that was not listed before."""
    listed = TargetFile.from_data(orderkeys.PATH, orderkeys.write(keys), ["sha256"])
    if targets.targets.get(orderkeys.PATH) == listed:
        return False
    targets.targets = {orderkeys.PATH: listed}
    return True


def renew(document: Document, now: datetime) -> None:
    """The next version, with a whole life before it; unsigned."""
    document.signed.version += 1
    document.signed.expires = life(now)
    document.signatures.clear()


def online(
    documents: Documents, known: tuple[Snapshot | None, Timestamp | None], now: datetime
) -> tuple[Metadata[Snapshot], Metadata[Timestamp]]:
    """The next snapshot and timestamp, unsigned.

    Versions are seconds since 1970, so that a fleet restored from a backup does not fall behind what devices saw. What
    was listed once stays listed, or devices would refuse it as a rollback.
    """
    snapshot, timestamp = known
    meta = dict(snapshot.meta) if snapshot is not None else {}
    for role, document in documents.roles.items():
        meta[f"{role}.json"] = MetaFile(document.signed.version)
    version = next_version(now, snapshot.version if snapshot else 0)
    expires = (now + SNAPSHOT_LIFE).replace(microsecond=0)
    made = Metadata(Snapshot(version=version, expires=expires, meta=meta))
    return made, stamp(version, timestamp, now)


def stamp(snapshot_version: int, known: Timestamp | None, now: datetime) -> Metadata[Timestamp]:
    """The next timestamp, unsigned."""
    version = next_version(now, known.version if known else 0)
    expires = (now + TIMESTAMP_LIFE).replace(microsecond=0)
    return Metadata(Timestamp(version=version, expires=expires, snapshot_meta=MetaFile(snapshot_version)))


def next_version(now: datetime, last: int) -> int:
    return max(last + 1, int(now.timestamp()))


# -- checking --------------------------------------------------------------------------------------------------------


def is_signed(document: Document, role: str, delegator: Root | Targets) -> bool:
    """Whether as many different keys as `delegator` asks for have signed."""
    try:
        _verify(document, role, delegator)
    except SignatureRefusedError:
        return False
    return True


def check(
    known: Documents | None, offered: Documents, online_keys: Iterable[str], now: datetime
) -> Documents:
    """The whole set after `offered` was added to `known`, if a fleet with these online keys may give it out.

    Raises: SignatureRefusedError; ConflictError for versions that are not the next.
    """
    whole = extend(known, offered)
    _check_root_is_ours(whole.root, set(online_keys))
    check_now(whole, now)
    return whole


def extend(known: Documents | None, offered: Documents) -> Documents:
    """`known` and `offered` together. Raises: SignatureRefusedError, ConflictError."""
    roots = list(known.roots) if known is not None else []
    for root in offered.roots:
        _check_root(root, roots[-1] if roots else None)
        roots.append(root)
    if not roots:
        raise ConflictError("this fleet has no root yet; 'edgekit keys init' makes one")
    roles = dict(known.roles) if known is not None else {}
    for role, document in offered.roles.items():
        if role in roles:
            _check_next(role, roles[role], document)
        roles[role] = document
    if TARGETS not in roles:
        raise ConflictError("the top-level targets are missing")
    return Documents(tuple(roots), roles)


def check_now(whole: Documents, now: datetime) -> None:
    """Every document is signed as the present root asks, complete, and not expired. Raises: SignatureRefusedError."""
    _check_expiry(ROOT, whole.root.expires, now)
    for role in (TARGETS, *whole.delegated):
        if role not in whole.roles:
            raise SignatureRefusedError(f"{role} is delegated to, but was never published")
        _verify(whole.roles[role], role, whole.delegator(role))
        _check_expiry(role, whole.roles[role].signed.expires, now)
    if whole.targets.targets:
        raise SignatureRefusedError("top-level targets name files; models have roles of their own")


def _check_root(document: Metadata[Root], before: Metadata[Root] | None) -> None:
    version = document.signed.version
    if before is not None:
        if version != before.signed.version + 1:
            raise ConflictError(
                f"root {version} does not follow {before.signed.version}; bring your copy up to date"
            )
        _verify(document, ROOT, before.signed)
    _verify(document, ROOT, document.signed)


def _check_next(role: str, before: Metadata[Targets], document: Metadata[Targets]) -> None:
    old, new = before.signed.version, document.signed.version
    if new <= old and encode(before) != encode(document):
        raise ConflictError(f"{role} {new} was signed on a copy that is out of date: the fleet has {old}")


def _check_root_is_ours(root: Root, keys: set[str]) -> None:
    if not root.consistent_snapshot:
        raise SignatureRefusedError("this root does without consistent snapshots, which this fleet needs")
    for role in ONLINE:
        found = root.roles[role]
        if len(found.keyids) != 1 or found.threshold != 1 or not set(found.keyids) <= keys:
            raise SignatureRefusedError(
                f"this root does not trust this fleet's online key for {role}; 'edgekit keys rotate online' mends that"
            )


def _check_expiry(role: str, expires: datetime, now: datetime) -> None:
    if expires <= now:
        raise SignatureRefusedError(
            f"{role} expired on {expires:%Y-%m-%d}; 'edgekit keys sign' signs it anew"
        )


def _verify(document: Document, role: str, delegator: Root | Targets) -> None:
    try:
        delegator.verify_delegate(role, document.signed_bytes, document.signatures)
        distinct.check(encode(document), role, delegator)
    except (RepositoryError, ValueError) as error:
        raise SignatureRefusedError(f"{role} {document.signed.version}: {error}") from error
