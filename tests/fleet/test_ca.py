"""The fleet's certificate authority: whom it certifies, as what, and for how long."""

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from fleet_support import csr_of, make_device_key

from edgekit.errors import AuthError, UsageError
from edgekit.wire.enrolment import EXPIRED_MAY_RENEW_S, PROOF_PREFIX
from fleet.server import ca
from fleet.server.ca import Standing

NOW = datetime(2026, 6, 1, tzinfo=UTC)
CA = ca.create("fleet-1", NOW)
KEY = make_device_key()


def names(certificate: x509.Certificate) -> tuple[Any, Any]:
    subject = certificate.subject
    return (
        subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value,
        subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value,
    )


def is_good_as(purpose: str, made: x509.Certificate, folder: Path, *between: x509.Certificate) -> bool:
    """OpenSSL's word, which is also mosquitto's and the service's."""
    for name, chain in (("ca", [CA.certificate]), ("between", [*between]), ("made", [made])):
        (folder / name).write_text("".join(map(ca.pem, chain)))
    command = ["openssl", "verify", "-attime", str(int(NOW.timestamp())), "-purpose", purpose]
    command += ["-CAfile", str(folder / "ca")]
    command += ["-untrusted", str(folder / "between")] if between else []
    return subprocess.run([*command, folder / "made"], capture_output=True, check=False).returncode == 0


def test_a_devices_certificate_names_it_and_its_fleet_and_allows_a_client_only(tmp_path: Path) -> None:
    made = CA.device(KEY.public_key(), "board-1", "fleet-1", NOW)
    assert names(made) == ("board-1", "fleet-1")
    usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert made.not_valid_after_utc == NOW + timedelta(days=90)
    assert is_good_as("sslclient", made, tmp_path)
    assert not is_good_as("sslserver", made, tmp_path)


def test_a_servers_certificate_is_for_its_hosts_and_no_client(tmp_path: Path) -> None:
    made = CA.server(KEY.public_key(), ("fleet.example", "::1"), "fleet-1", NOW)
    assert ca.hosts_of(made) == {"fleet.example", "::1"}
    assert is_good_as("sslserver", made, tmp_path)
    assert not is_good_as("sslclient", made, tmp_path)


def test_what_a_device_signed_is_no_certificate(tmp_path: Path) -> None:
    """A device's certificate cannot issue others: it is no authority."""
    device = CA.device(KEY.public_key(), "board-1", "fleet-1", NOW)
    forged = ca.Authority(KEY, device).device(make_device_key().public_key(), "board-2", "fleet-1", NOW)
    assert not is_good_as("sslclient", forged, tmp_path, device)


def test_no_device_can_have_the_services_name() -> None:
    from edgekit.wire import topics

    assert not topics.DEVICE_ID.match(ca.SERVICE_NAME)


def test_serial_numbers_are_random_and_128_bits_long() -> None:
    found = {CA.device(KEY.public_key(), "d", "f", NOW).serial_number for _ in range(50)}
    assert len(found) == 50
    assert all(number.bit_length() == 127 for number in found)


def with_name(key: Any, name: str, algorithm: Any = None) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, algorithm)
    return made.public_bytes(Encoding.PEM).decode()


@pytest.mark.parametrize(
    ("csr", "says"),
    [
        ("", "no PEM certificate request"),
        ("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "no PEM"),
        (csr_of(KEY, "board-2"), "common name is not the device's"),
        (csr_of(KEY, "_fleet"), "common name is not the device's"),
        (with_name(ed25519.Ed25519PrivateKey.generate(), "board-1"), "not EC P-256"),
        (with_name(ec.generate_private_key(ec.SECP384R1()), "board-1", hashes.SHA256()), "not EC P-256"),
        (with_name(rsa.generate_private_key(65537, 2048), "board-1", hashes.SHA256()), "not EC P-256"),
    ],
)
def test_a_request_that_is_not_the_devices_is_refused(csr: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        ca.read_request(csr, "board-1")


def test_a_request_must_be_signed_by_the_key_it_asks_for() -> None:
    der = x509.load_pem_x509_csr(csr_of(KEY, "board-1").encode()).public_bytes(Encoding.DER)
    bent = x509.load_der_x509_csr(der[:-1] + bytes([der[-1] ^ 1])).public_bytes(Encoding.PEM).decode()
    with pytest.raises(UsageError, match="not signed by its own key"):
        ca.read_request(bent, "board-1")


def test_a_proof_is_the_present_keys_over_this_request() -> None:
    csr = csr_of(make_device_key(), "board-1")
    proof = KEY.sign(PROOF_PREFIX + csr.encode(), ec.ECDSA(hashes.SHA256()))
    ca.check_proof(proof, csr, KEY.public_key())
    for wrong_proof, wrong_csr in ((proof, csr + " "), (b"", csr), (proof[:-1], csr)):
        with pytest.raises(AuthError):
            ca.check_proof(wrong_proof, wrong_csr, KEY.public_key())
    with pytest.raises(AuthError):
        ca.check_proof(proof, csr, make_device_key().public_key())


@pytest.mark.parametrize(
    ("since_end_s", "revoked_at", "right"),
    [
        (-1.0, None, Standing.GOOD),
        (0.0, None, Standing.MAY_RENEW),
        (EXPIRED_MAY_RENEW_S - 1, None, Standing.MAY_RENEW),
        (EXPIRED_MAY_RENEW_S, None, Standing.NOTHING),
        (-1.0, 5.0, Standing.NOTHING),
        (1.0, 5.0, Standing.NOTHING),
    ],
)
def test_what_a_certificate_still_allows(
    since_end_s: float, revoked_at: float | None, right: Standing
) -> None:
    assert ca.standing(1e9, revoked_at, 1e9 + since_end_s) is right


def test_the_revocation_list_is_the_authoritys_and_outlives_every_device() -> None:
    text = CA.revocations([("ab", 5.0)], NOW)
    found = x509.load_pem_x509_crl(text)
    assert found.is_signature_valid(CA.certificate.public_key())  # type: ignore[arg-type]
    assert [entry.serial_number for entry in found] == [0xAB]
    assert found.next_update_utc == CA.certificate.not_valid_after_utc


def test_a_certificate_is_due_at_two_thirds_of_its_life() -> None:
    made = CA.device(KEY.public_key(), "board-1", "fleet-1", NOW)
    assert not ca.is_due(made, NOW + timedelta(days=59))
    assert ca.is_due(made, NOW + timedelta(days=61))
