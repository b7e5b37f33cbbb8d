"""Who may join, and joining: tokens for one device or a batch, approval, certificates, renewal, the way out.

Always true
 1. A token is used by one key per device: that key may fetch the same answer again until the device has used it, or the
    token has run out; no other key gets anything.
 2. Neither a token nor a device's credential is kept in the clear: the credential is derived anew each time it is told.
 3. A new enrolment revokes what the ones before it got.
 4. A batch never takes over a device that is there already.
"""

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from edgekit.errors import AuthError, ConflictError
from edgekit.wire.enrolment import EnrolAnswer, EnrolRequest, RenewRequest
from fleet.rules import facts
from fleet.server import ca
from fleet.server.ca import Authority, Standing
from fleet.server.schema import desired, devices, enrolment_tokens, enrolment_uses
from fleet.server.store import audit, certificates, groups, hardware, news, settings
from fleet.server.store import devices as device_store
from fleet.server.store.audit import Who
from fleet.server.store.certificates import CertificateRow
from fleet.server.store.devices import DeviceRow
from fleet.server.store.settings import new_secret, secret_hash

WAITING, APPROVED, ANSWERED, REJECTED = "waiting", "approved", "answered", "rejected"
DEFAULT_LIFETIME_S = 7 * 86_400.0
TokenRow = Row[Any]
UseRow = Row[Any]


@dataclass(frozen=True)
class Registrar:
    """Who gives identities: authority, fleet's id, and how the credential of a (device, enrolment) is made."""

    authority: Authority
    fleet: str
    credential: Callable[[str, int], str]


class NotGoodError(AuthError):
    """The certificate `held` gives nothing any more."""

    def __init__(self, held: CertificateRow) -> None:
        super().__init__(
            f"the certificate of {held.device!r} is revoked or has run out for good; enrol again"
        )
        self.held = held


class WaitsForApprovalError(Exception):
    """Not refused, not answered: an operator has still to say yes. What was noted is to be committed."""


@dataclass(frozen=True)
class Invitation:
    """What an operator allows. `device` is empty for a batch of `max_uses` devices that give their own names."""

    device: str
    labels: dict[str, str]
    deployments: tuple[str, ...]
    expires_at: float
    max_uses: int = 1
    serials: tuple[str, ...] = ()
    needs_approval: bool = False


def invite(connection: Connection, invitation: Invitation, *, now: float, who: Who) -> str:
    """A new token. For a device by name it replaces the one before, if that was not used; a device that has enrolled
    goes on with what it has until the new token is used.

    Raises: ConflictError if a label is one of the built-in names.
    """
    groups.check_free(invitation.labels)
    token = new_secret()
    device, before = invitation.device, None
    labels = msgspec.json.encode(invitation.labels).decode()
    deployments = msgspec.json.encode(invitation.deployments).decode()
    if device:
        connection.execute(
            update(enrolment_tokens)
            .where(enrolment_tokens.c.device == device, enrolment_tokens.c.revoked_at.is_(None))
            .values(revoked_at=now)
        )
        known = connection.execute(select(devices).where(devices.c.id == device)).one_or_none()
        if known is None:
            values = {"id": device, "created_at": now, "labels": labels, "deployments": deployments}
            connection.execute(insert(devices).values(**values))
        else:
            before = {
                "labels": msgspec.Raw(known.labels.encode()),
                "deployments": msgspec.Raw(known.deployments.encode()),
            }
            # What it has by its present enrolment stays until it enrols again.
            later = {} if known.enrolment else {"deployments": deployments}
            connection.execute(update(devices).where(devices.c.id == device).values(labels=labels, **later))
            if known.enrolment and known.labels != labels:
                groups.mark(connection, [device], device_store.deployments_of(known))
                news.note(connection, [device])
    connection.execute(
        insert(enrolment_tokens).values(
            hash=secret_hash(token),
            device=device,
            labels=labels,
            deployments=deployments,
            serials=msgspec.json.encode(invitation.serials).decode(),
            needs_approval=invitation.needs_approval,
            max_uses=invitation.max_uses,
            created_at=now,
            created_by=who.name,
            expires_at=invitation.expires_at,
        )
    )
    subject = device or f"batch of {invitation.max_uses}"
    after = {
        "labels": invitation.labels,
        "deployments": invitation.deployments,
        "expires_at": invitation.expires_at,
        "needs_approval": invitation.needs_approval,
    }
    audit.append(connection, now, who, "device.invite", subject, before=before, after=after)
    return token


def number_of(connection: Connection, device: str) -> int:
    """How often a device of this name has enrolled; 0 also for one that nobody knows."""
    return connection.execute(select(devices.c.enrolment).where(devices.c.id == device)).scalar() or 0


