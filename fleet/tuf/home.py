"""The publisher's folder: the offline roles' keys, and his copy of what they signed.

    DIR/ring.json keys/      private keys (`ring`)
    DIR/metadata/            what is complete, by version
    DIR/pending/             what still lacks signatures of others
    DIR/order-keys.json      whose orders devices follow, as the role `fleet` lists it

Always true
 1. What is in `metadata` is signed as its delegator asks; what is not yet waits in `pending`, and one version at a time.
 2. A change begins from the newest version that the fleet is known to have (`adopt`).
 3. Nothing is signed that was not made here or shown: adding a signature to a pending document changes nothing else.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from securesystemslib.signer import Key
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Root, TargetFile, Targets

from edgekit.errors import ConflictError, NotFoundError, UsageError
from edgekit.trust import orderkeys
from edgekit.trust.orderkeys import OrderKeys
from edgekit.trust.target import DeltaTarget, Target
from fleet.tuf import documents, ring, static
from fleet.tuf.documents import FLEET, ONLINE, ROOT, TARGETS, Document, Documents, model_role
from fleet.tuf.ring import Ring


@dataclass(frozen=True)
class RoleStatus:
    """One role as `edgekit keys status` shows it. `here` of its `keys` are in this ring."""

    role: str
    version: int
    expires: datetime
    threshold: int
    keys: int
    here: int
    remark: str
    # Targets that are listed though the fleet's block list names them.
    blocked: tuple[str, ...] = ()


class Home:
    """An opened publisher's folder."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.folder = ring.folder
        self.metadata = ring.folder / "metadata"
        self.pending = ring.folder / "pending"

    # -- reading -------------------------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        return bool(static.versions(self.metadata, ROOT))

    def documents(self) -> Documents:
        """The newest complete set. Raises: NotFoundError before `init`; SignatureRefusedError if it is damaged."""
        roots = static.roots(self.metadata)
        if not roots:
            raise NotFoundError(f"{self.folder}: there is no root here; 'edgekit keys init' makes one")
        roles = {}
        for role in (TARGETS, *static.delegated(self.metadata)):
            data = static.newest(self.metadata, role)
            if data is not None:
                roles[role] = documents.parse(data, role)
        return Documents(tuple(documents.parse(data, ROOT) for data in roots), roles)

    def status(self, now: datetime, blocked: Iterable[str] = ()) -> list[RoleStatus]:
        """`blocked` are the subjects of the fleet's block list."""
        listed = self.still_listed(blocked)
        whole = self.documents()
        held = self.ring.held
        rows = []
        for role in (ROOT, TARGETS, *sorted(whole.delegated)):
            document = whole.document(role)
            found = whole.delegator(role).get_delegated_role(role)
            here = len([keyid for keyid in found.keyids if keyid in held])
            gone = listed.get(role, {})
            remarks = [self._remark(role, document.signed.expires, now)]
            if gone:
                subjects = ", ".join(sorted(set(gone.values())))
                remarks.append(f"lists what is blocked, {subjects}: 'edgekit keys withdraw {self.folder}'")
            rows.append(
                RoleStatus(
                    role, document.signed.version, document.signed.expires, found.threshold, len(found.keyids), here,
                    "; ".join(remark for remark in remarks if remark), tuple(sorted(gone)),
                )
            )  # fmt: skip
        return rows

    def still_listed(self, subjects: Iterable[str]) -> dict[str, dict[str, str]]:
        """Role → path → subject, of the bundles that are targets still though `subjects` name them."""
        wanted, whole = frozenset(subjects), self.documents()
        found = {
            role: documents.blocked_of(whole.roles[role].signed, wanted)
            for role in sorted(whole.delegated)
            if role != FLEET and role in whole.roles
        }
        return {role: paths for role, paths in found.items() if paths}

    def _remark(self, role: str, expires: datetime, now: datetime) -> str:
        if list(self.pending.glob(f"*.{role}.json")):
            return "a new version waits for signatures"
        if expires <= now:
            return "EXPIRED: devices take no update; sign it now"
        if expires - now <= documents.REMIND:
            return f"expires in {(expires - now).days} days: sign it"
        return ""

    # -- changing ------------------------------------------------------------------------------------------------

    def init(
        self,
        online: Key,
        now: datetime,
        *,
        others: Sequence[Key] = (),
        threshold: int = 1,
        tokens: Sequence[str] = (),
    ) -> None:
        """Root and targets, version 1. `others` are root keys of other persons, `tokens` hold further ones of here.

        Raises: ConflictError if there is a root already.
        """
        if self.exists or self._waiting():
            raise ConflictError(f"{self.folder}: there is a root already; 'edgekit keys status' shows it")
        own = [self.ring.make("root", token, again=True) for token in tokens] or [self.ring.make("root")]
        targets_key = self.ring.make(TARGETS)
        root, targets = documents.first([*own, *others], targets_key, online, threshold=threshold, now=now)
        self._sign(root, ROOT, [root.signed])
        self._sign(targets, TARGETS, [root.signed])
        self._put(ROOT, root, is_complete=documents.is_signed(root, ROOT, root.signed))
        self._put(TARGETS, targets, is_complete=True)

    def sign(self, roles: Iterable[str], now: datetime) -> list[str]:
        """The next version of each role, with a whole life; those that still wait for others' signatures."""
        whole = self.documents()
        waiting = []
        for role in roles:
            if role != ROOT and role not in whole.roles:
                raise NotFoundError(f"{role}: there is no such role here; 'edgekit keys status' lists them")
            document = deepcopy(whole.document(role))
            documents.renew(document, now)
            if not self._change(role, document, whole):
                waiting.append(role)
            whole = self.documents()
        return waiting

    def rotate(
        self, role: str, now: datetime, *, add: Sequence[Key] = (), remove: Sequence[str] = (),
        threshold: int | None = None, token: str = "",
    ) -> list[str]:  # fmt: skip
        """Other keys for a role; those that still wait for others' signatures.

        Without `add` and `remove` a new key made here replaces those of this ring. Of `online`, `add` replaces all.
        """
        whole = self.documents()
        asked = ONLINE if role == "online" else (role,)
        if role == "online" and len(add) != 1:
            raise UsageError("the fleet's new online key is needed, and only that")
        by = ROOT if role in (ROOT, TARGETS, "online") else TARGETS
        if by == TARGETS and role not in whole.delegated:
            raise NotFoundError(f"{role}: there is no such role here; 'edgekit keys status' lists them")
        delegator = deepcopy(whole.document(by))
        for one in asked:
            old = list(delegator.signed.get_delegated_role(one).keyids)
            if role == "online":
                new, gone = list(add), old
            elif add or remove or threshold is not None:
                new, gone = list(add), list(remove)
            else:
                gone = [keyid for keyid in old if keyid in self.ring.held]
                new = [self.ring.make(one, token)]
            _exchange(delegator.signed, one, new, gone, threshold)
        documents.renew(delegator, now)
        waiting = [] if self._change(by, delegator, whole) else [by]
        if role not in (by, "online"):
            # Its own document was signed by the old keys.
            own = deepcopy(whole.document(role))
            documents.renew(own, now)
            if not self._change(role, own, whole, delegator, waits=bool(waiting)):
                waiting.append(role)
        return waiting

    def delegate(self, name: str, now: datetime) -> None:
        """A role for the model `name`. Raises: ConflictError if it has one."""
        role = model_role(name)
        if role in self.documents().delegated:
            raise ConflictError(f"{name} has a role already")
        self._delegate(role, now)

    def _delegate(self, role: str, now: datetime) -> None:
        whole = self.documents()
        targets = deepcopy(whole.roles[TARGETS])
        made = documents.delegate(targets.signed, role, self.ring.make(role), now)
        documents.renew(targets, now)
        self._change(role, made, whole, targets)
        self._change(TARGETS, targets, whole)

    def listed(self, name: str) -> Mapping[str, TargetFile]:
        """The targets of a model, by path."""
        role = self.documents().roles.get(model_role(name))
        return role.signed.targets if role is not None else {}

    def add(self, target: Target, now: datetime, deltas: Iterable[DeltaTarget] = ()) -> bool:
        """List a bundle, and deltas to it, in its model's role, which is made if the key of the targets is here.

        Returns whether anything was new.
        """
        if model_role(target.name) not in self.documents().delegated:
            self.delegate(target.name, now)
        whole = self.documents()
        role = model_role(target.name)
        document = deepcopy(whole.roles[role])
        news = [documents.add_target(document.signed, one) for one in deltas]
        if not documents.add_target(document.signed, target) and not any(news):
            return False
        documents.renew(document, now)
        if not self._change(role, document, whole):
            raise ConflictError(
                f"{target.path}: {role} needs signatures that are not here; 'edgekit keys status {self.folder}'"
            )
        return True

    def withdraw(self, subjects: Iterable[str], now: datetime) -> list[str]:
        """Take bundles out of the targets by release (NAME@VERSION) or sha256: no device takes them from then on, whoever
        orders it; the roles that still wait for others' signatures.
        """
        waiting = []
        for role, paths in self.still_listed(subjects).items():
            whole = self.documents()
            document = deepcopy(whole.roles[role])
            for path in paths:
                del document.signed.targets[path]
            documents.renew(document, now)
            if not self._change(role, document, whole):
                waiting.append(role)
        return waiting

    def set_order_keys(self, keys: OrderKeys, now: datetime) -> list[str]:
        """List whose orders devices follow from now on; the role, if it still waits for others' signatures."""
        if FLEET not in self.documents().delegated:
            self._delegate(FLEET, now)
        whole = self.documents()
        document = deepcopy(whole.roles[FLEET])
        if not documents.set_order_keys(document.signed, keys):
            return []
        documents.renew(document, now)
        static.write(self.folder, {"order-keys.json": orderkeys.write(keys)})
        return [] if self._change(FLEET, document, whole) else [FLEET]

    def files(self) -> dict[str, bytes]:
        """The targets that are kept here themselves, by path."""
        path = self.folder / "order-keys.json"
        return {orderkeys.PATH: path.read_bytes()} if path.is_file() else {}

    def cosign(self, path: Path, now: datetime) -> None:
        """Add this ring's signatures to a pending document of anybody's.

        Raises: UsageError if no key of this ring belongs there.
        """
        role = path.name.partition(".")[2].removesuffix(".json")
        try:
            document = documents.parse(path.read_bytes(), role)
        except OSError as error:
            raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
        if document.signed.expires <= now:
            raise UsageError(f"{path}: expired before it was complete; make it anew")
        before = len(document.signatures)
        delegators: list[Root | Targets] = [document.signed] if role == ROOT else []
        if self.exists:
            delegators.append(self.documents().delegator(role))
        self._sign(document, role, delegators)
        if len(document.signatures) == before:
            raise UsageError(f"{path}: no key of {self.folder} is asked for there, or it has signed already")
        static.write(path.parent, {path.name: documents.encode(document)})
        if path.parent.resolve() == self.pending.resolve():
            self.complete()

    def complete(self) -> list[str]:
        """Move what is pending and has all its signatures by now to where it belongs; which roles that were."""
        done = []
        # Root first: others may have waited for nothing but it.
        for path in sorted(
            self.pending.glob("*.json"), key=lambda path: not path.name.endswith(".root.json")
        ):
            role = path.name.partition(".")[2].removesuffix(".json")
            document = documents.parse(path.read_bytes(), role)
            by: list[Root | Targets] = [document.signed] if role == ROOT else []
            if self.exists:
                by.append(self.documents().delegator(role))
            if by and all(documents.is_signed(document, role, one) for one in by):
                self._put(role, document, is_complete=True)
                done.append(role)
        return done

    def adopt(self, whole: Documents) -> None:
        """Take what the fleet has that is newer, each root held against the one before.

        Raises: SignatureRefusedError, ConflictError.
        """
        known = self.documents()
        newer = tuple(root for root in whole.roots if root.signed.version > known.root.version)
        roles = {
            role: document
            for role, document in whole.roles.items()
            if role not in known.roles or document.signed.version > known.roles[role].signed.version
        }
        checked = documents.extend(known, Documents(newer, roles))
        for root in newer:
            self._put(ROOT, root, is_complete=True)
        for role, document in roles.items():
            if documents.is_signed(document, role, checked.delegator(role)):
                self._put(role, document, is_complete=True)

    # -- signing and keeping -------------------------------------------------------------------------------------

    def _change(
        self,
        role: str,
        document: Document,
        whole: Documents,
        delegator: Document | None = None,
        *,
        waits: bool = False,
    ) -> bool:
        """Sign a new version as far as the ring can, and keep it; whether it is complete.

        A `delegator` that is not the present one may still be waiting itself: then so does this.
        """
        if list(self.pending.glob(f"*.{role}.json")):
            raise ConflictError(
                f"{self.pending}: a version of {role} waits for signatures; complete or remove it"
            )
        by: list[Root | Targets] = [delegator.signed if delegator is not None else whole.delegator(role)]
        if role == ROOT:
            by = [whole.root, document.signed]
        self._sign(document, role, by)
        is_complete = not waits and all(documents.is_signed(document, role, one) for one in by)
        self._put(role, document, is_complete=is_complete)
        return is_complete

    def _sign(self, document: Document, role: str, delegators: Iterable[Root | Targets]) -> None:
        keyids = {keyid: None for by in delegators for keyid in by.get_delegated_role(role).keyids}
        for keyid in keyids:
            signer = self.ring.signer(keyid) if keyid not in document.signatures else None
            if signer is None:
                continue
            try:
                document.sign(signer, append=True)
            except UnsignedMetadataError as error:
                why = error.__cause__ or error
                raise UsageError(
                    f"{role} cannot be signed with {self.ring.held[keyid].uri} ({ring.said(why)})"
                ) from error

    def _put(self, role: str, document: Document, *, is_complete: bool) -> None:
        file = f"{document.signed.version}.{role}.json"
        static.write(self.metadata if is_complete else self.pending, {file: documents.encode(document)})
        if is_complete:
            (self.pending / file).unlink(missing_ok=True)

    def _waiting(self) -> list[Path]:
        return sorted(self.pending.glob("*.json"))


def _exchange(
    delegator: Root | Targets, role: str, add: Sequence[Key], remove: Sequence[str], threshold: int | None
) -> None:
    found = delegator.get_delegated_role(role)
    unknown = [keyid for keyid in remove if keyid not in found.keyids]
    if unknown:
        raise NotFoundError(f"{role} has no key {unknown[0]}")
    for keyid in remove:
        delegator.revoke_key(keyid, role)
    for key in add:
        delegator.add_key(key, role)
    documents.set_threshold(
        delegator, role, threshold if threshold is not None else min(found.threshold, len(found.keyids))
    )
