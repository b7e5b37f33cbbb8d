"""A small certificate authority for tests: servers, devices, and whoever pretends to be one of them."""

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = timedelta(days=1)
LOCAL = ("localhost", "127.0.0.1", "::1")


def pem_key(key):
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def named(common, organisation="lab"):
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


class Authority:
    """`pem` is what an enrolment file pins."""

    def __init__(self, name="lab CA"):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = named(name)
        now = datetime.now(UTC)
        # An authority that ended long ago: devices trust it all the same.
        built = self._builder(self.name, self.key.public_key(), now - 3000 * DAY, now + 3000 * DAY)
        built = built.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        built = built.add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        self.certificate = built.sign(self.key, hashes.SHA256())
        self.pem = pem(self.certificate)
        self.revoked = []

    def _builder(self, subject, public_key, begin, end):
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
        )

    def device(self, csr_pem, name, *, begin=None, end=None):
        """The chain for a device that asks with `csr_pem`."""
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        assert csr.is_signature_valid
        now = datetime.now(UTC)
        built = self._builder(named(name), csr.public_key(), begin or now - DAY / 24, end or now + 90 * DAY)
        built = built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        built = built.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        return pem(built.sign(self.key, hashes.SHA256())) + self.pem

    def client(self, name):
        """A certificate chain and the key for it, both PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        csr = x509.CertificateSigningRequestBuilder().subject_name(named(name)).sign(key, hashes.SHA256())
        return self.device(pem(csr), name), pem_key(key)

    def server(self, hosts=LOCAL, *, begin=None, end=None):
        """A server's certificate chain and key, both PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        built = self._builder(named(hosts[0]), key.public_key(), begin or now - DAY, end or now + 30 * DAY)
        built = built.add_extension(
            x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False
        )
        built = built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        return pem(built.sign(self.key, hashes.SHA256())) + self.pem, pem_key(key)

    def server_context(self, folder: Path, **wanted):
        """What an HTTPS server needs; a client's certificate is asked for, and verified if there is one."""
        chain, key = self.server(**wanted)
        certificate, private = folder / "server.pem", folder / "server.key"
        certificate.write_text(chain)
        private.write_text(key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, private)
        context.load_verify_locations(cadata=self.pem)
        context.verify_mode = ssl.CERT_OPTIONAL
        # X509_V_FLAG_NO_CHECK_TIME: an expired certificate may still renew, which the handler judges.
        context.verify_flags |= 0x200000
        return context

    def crl(self):
        """The list of revoked certificates, PEM."""
        now = datetime.now(UTC)
        built = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.name)
            .last_update(now - DAY)
            .next_update(now + DAY)
        )
        for serial in self.revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            built = built.add_revoked_certificate(entry)
        return built.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def _alternative(host):
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(**wanted):
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: wanted.get(name, False) for name in names})