def enrol(
    connection: Connection, registrar: Registrar, request: EnrolRequest, now: float, *, origin: str = ""
) -> EnrolAnswer:
    """Give the device its identity, or the same answer again.

    Raises: AuthError, with the same words whether the device or the token is wrong; ConflictError where a batch meets a
    device that is there; UsageError for a bad request; WaitsForApprovalError, after noting who waits.
    """
    token = _token(connection, request, now)
    key = ca.read_request(request.csr, request.device)
    digest = ca.key_digest(key)
    use = _use(connection, token.id, request.device)
    if use is None:
        use = _first_use(connection, token, request, digest, now)
    elif not hmac.compare_digest(use.public_key, digest):
        raise AuthError(
            f"the enrolment token of {request.device!r} was used already, by another key; {_new_file(token, request)}"
        )
    if use.state == ANSWERED:
        return _again(connection, registrar, token, use, request)
    if use.state == REJECTED:
        raise AuthError(f"an operator refused to let {request.device!r} join")
    if use.state == WAITING:
        raise WaitsForApprovalError
    return _give(connection, registrar, token, request, key=key, now=now, origin=origin)


def _token(connection: Connection, request: EnrolRequest, now: float) -> TokenRow:
    query = select(enrolment_tokens).where(enrolment_tokens.c.hash == secret_hash(request.token))
    token = connection.execute(query.with_for_update()).one_or_none()
    if token is None or (token.device and token.device != request.device):
        raise AuthError(f"no such enrolment for {request.device!r}: check the device name and the token")
    if token.revoked_at is not None:
        raise AuthError(
            f"the enrolment file of {request.device!r} was replaced or withdrawn; {_new_file(token, request)}"
        )
    if now >= token.expires_at:
        raise AuthError(f"the enrolment token of {request.device!r} has run out; {_new_file(token, request)}")
    serials = msgspec.json.decode(token.serials, type=tuple[str, ...])
    if serials and request.device not in serials:
        raise AuthError(f"{request.device!r} is not on the list of this batch")
    return token


def _new_file(token: TokenRow, request: EnrolRequest) -> str:
    name = token.device or request.device
    return f"make a new file with 'edgekit fleet enroll {name}'"


def _use(connection: Connection, token: int, device: str) -> UseRow | None:
    query = select(enrolment_uses).where(enrolment_uses.c.token == token, enrolment_uses.c.device == device)
    return connection.execute(query).one_or_none()


def _first_use(
    connection: Connection, token: TokenRow, request: EnrolRequest, digest: str, now: float
) -> UseRow:
    if not token.device:
        query = select(func.count()).select_from(enrolment_uses)
        taken = connection.execute(
            query.where(enrolment_uses.c.token == token.id, enrolment_uses.c.state != REJECTED)
        ).scalar_one()
        if taken >= token.max_uses:
            raise AuthError(f"all {token.max_uses} places of this batch are taken; make a new file")
        _check_free(connection, token, request.device)
    state = WAITING if token.needs_approval else APPROVED
    connection.execute(
        insert(enrolment_uses).values(
            token=token.id,
            device=request.device,
            public_key=digest,
            state=state,
            profile=request.profile,
            first_at=now,
        )
    )
    found = _use(connection, token.id, request.device)
    assert found is not None
    return found


def _check_free(connection: Connection, token: TokenRow, device: str) -> None:
    """Whether a batch may give this name away. Raises: ConflictError."""
    there = devices.c.id == device, devices.c.deleted_at.is_(None)
    if connection.execute(select(devices.c.id).where(*there)).scalar() is not None:
        raise ConflictError(
            f"there is a device {device!r} already, and a batch takes none over; "
            f"for this board make a file of its own with 'edgekit fleet enroll {device}'"
        )
    others = select(enrolment_uses.c.token).where(
        enrolment_uses.c.device == device,
        enrolment_uses.c.token != token.id,
        enrolment_uses.c.state.in_((WAITING, APPROVED)),
    )
    if connection.execute(others).first() is not None:
        # An operator says yes to a name: there must be only one who bears it.
        raise ConflictError(f"another board asks to join as {device!r} already, by another file")


