"""Which device a request comes from: by the certificate that it showed, or by its credential where a proxy ends TLS."""

import base64
import binascii

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import Request
from sqlalchemy import Connection

from edgekit.errors import AuthError
from fleet.server import ca
from fleet.server.api.context import UnauthenticatedError, bearer
from fleet.server.ca import Standing
from fleet.server.store import certificates, devices
from fleet.server.store.certificates import CertificateRow
from fleet.server.store.devices import DeviceRow
from fleet.server.tls import PEER


def device_of(connection: Connection, request: Request, now: float) -> DeviceRow:
    """The device, if what it shows is good at `now`. Raises: AuthError, UnauthenticatedError."""
    shown = _shown(connection, request)
    if shown is not None:
        device = devices.get(connection, shown.device)
        standing = certificates.standing(connection, shown, now)
    else:
        device = _by_credential(connection, request)
        of_enrolment = certificates.of_enrolment(connection, device.id, device.enrolment)
        best = max((row.not_after for row in of_enrolment), default=0.0)
        standing = ca.standing(best, None, now)
    if standing is Standing.GOOD:
        return device
    if standing is Standing.MAY_RENEW:
        raise AuthError(f"the certificate of {device.id!r} has run out; it may only renew")
    raise AuthError(
        f"the certificate of {device.id!r} is revoked or of an older enrolment; it must enrol again"
    )


def held_by(connection: Connection, request: Request, csr: str, proof: str) -> CertificateRow:
    """The certificate that a device renews: the one that it shows, or the one whose key signed the proof.

    Raises: AuthError, UnauthenticatedError.
    """
    shown = _shown(connection, request)
    if shown is not None:
        return shown
    device = _by_credential(connection, request)
    try:
        signature = base64.b64decode(proof, validate=True)
    except binascii.Error as error:
        raise AuthError(f"proof: no base64 ({error})") from error
    for row in certificates.of_enrolment(connection, device.id, device.enrolment):
        key = x509.load_pem_x509_certificate(row.pem.encode()).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        try:
            ca.check_proof(signature, csr, key)
        except AuthError:
            continue
        return row
    raise AuthError("the proof is not signed by a key that this device has a certificate for")


def _shown(connection: Connection, request: Request) -> CertificateRow | None:
    found = (request.scope.get("extensions") or {}).get(PEER)
    if found is None:
        return None
    try:
        return certificates.shown(connection, found)
    except AuthError as error:
        raise UnauthenticatedError(str(error)) from error


def _by_credential(connection: Connection, request: Request) -> DeviceRow:
    secret = bearer(request)
    try:
        return devices.by_credential(connection, secret)
    except AuthError as error:
        raise UnauthenticatedError(str(error)) from error
