"""The workflow of a client (The Update Framework specification, section 5), every rule of it python-tuf's.

Always true
 1. Metadata is loaded in the order root, timestamp, snapshot, targets, delegated roles; what fails ends the update.
 2. What was verified is written down before the next is asked for, and nothing else ever is. What was written down
    before is verified again before it is used.
 3. A delegated role is verified against the very delegator through which this search reached it, in every search: two
    that delegate to one name may trust different keys.
 4. All is judged by one time, which the caller gives: what time it is, a device must not believe its clock alone.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import cast
from urllib.parse import quote

from tuf.api.exceptions import EqualVersionNumberError, RepositoryError
from tuf.api.metadata import Root, Snapshot, TargetFile, Targets, Timestamp

# The library's rules without its reading and writing: its own updater neither syncs nor resumes. The module is not
# part of the library's public interface: the bounds of its version in pyproject.toml, and tests/device_agent/tuf.
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType

from device_agent.tuf.kept import Kept
from device_agent.tuf.web import HTTPStatusError, Web
from edgekit.errors import SignatureRefusedError
from edgekit.trust import distinct

# So many new roots in one update (5.3.3), roles in one search (5.6.7.1), and bytes where no signed length bounds them.
MAX_ROOTS = 256
MAX_ROLES = 32
ROOT_BYTES = 512_000
TIMESTAMP_BYTES = 16_384
SNAPSHOT_BYTES = 2_000_000
TARGETS_BYTES = 5_000_000


class MetadataRefusedError(SignatureRefusedError):
    """Metadata that came, or what is kept here, is not what it should be; the message says which rule it breaks."""

    code = "metadata"


class Client:
    """One update: `refresh` once, then searches."""

    def __init__(self, kept: Kept, web: Web, metadata_url: str, now: datetime) -> None:
        """Raises: MetadataRefusedError if no valid root is kept."""
        self._kept = kept
        self._web = web
        self._url = metadata_url.rstrip("/")
        root = kept.read(Root.type)
        if root is None:
            raise MetadataRefusedError(f"{kept.folder}: no root is trusted here yet")
        try:
            self._trusted = TrustedMetadataSet(root, EnvelopeType.METADATA)
        except RepositoryError as error:
            raise MetadataRefusedError(
                f"{kept.folder}: the root that is kept is not valid: {error}"
            ) from error
        self._trusted.reference_time = now

    @property
    def is_consistent(self) -> bool:
        """Whether files lie under names that carry their versions and digests (6.2)."""
        return bool(self._trusted.root.consistent_snapshot)

    def refresh(self) -> None:
        """Bring the top-level metadata up to date. Raises: MetadataRefusedError, FetchError, OSError."""
        try:
            self._refresh_root()
            self._refresh_timestamp()
            self._refresh_snapshot()
            self._load_targets(Targets.type, Root.type)
        except RepositoryError as error:
            raise MetadataRefusedError(str(error)) from error

    def find(self, path: str) -> TargetFile | None:
        """What the most trusted role says of `path`, or None.

        Raises: MetadataRefusedError, FetchError, OSError.
        """
        try:
            return next(
                (found for role in self._visited(path) if (found := role.targets.get(path)) is not None), None
            )
        except RepositoryError as error:
            raise MetadataRefusedError(str(error)) from error

    def _refresh_root(self) -> None:
        """5.3: one version after the other, each signed by the one before and by itself."""
        for _ in range(MAX_ROOTS):
            version = self._trusted.root.version + 1
            try:
                data = self._get(Root.type, ROOT_BYTES, version)
            except HTTPStatusError as error:
                # 5.3.3: that there is none is how the newest is known. Some stores answer 403 for what is not there.
                if error.status in (403, 404):
                    return
                raise
            distinct.check(data, Root.type, self._trusted.root)
            self._trusted.update_root(data)
            distinct.check(data, Root.type, self._trusted.root)
            self._kept.write(Root.type, data)

    def _refresh_timestamp(self) -> None:
        """5.4. The one that is kept guards against older ones, even when it has expired."""
        self._try_kept_timestamp()
        data = self._get(Timestamp.type, TIMESTAMP_BYTES, None)
        try:
            self._update_timestamp(data)
        except EqualVersionNumberError:
            return
        self._kept.write(Timestamp.type, data)

    def _try_kept_timestamp(self) -> None:
        data = self._kept.read(Timestamp.type)
        if data is None:
            return
        try:
            self._update_timestamp(data)
        except RepositoryError:
            # Expired: the set holds it nevertheless. Not signed by the present keys: then it guards against nothing.
            return

    def _refresh_snapshot(self) -> None:
        """5.5. An outdated one that is kept guards against the rollback of what it lists."""
        data = self._kept.read(Snapshot.type)
        if data is not None:
            try:
                self._update_snapshot(data, is_kept=True)
            except RepositoryError:
                pass
            else:
                return
        told = self._trusted.timestamp.snapshot_meta
        data = self._get(Snapshot.type, told.length or SNAPSHOT_BYTES, self._versioned(told.version))
        self._update_snapshot(data, is_kept=False)
        self._kept.write(Snapshot.type, data)

    def _load_targets(self, role: str, delegator: str) -> Targets:
        """5.6: from here if that is what the snapshot lists, else from the mirror."""
        data = self._kept.read(role)
        if data is not None:
            try:
                return self._update_targets(data, role, delegator)
            except RepositoryError:
                # An older version, or signed for another delegator: no use here.
                pass
        told = self._trusted.snapshot.meta.get(f"{role}.json")
        if told is None:
            raise RepositoryError(f"{role} is delegated to, but the snapshot does not list it")
        data = self._get(role, told.length or TARGETS_BYTES, self._versioned(told.version))
        loaded = self._update_targets(data, role, delegator)
        self._kept.write(role, data)
        return loaded

    def _visited(self, path: str) -> Iterator[Targets]:
        """5.6.7: the roles responsible for `path`, depth first, each once, in the order of trust."""
        waiting = [(Targets.type, Root.type)]
        seen: set[str] = set()
        while waiting and len(seen) <= MAX_ROLES:
            role, delegator = waiting.pop()
            if role in seen:
                continue
            seen.add(role)
            if role == Targets.type:
                loaded = cast("Targets", self._trusted[Targets.type])
            else:
                loaded = self._load_targets(role, delegator)
            yield loaded
            if loaded.delegations is None:
                continue
            children: list[tuple[str, str]] = []
            for child, is_terminating in loaded.delegations.get_roles_for_target(path):
                children.append((child, role))
                if is_terminating:
                    waiting.clear()
                    break
            waiting += reversed(children)

    def _update_timestamp(self, data: bytes) -> None:
        distinct.check(data, Timestamp.type, self._trusted.root)
        self._trusted.update_timestamp(data)

    def _update_snapshot(self, data: bytes, *, is_kept: bool) -> None:
        distinct.check(data, Snapshot.type, self._trusted.root)
        self._trusted.update_snapshot(data, trusted=is_kept)

    def _update_targets(self, data: bytes, role: str, delegator: str) -> Targets:
        distinct.check(data, role, cast("Root | Targets", self._trusted[delegator]))
        return self._trusted.update_delegated_targets(data, role, delegator)

    def _versioned(self, version: int) -> int | None:
        return version if self.is_consistent else None

    def _get(self, role: str, limit: int, version: int | None) -> bytes:
        name = quote(role, safe="")
        return self._web.document(
            f"{self._url}/{name}.json" if version is None else f"{self._url}/{version}.{name}.json", limit
        )