def _give(
    connection: Connection,
    registrar: Registrar,
    token: TokenRow,
    request: EnrolRequest,
    *,
    key: ec.EllipticCurvePublicKey,
    now: float,
    origin: str,
) -> EnrolAnswer:
    device = request.device
    row = connection.execute(select(devices).where(devices.c.id == device).with_for_update()).one_or_none()
    if not token.device:
        # Once more: it may have waited long, and the name was given by another file meanwhile.
        _check_free(connection, token, device)
    if row is None:
        connection.execute(insert(devices).values(id=device, created_at=now, labels="{}", deployments="[]"))
    before = row.enrolment if row is not None else 0
    enrolment = max(before + 1, settings.number(connection, settings.ENROLMENTS_ABOVE))
    credential = registrar.credential(device, enrolment)
    connection.execute(
        update(devices)
        .where(devices.c.id == device)
        .values(
            labels=token.labels,
            deployments=token.deployments,
            enrolled_for=token.deployments,
            enrolment=enrolment,
            enrolled_at=now,
            is_confirmed=False,
            credential_hash=secret_hash(credential),
            decommissioned_at=None,
            deleted_at=None,
            former_enrolment=0,
            former_at=None,
            profile=request.profile,
            agent_version=request.agent_version,
            is_online=False,
            is_duplicate=False,
            incarnation=-1,
            nonce="",
            reported_seq=-1,
            reported=None,
            **facts.NOTHING._asdict(),
            reported_counter=0,
        )
    )
    if row is not None and _has_changed(row, token, request):
        had, gets = (msgspec.json.decode(one.deployments, type=tuple[str, ...]) for one in (row, token))
        groups.mark(connection, [device], {*had, *gets})
        news.note(connection, [device])
    kept = row.fingerprint if row is not None else ""
    hardware.compare(
        connection, device, kept, request.fingerprint, verb="enrolled again", now=now, origin=origin
    )
    # What it is no longer enrolled for, it is no longer to run.
    has = msgspec.json.decode(token.deployments, type=tuple[str, ...])
    connection.execute(delete(desired).where(desired.c.device == device, desired.c.deployment.not_in(has)))
    certificates.revoke(connection, device, "enrolled again", now, below=enrolment)
    moment = datetime.fromtimestamp(now, UTC)
    certificate = registrar.authority.device(key, device, registrar.fleet, moment)
    certificates.add(connection, certificate, device, enrolment, now)
    connection.execute(
        update(enrolment_uses)
        .where(enrolment_uses.c.token == token.id, enrolment_uses.c.device == device)
        .values(state=ANSWERED, enrolment=enrolment)
    )
    audit.append(
        connection,
        now,
        audit.device(device, origin),
        "device.enrol",
        device,
        before={"enrolment": before},
        after={"enrolment": enrolment, "profile": request.profile, "serial": ca.serial_text(certificate)},
    )
    return _answer(registrar, device, enrolment, ca.pem(certificate), certificate.not_valid_after_utc)


def _has_changed(row: DeviceRow, token: TokenRow, request: EnrolRequest) -> bool:
    """Whether what decides over a device's place is another than before; a card that is only written again is not."""
    was = (row.labels, row.deployments, row.profile)
    return bool(row.enrolment) and was != (token.labels, token.deployments, request.profile)


def _again(
    connection: Connection, registrar: Registrar, token: TokenRow, use: UseRow, request: EnrolRequest
) -> EnrolAnswer:
    """The answer that did not arrive. Raises: AuthError once it has been used."""
    row = device_store.get(connection, request.device, lock=True)
    given = certificates.of_key(connection, row.id, use.enrolment, use.public_key)
    if row.is_confirmed or row.enrolment != use.enrolment or given is None:
        raise AuthError(
            f"the enrolment token of {request.device!r} was used already; {_new_file(token, request)}"
        )
    return _answer(registrar, row.id, use.enrolment, given.pem, certificates.not_after(given))


def _answer(
    registrar: Registrar, device: str, enrolment: int, certificate_pem: str, not_after: datetime
) -> EnrolAnswer:
    return EnrolAnswer(
        device=device,
        enrolment=enrolment,
        certificate=certificate_pem + registrar.authority.pem,
        not_after=not_after,
        credential=registrar.credential(device, enrolment),
    )


def renew(
    connection: Connection,
    registrar: Registrar,
    held: CertificateRow,
    request: RenewRequest,
    now: float,
    *,
    origin: str = "",
) -> EnrolAnswer:
    """A new certificate for who holds one that is good or may still renew; the old one runs out by itself.

    A request for the same key as before gets the newest certificate of that key again in the first half of its life, so
    that a lost answer does not make more. A device that renews asks later than that. Raises: NotGoodError, UsageError.
    """
    if certificates.standing(connection, held, now) is Standing.NOTHING:
        raise NotGoodError(held)
    row = device_store.get(connection, held.device, lock=True)
    key = ca.read_request(request.csr, row.id)
    digest = ca.key_digest(key)
    given = certificates.of_key(connection, row.id, row.enrolment, digest)
    if given is None or not _is_young(given, now):
        moment = datetime.fromtimestamp(now, UTC)
        certificate = registrar.authority.device(key, row.id, registrar.fleet, moment)
        certificates.add(connection, certificate, row.id, row.enrolment, now)
        audit.append(
            connection,
            now,
            audit.device(row.id, origin),
            "device.renew",
            row.id,
            before={"serial": held.serial},
            after={"serial": ca.serial_text(certificate)},
        )
        given = certificates.of_key(connection, row.id, row.enrolment, digest)
        assert given is not None
    hardware.compare(
        connection, row.id, row.fingerprint, request.fingerprint, verb="renewed", now=now, origin=origin
    )
    confirm(connection, row)
    return _answer(registrar, row.id, row.enrolment, given.pem, certificates.not_after(given))


def _is_young(row: CertificateRow, now: float) -> bool:
    """Whether less than half of its life is over. Devices ask before or after `RENEW_AT`, so as not to ask all at once."""
    found = x509.load_pem_x509_certificate(row.pem.encode())
    middle = found.not_valid_before_utc + (found.not_valid_after_utc - found.not_valid_before_utc) / 2
    return datetime.fromtimestamp(now, UTC) < middle


def confirm(connection: Connection, row: DeviceRow) -> None:
    """The device has used what it got: its token is used up."""
    if not row.is_confirmed:
        connection.execute(update(devices).where(devices.c.id == row.id).values(is_confirmed=True))
