"""The fleet's own certificate authority: who may call itself a device of this fleet, and who may call itself the fleet.

Pure but for randomness: keys and certificates in, certificates out, the clock passed in; files are `home`'s.

Always true
 1. A device's certificate names the device the fleet enrolled, whatever its request says besides, and allows a client's
    side of TLS only: no device can pose as the fleet or its broker.
 2. The service's own name in a certificate is none that a device can have.
 3. A certificate that has run out may only renew, for 90 days; a revoked one may do nothing.

Source: RFC 5280 (certificates and revocation lists), RFC 2986 (requests).
"""

import enum
import hashlib
import ipaddress
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgekit.errors import AuthError, UsageError
from edgekit.wire.enrolment import EXPIRED_MAY_RENEW_S, PROOF_PREFIX, RENEW_AT

# A device id begins with a letter or digit (`edgekit.wire.enrolment.DeviceId`).
SERVICE_NAME = "_fleet"
# A broker knows its clients by name, so there is one for each worker that may be.
MOST_WORKERS = 16
DEVICE_DAYS = 90
SERVER_DAYS = 365
AUTHORITY_DAYS = 20 * 365
# What is signed is valid a little earlier: clocks differ.
SKEW = timedelta(minutes=10)


def worker_name(number: int) -> str:
    """The broker's name for a worker, 1 to `MOST_WORKERS`."""
    return f"_worker-{number}"


class Standing(enum.Enum):
    """What a certificate still allows."""

    GOOD = "good"
    MAY_RENEW = "may only renew"
    NOTHING = "nothing"


def standing(not_after: float, revoked_at: float | None, now: float) -> Standing:
    """What a certificate of this fleet allows at `now` (unix seconds)."""
    if revoked_at is not None or now >= not_after + EXPIRED_MAY_RENEW_S:
        return Standing.NOTHING
    return Standing.GOOD if now < not_after else Standing.MAY_RENEW


def is_due(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether two thirds of its life are over."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return now >= begins + (ends - begins) * RENEW_AT


def make_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    protection = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def key_digest(key: ec.EllipticCurvePublicKey) -> str:
    """sha256 in hex of the public key (SubjectPublicKeyInfo, DER): the name of a key in the database."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def serial_text(certificate: x509.Certificate) -> str:
    return f"{certificate.serial_number:032x}"


def read_request(csr: str, device: str) -> ec.EllipticCurvePublicKey:
    """The key of a device's certificate request, once it has shown that it holds the private half.

    Raises: UsageError if the request is not what a device of this name sends.
    """
    try:
        request = x509.load_pem_x509_csr(csr.encode())
        is_signed = request.is_signature_valid
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"csr: no PEM certificate request ({error})") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise UsageError("csr: its key is not EC P-256")
    if not is_signed:
        raise UsageError("csr: not signed by its own key")
    names = [attribute.value for attribute in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [device]:
        raise UsageError(f"csr: its common name is not the device's, {device!r}")
    return key


def check_proof(proof: bytes, csr: str, held: ec.EllipticCurvePublicKey) -> None:
    """That who asks for a new certificate holds the present key. Raises: AuthError."""
    try:
        held.verify(proof, PROOF_PREFIX + csr.encode(), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise AuthError("the proof is not signed by the key that this device's certificate is for") from error


@dataclass(frozen=True)
class Authority:
    """The issuing key with its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> str:
        return pem(self.certificate)

    def device(
        self, key: ec.EllipticCurvePublicKey, device: str, fleet: str, now: datetime
    ) -> x509.Certificate:
        """A device's certificate, for 90 days."""
        ends = min(now + timedelta(days=DEVICE_DAYS), self.certificate.not_valid_after_utc)
        return self._issue(_name(device, fleet), key, now, ends, usage=ExtendedKeyUsageOID.CLIENT_AUTH)

    def service(
        self, key: ec.EllipticCurvePublicKey, fleet: str, now: datetime, name: str = SERVICE_NAME
    ) -> x509.Certificate:
        """The service's own, or a worker's, as a client of the broker."""
        ends = min(now + timedelta(days=SERVER_DAYS), self.certificate.not_valid_after_utc)
        return self._issue(_name(name, fleet), key, now, ends, usage=ExtendedKeyUsageOID.CLIENT_AUTH)

    def server(
        self, key: ec.EllipticCurvePublicKey, hosts: Iterable[str], fleet: str, now: datetime
    ) -> x509.Certificate:
        """A server's, for these host names and addresses."""
        ends = min(now + timedelta(days=SERVER_DAYS), self.certificate.not_valid_after_utc)
        return self._issue(
            _name("EdgeKit fleet", fleet),
            key,
            now,
            ends,
            usage=ExtendedKeyUsageOID.SERVER_AUTH,
            hosts=tuple(hosts),
        )

    def revocations(self, revoked: Iterable[tuple[str, float]], now: datetime) -> bytes:
        """The revocation list, PEM, of (serial in hex, unix seconds).

        Its next update lies at the authority's own end: a broker refuses *every* device once its list has run out, and
        what makes a list fresh here is who puts it beside the broker, not its date.
        """
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - SKEW)
            .next_update(self.certificate.not_valid_after_utc)
            .add_extension(x509.CRLNumber(int(now.timestamp() * 1000)), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
        )
        for serial, at in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(int(serial, 16))
            builder = builder.add_revoked_certificate(
                entry.revocation_date(datetime.fromtimestamp(at, UTC)).build()
            )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def _issue(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        now: datetime,
        ends: datetime,
        *,
        usage: x509.ObjectIdentifier,
        hosts: tuple[str, ...] = (),
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(_new_serial())
            .not_valid_before(now - SKEW)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
        )
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False
            )
        return builder.sign(self.key, hashes.SHA256())


def create(fleet: str, now: datetime, key: ec.EllipticCurvePrivateKey | None = None) -> Authority:
    """A new authority, signed by itself, on a new key unless there is one (`hsm`); it signs end certificates only."""
    key = key if key is not None else make_key()
    name = _name("EdgeKit fleet CA", fleet)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(_new_serial())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(key, certificate)


def load_key(data: bytes, passphrase: bytes | None) -> ec.EllipticCurvePrivateKey:
    """Raises: ValueError for what is no EC P-256 key, or for a wrong passphrase; TypeError for a missing one."""
    key = load_pem_private_key(data, password=passphrase)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("not an EC P-256 key")  # noqa: TRY004  # the file's content is wrong, not an argument's type
    return key


def hosts_of(certificate: x509.Certificate) -> frozenset[str]:
    """The host names and addresses that a server's certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(str(name.value) for name in names)


def _new_serial() -> int:
    """128 random bits but for the sign: nobody can tell the next one (RFC 5280, 4.1.2.2)."""
    return secrets.randbits(127) | 1 << 126


def _name(common: str, fleet: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, fleet),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
