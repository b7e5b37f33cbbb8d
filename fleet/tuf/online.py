"""The fleet's half of the repository: it checks what publishers bring, and signs snapshot and timestamp.

    DIR/online.key           ed25519, 0600; its successor, once asked for, is online.next.key
    DIR/metadata/            static files, for devices and mirrors; below targets/ the files that are no bundles

Always true
 1. Nothing is given out that `documents.check` did not accept: a publisher's mistake is his to hear of, not the devices'.
 2. What devices saw is never taken back: versions only rise, and what a snapshot listed stays listed.
 3. Snapshot and timestamp are signed anew at half their life, whether or not something changed.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import Metadata, Root, Snapshot, Timestamp

from edgekit import delta
from edgekit.errors import ConflictError, SignatureRefusedError
from edgekit.trust import orderkeys
from edgekit.trust.orderkeys import OrderKeys
from edgekit.trust.target import Target
from fleet.publish import load_key, make_key
from fleet.tuf import documents, static
from fleet.tuf.documents import FLEET, ONLINE, ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Documents

log = logging.getLogger(__name__)

_REMIND_EVERY = timedelta(days=1)


@dataclass(frozen=True)
class Files:
    """What came with documents, by path; `check` refuses order keys that would deafen the devices."""

    given: Mapping[str, bytes] = field(default_factory=dict)
    check: Callable[[OrderKeys], None] = lambda _listed: None


class Online:
    """One fleet's repository; used from several threads, changed by one at a time."""

    def __init__(self, folder: Path) -> None:
        """Raises: UsageError for a key that cannot be used."""
        self.folder = folder
        self.metadata = folder / "metadata"
        self._lock = threading.Lock()
        self._signer = _signer(folder / "online.key")
        self._reminded: datetime | None = None

    # -- reading -------------------------------------------------------------------------------------------------

    @property
    def key(self) -> SSlibKey:
        """The public half of the key that signs now."""
        return self._signer.public_key

    def next_key(self) -> SSlibKey:
        """The public half of the key that will sign once a root names it; made on first use."""
        return _signer(self.folder / "online.next.key").public_key

    def documents(self) -> Documents | None:
        """None before the first root."""
        roots = static.roots(self.metadata)
        if not roots:
            return None
        roles = {}
        for role in (TARGETS, *static.delegated(self.metadata)):
            data = static.newest(self.metadata, role)
            if data is not None:
                roles[role] = documents.parse(data, role)
        return Documents(tuple(documents.parse(data, ROOT) for data in roots), roles)

    def root(self) -> str:
        """The newest root's text, for enrolment files; empty before there is one."""
        data = static.newest(self.metadata, ROOT)
        return data.decode() if data is not None else ""

    def check_listed(self, target: Target) -> None:
        """Raises: SignatureRefusedError if this bundle is no target of the metadata here."""
        whole = self.documents() or Documents()
        role = whole.roles.get(documents.model_role(target.name))
        listed = role.signed.targets.get(target.path) if role is not None else None
        if listed is None or (listed.length, listed.hashes.get("sha256")) != (target.length, target.sha256):
            raise SignatureRefusedError(
                f"{target.path} is not listed in the fleet's metadata; publish it with the publisher's folder: --keys DIR"
            )

    def is_delta(self, sha256: str, name: str, target: str) -> bool:
        """Whether the publisher listed a file of this digest as a delta to the bundle `target` of the model `name`."""
        data = static.newest(self.metadata, documents.model_role(name))
        listed = documents.parse(data, documents.model_role(name)).signed.targets if data is not None else {}
        return any(
            one.hashes.get("sha256") == sha256 and delta.is_to(path, target) for path, one in listed.items()
        )

    def order_keys(self) -> OrderKeys | None:
        """Whose orders devices follow, as the publisher lists it; None if he never did."""
        whole = self.documents()
        role = whole.roles.get(FLEET) if whole is not None else None
        target = role.signed.targets.get(orderkeys.PATH) if role is not None else None
        if target is None:
            return None
        return orderkeys.read((self.metadata / "targets" / target.get_prefixed_paths()[0]).read_bytes())

    # -- changing ------------------------------------------------------------------------------------------------

    def offer(
        self,
        roots: tuple[bytes, ...],
        roles: Mapping[str, bytes],
        now: datetime,
        files: Files = Files(),
    ) -> Documents:
        """Take a publisher's documents and the `files` that the role `fleet` lists, all or none.

        Raises: SignatureRefusedError, ConflictError, OSError.
        """
        offered = Documents(
            tuple(documents.parse(data, ROOT) for data in roots),
            {_checked_name(role): documents.parse(data, role) for role, data in roles.items()},
        )
        with self._lock:
            whole = documents.check(self.documents(), offered, self._key_ids(), now)
            listed = {
                static.name(role, one.signed.version): roles[role] for role, one in offered.roles.items()
            }
            listed |= {
                static.name(ROOT, one.signed.version): data
                for one, data in zip(offered.roots, roots, strict=True)
            }
            self._keep_files(whole, files)
            self._take_key(whole.root)
            static.write(self.metadata, listed | self._signed(whole, now))
        return whole

    def _keep_files(self, whole: Documents, files: Files) -> None:
        """What the role `fleet` lists lies there before devices hear of it."""
        role = whole.roles.get(FLEET)
        for path, target in role.signed.targets.items() if role is not None else ():
            if path != orderkeys.PATH:
                raise ConflictError(f"{path} is listed, but the role {FLEET} is for {orderkeys.PATH} alone")
            kept = self.metadata / "targets" / target.get_prefixed_paths()[0]
            data = kept.read_bytes() if kept.is_file() else files.given.get(path, b"")
            try:
                target.verify_length_and_hashes(data)
            except LengthOrHashMismatchError as error:
                raise ConflictError(f"{path} is listed, but what came with it is another file") from error
            files.check(orderkeys.read(data))
            kept.parent.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            static.write(kept.parent, {kept.name: data})

    def renew(self, now: datetime) -> bool:
        """Sign snapshot and timestamp anew where it is time, or where they are not what root asks; whether it was."""
        with self._lock:
            whole = self.documents()
            if whole is None:
                return False
            self._take_key(whole.root)
            self._remind(whole, now)
            snapshot, timestamp = self._kept()
            is_whole = all(
                one is not None and documents.is_signed(one, role, whole.root)
                for role, one in ((SNAPSHOT, snapshot), (TIMESTAMP, timestamp))
            )
            if snapshot is None or timestamp is None or not is_whole:
                static.write(self.metadata, self._signed(whole, now))
                return True
            if snapshot.signed.expires - now <= documents.SNAPSHOT_LIFE / 2:
                static.write(self.metadata, self._signed(whole, now))
                return True
            if timestamp.signed.expires - now <= documents.TIMESTAMP_LIFE / 2:
                made = documents.stamp(snapshot.signed.version, timestamp.signed, now)
                made.sign(self._signer)
                static.write(self.metadata, {static.name(TIMESTAMP, 0): documents.encode(made)})
                return True
            return False

    def _signed(self, whole: Documents, now: datetime) -> dict[str, bytes]:
        """The next snapshot and timestamp, which is last, as files."""
        snapshot, timestamp = self._kept()
        known = (
            snapshot.signed if snapshot is not None else None,
            timestamp.signed if timestamp is not None else None,
        )
        made = documents.online(whole, known, now)
        for document in made:
            document.sign(self._signer)
        return {
            static.name(SNAPSHOT, made[0].signed.version): documents.encode(made[0]),
            static.name(TIMESTAMP, 0): documents.encode(made[1]),
        }

    def _kept(self) -> tuple[Metadata[Snapshot] | None, Metadata[Timestamp] | None]:
        snapshot = static.newest(self.metadata, SNAPSHOT)
        path = self.metadata / static.name(TIMESTAMP, 0)
        return (
            documents.parse(snapshot, SNAPSHOT) if snapshot is not None else None,
            documents.parse(path.read_bytes(), TIMESTAMP) if path.is_file() else None,
        )

    def _key_ids(self) -> list[str]:
        successor = self.folder / "online.next.key"
        return [self.key.keyid, *([self.next_key().keyid] if successor.is_file() else [])]

    def _take_key(self, root: Root) -> None:
        """Sign with the key that root names: after a rotation that is the successor, and the old one is gone."""
        named = root.roles[SNAPSHOT].keyids[0]
        successor = self.folder / "online.next.key"
        if named != self.key.keyid and successor.is_file() and self.next_key().keyid == named:
            successor.replace(self.folder / "online.key")
            self._signer = _signer(self.folder / "online.key")

    def _remind(self, whole: Documents, now: datetime) -> None:
        """Say once a day which offline documents somebody has to sign."""
        if self._reminded is not None and now - self._reminded < _REMIND_EVERY:
            return
        self._reminded = now
        for role in (ROOT, TARGETS, *whole.delegated):
            left = whole.document(role).signed.expires - now
            if left <= documents.REMIND:
                log.warning(
                    "%s expires in %d days; the publisher must sign it: edgekit keys sign",
                    role,
                    max(left.days, 0),
                )


class Chore:
    """`renew` for a service's loop: as often as it is called, it looks once a minute, and survives a full disk."""

    def __init__(self, online: Online) -> None:
        self._online = online
        self._next: datetime | None = None

    def __call__(self) -> None:
        now = datetime.now(UTC)
        # A clock that was set back must not put it off.
        if self._next is not None and self._next - timedelta(minutes=1) <= now < self._next:
            return
        self._next = now + timedelta(minutes=1)
        try:
            self._online.renew(now)
        except (OSError, SignatureRefusedError) as error:
            log.error("snapshot and timestamp cannot be signed: %s", error)  # noqa: TRY400  # tried again in a minute


def _signer(path: Path) -> CryptoSigner:
    held = load_key(path) if path.exists() else make_key(path)
    return CryptoSigner(held.private, SSlibKey.from_crypto(held.private.public_key()))


def _checked_name(role: str) -> str:
    if role in (ROOT, *ONLINE) or "/" in role or role.startswith("."):
        raise ConflictError(f"{role!r} is no role that a publisher brings")
    return role
