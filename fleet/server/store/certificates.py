"""The certificates that devices hold: who shows one, and what it still allows.

Always true
 1. A certificate allows something only if the fleet issued it, to the present enrolment of a device that is not
    decommissioned, and has not revoked it.
"""

from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import Connection, Row, insert, select, update

from edgekit.errors import AuthError
from fleet.server import ca
from fleet.server.ca import Standing
from fleet.server.schema import certificates, devices

CertificateRow = Row[Any]


def add(
    connection: Connection, certificate: x509.Certificate, device: str, enrolment: int, now: float
) -> None:
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    connection.execute(
        insert(certificates).values(
            serial=ca.serial_text(certificate),
            device=device,
            enrolment=enrolment,
            public_key=ca.key_digest(key),
            issued_at=now,
            not_after=certificate.not_valid_after_utc.timestamp(),
            pem=ca.pem(certificate),
        )
    )


def of_key(connection: Connection, device: str, enrolment: int, public_key: str) -> CertificateRow | None:
    """The newest certificate of one enrolment for one key, if it is not revoked."""
    query = (
        select(certificates)
        .where(
            certificates.c.device == device,
            certificates.c.enrolment == enrolment,
            certificates.c.public_key == public_key,
            certificates.c.revoked_at.is_(None),
        )
        .order_by(certificates.c.issued_at.desc())
        .limit(1)
    )
    return connection.execute(query).one_or_none()


def of_enrolment(connection: Connection, device: str, enrolment: int) -> list[CertificateRow]:
    """What one enrolment got and is not revoked, the newest first."""
    query = (
        select(certificates)
        .where(
            certificates.c.device == device,
            certificates.c.enrolment == enrolment,
            certificates.c.revoked_at.is_(None),
        )
        .order_by(certificates.c.issued_at.desc())
    )
    return list(connection.execute(query))


def standing(connection: Connection, row: CertificateRow, now: float) -> Standing:
    """What a known certificate still allows its device."""
    query = select(devices.c.enrolment, devices.c.decommissioned_at).where(devices.c.id == row.device)
    enrolment, decommissioned_at = connection.execute(query).one()
    if enrolment != row.enrolment or decommissioned_at is not None:
        return Standing.NOTHING
    return ca.standing(row.not_after, row.revoked_at, now)


def shown(connection: Connection, der: bytes) -> CertificateRow:
    """The row of a certificate that TLS has found to be of the fleet's authority.

    Raises: AuthError if it is no device's (the service's own, or of another database).
    """
    serial = ca.serial_text(x509.load_der_x509_certificate(der))
    row = connection.execute(select(certificates).where(certificates.c.serial == serial)).one_or_none()
    if row is None:
        raise AuthError("the certificate shown is no device's of this fleet; the device must enrol again")
    return row


def revoke(connection: Connection, device: str, reason: str, now: float, *, below: int | None = None) -> int:
    """Revoke a device's certificates, or those of its enrolments `below` one; how many."""
    of_device = (certificates.c.device == device) & certificates.c.revoked_at.is_(None)
    if below is not None:
        of_device &= certificates.c.enrolment < below
    change = update(certificates).where(of_device).values(revoked_at=now, reason=reason)
    return connection.execute(change).rowcount


def revoked(connection: Connection, now: float) -> list[tuple[str, float]]:
    """(serial, when) of what is revoked and has not run out by itself, for the list of revocations."""
    query = (
        select(certificates.c.serial, certificates.c.revoked_at)
        .where(certificates.c.revoked_at.is_not(None), certificates.c.not_after > now)
        .order_by(certificates.c.serial)
    )
    return [(row.serial, row.revoked_at) for row in connection.execute(query)]


def shut_out(connection: Connection, now: float) -> list[str]:
    """Devices that hold nothing but what is revoked, and has not run out by itself, sorted."""
    held = certificates.c.device
    good = select(held).where(certificates.c.revoked_at.is_(None))
    query = (
        select(held)
        .where(certificates.c.revoked_at.is_not(None), certificates.c.not_after > now, held.not_in(good))
        .distinct()
    )
    return sorted(connection.execute(query).scalars())


def not_after(row: CertificateRow) -> datetime:
    return datetime.fromtimestamp(row.not_after, UTC)
