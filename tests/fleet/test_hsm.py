"""The CA's key in a PKCS#11 token: how it is named, what is signed with it, and what a person is told when it is not there.

SoftHSM2 stands for the token; where it is missing, only the rules of addresses are tested.
"""

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from fleet_support import make_device_key
from softhsm import PIN, Tokens, needed
from sqlalchemy import insert

from edgekit.errors import HardwareKeyError, UsageError
from fleet.server import ca, hsm, hsm_uri
from fleet.server.broker import Mosquitto
from fleet.server.certificates import Certificates
from fleet.server.database import Database, sqlite_url
from fleet.server.hsm import TokenKey
from fleet.server.hsm_uri import KeyAddress
from fleet.server.places import Wanted, settle
from fleet.server.schema import devices
from fleet.server.store import certificates

NOW = datetime(2026, 6, 1, tzinfo=UTC)


# -- addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("pkcs11:token=fleet;object=ca", KeyAddress(token="fleet", label="ca")),
        ("pkcs11:object=ca;token=The%20Fleet%3B%3d", KeyAddress(token="The Fleet;=", label="ca")),
        ("pkcs11:id=%01%ff;serial=ab12", KeyAddress(serial="ab12", id=b"\x01\xff")),
        ("pkcs11:object=ca;type=private;model=M;manufacturer=Me", KeyAddress(manufacturer="Me", model="M", label="ca")),
        ("pkcs11:object=ca?module-path=/usr/lib/a%20b.so", KeyAddress(label="ca", module="/usr/lib/a b.so")),
    ],
)  # fmt: skip
def test_an_address_names_token_and_key(text, meant):
    assert hsm_uri.parse(text) == meant


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("token=fleet;object=ca", "write pkcs11:"),
        ("pkcs11:token=fleet", "add object=NAME"),
        ("pkcs11:", "add object=NAME"),
        ("pkcs11:object=ca;object=cb", "object is there twice"),
        ("pkcs11:object=ca;type=cert", "type is private"),
        ("pkcs11:object=ca;slot-id=3", "'slot-id' is not followed"),
        ("pkcs11:object", "'object' is not followed"),
        ("pkcs11:object=ca?module-name=x", "'module-name' is not followed"),
        ("pkcs11:object=ca;module-path=/x", "'module-path' is not followed"),
        ("pkcs11:object=%ff", "UTF-8"),
        ("pkcs11:object=ca?pin-source=file:/x", "pin-source is not taken"),
    ],
)
def test_an_address_that_says_more_or_less_is_refused(text, said):
    with pytest.raises(UsageError, match=said):
        hsm_uri.parse(text)


@pytest.mark.parametrize("text", ["pkcs11:object=ca?pin-value=4711", "pkcs11:object=ca;pin-value=4711"])
def test_a_pin_in_an_address_is_refused_and_not_repeated(text):
    with pytest.raises(UsageError, match="never in an address") as caught:
        hsm_uri.parse(text)
    assert "4711" not in str(caught.value)


# -- the token -----------------------------------------------------------------------------------------------------


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tokens:
    made = Tokens(tmp_path / "softhsm")
    monkeypatch.setenv("SOFTHSM2_CONF", str(made.config))
    made.add()
    return made


def made(tokens: Tokens) -> TokenKey:
    return hsm.find_or_make(hsm_uri.parse(tokens.uri()), PIN)


def opened(tokens: Tokens, key: ec.EllipticCurvePrivateKey, pin: str = PIN, rest: str = "") -> TokenKey:
    uri = tokens.uri(rest) if rest else tokens.uri()
    return hsm.open_key(hsm_uri.parse(uri), pin, key.public_key())


@needed
def test_what_is_signed_in_the_token_is_good_for_openssl(tokens, tmp_path):
    authority = ca.create("fleet-1", NOW, made(tokens))
    device = authority.device(make_device_key().public_key(), "board-7", "fleet-1", NOW)
    gone = authority.device(make_device_key().public_key(), "board-8", "fleet-1", NOW)
    server = authority.server(make_device_key().public_key(), ["fleet.example"], "fleet-1", NOW)
    listed = authority.revocations([(ca.serial_text(gone), NOW.timestamp())], NOW)
    for name, text in (("ca", authority.pem), ("device", ca.pem(device)), ("gone", ca.pem(gone)),
                       ("server", ca.pem(server)), ("crl", listed.decode())):  # fmt: skip
        (tmp_path / name).write_text(text)
    verify = ["openssl", "verify", "-attime", str(int(NOW.timestamp())), "-CAfile", str(tmp_path / "ca"),
              "-crl_check", "-CRLfile", str(tmp_path / "crl")]  # fmt: skip

    def is_good(name: str) -> bool:
        return (
            subprocess.run([*verify, str(tmp_path / name)], capture_output=True, check=False).returncode == 0
        )

    assert is_good("device")
    assert is_good("server")
    assert not is_good("gone")
    assert x509.load_pem_x509_crl(listed).is_signature_valid(authority.key.public_key())


@needed
def test_the_key_is_made_to_stay_in_the_token(tokens):
    import pkcs11

    key = made(tokens)
    for leave in (key.private_numbers, key.private_bytes):
        with pytest.raises(NotImplementedError):
            leave()
    [private] = key._session.raw.get_objects({pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY})
    assert private[pkcs11.Attribute.SENSITIVE]
    assert not private[pkcs11.Attribute.EXTRACTABLE]
    with pytest.raises(pkcs11.exceptions.PKCS11Error):
        private[pkcs11.Attribute.VALUE]


@needed
def test_a_key_that_is_there_is_taken(tokens):
    tokens.make_key("ca", key_id=b"\x07")
    first = made(tokens)
    assert made(tokens).public_key() == first.public_key()
    assert opened(tokens, first, rest="token=fleet;id=%07").public_key() == first.public_key()


@needed
def test_a_key_of_another_kind_is_refused(tokens):
    tokens.make_key("ca", key_id=b"\x07", kind="secp384r1")
    with pytest.raises(UsageError, match="no EC P-256 key"):
        made(tokens)


@needed
def test_two_keys_of_one_name_are_told_apart_by_their_id_only(tokens):
    tokens.make_key("ca", key_id=b"\x01")
    tokens.make_key("ca", key_id=b"\x02")
    with pytest.raises(UsageError, match="is there 2 times; say which by id"):
        made(tokens)
    key = hsm.find_or_make(hsm_uri.parse(tokens.uri("token=fleet;object=ca;id=%02")), PIN)
    key.sign(b"data", ec.ECDSA(hashes.SHA256()))


@needed
def test_two_tokens_of_one_name_are_told_apart_by_their_serial_only(tokens):
    tokens.add()
    with pytest.raises(UsageError, match="is there 2 times; narrow it down by serial"):
        made(tokens)


@needed
@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("token=other;object=ca", r"token with label 'other' is not there \(tokens found: 'fleet'\)"),
        ("token=fleet;serial=1;object=ca", "serial '1' is not there"),
        ("token=fleet;object=cb", "key with label 'cb' in the PKCS#11 token with label 'fleet' is not there"),
    ],
)
def test_what_is_not_there_is_named(tokens, rest, said):
    key = made(tokens)
    with pytest.raises(UsageError, match=said):
        opened(tokens, key, rest=rest)


@needed
def test_another_key_under_the_same_name_is_not_the_fleets(tokens):
    made(tokens)
    with pytest.raises(UsageError, match=r"not the key of this fleet's ca\.pem"):
        opened(tokens, make_device_key())


@needed
def test_a_wrong_pin_is_refused_and_not_repeated(tokens):
    with pytest.raises(UsageError, match="refused the PIN") as caught:
        hsm.find_or_make(hsm_uri.parse(tokens.uri()), "not-the-pin")
    assert "not-the-pin" not in str(caught.value)


@needed
def test_a_library_that_is_none_is_named(tokens, monkeypatch):
    monkeypatch.delenv(hsm.MODULE, raising=False)
    with pytest.raises(UsageError, match="which library speaks to it"):
        hsm.find_or_make(KeyAddress(label="ca"), PIN)
    with pytest.raises(HardwareKeyError, match="does not work"):
        hsm.find_or_make(KeyAddress(label="ca", module=str(tokens.config)), PIN)


@needed
def test_the_library_may_stand_in_the_environment(tokens, monkeypatch):
    monkeypatch.setenv(hsm.MODULE, str(tokens.library))
    made = hsm.find_or_make(hsm_uri.parse("pkcs11:token=fleet;object=ca"), PIN)
    again = hsm.find_or_make(hsm_uri.parse("pkcs11:token=fleet;object=ca"), PIN)
    assert made.public_key() == again.public_key()


@needed
def test_a_token_that_was_away_signs_again_when_it_is_back(tokens):
    import pkcs11

    key = made(tokens)
    library, folder, away = pkcs11.lib(str(tokens.library)), tokens.folder / "tokens", tokens.folder / "away"
    library.reinitialize()  # as when a reader was unplugged: the session is worth nothing
    key.sign(b"data", ec.ECDSA(hashes.SHA256()))
    folder.rename(away)
    folder.mkdir()
    library.reinitialize()
    for _ in range(2):
        with pytest.raises(HardwareKeyError, match="is not there"):
            key.sign(b"data", ec.ECDSA(hashes.SHA256()))
    folder.rmdir()
    away.rename(folder)
    key.sign(b"data", ec.ECDSA(hashes.SHA256()))


@needed
def test_a_pin_that_was_refused_is_not_tried_again(tokens, monkeypatch):
    key = made(tokens)
    tokens.change_pin("another-pin")
    with pytest.raises(HardwareKeyError, match="refused the PIN; after a few"):
        key.sign(b"data", ec.ECDSA(hashes.SHA256()))
    monkeypatch.setattr(hsm, "_Session", lambda *_: pytest.fail("the PIN was tried again"))
    for _ in range(2):
        with pytest.raises(HardwareKeyError, match="start the service anew"):
            key.sign(b"data", ec.ECDSA(hashes.SHA256()))


@needed
def test_a_wrong_signature_is_never_given_out(tokens, monkeypatch):
    key = made(tokens)
    monkeypatch.setattr(hsm._Session, "sign", lambda *_: bytes([1]) * 64)
    with pytest.raises(HardwareKeyError, match="does not sign as the fleet's CA"):
        ca.create("fleet-1", NOW, key)
    monkeypatch.setattr(hsm._Session, "sign", lambda *_: bytes([1]) * 96)
    with pytest.raises(HardwareKeyError, match="96 bytes"):
        ca.create("fleet-1", NOW, key)


# -- a service whose token is away -------------------------------------------------------------------------------------


class _Away(TokenKey):
    """Signs while `is_there`."""

    def __init__(self) -> None:
        self.private, self.is_there = make_device_key(), True

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self.private.public_key()

    def sign(self, data, signature_algorithm):
        if not self.is_there:
            raise HardwareKeyError("the PKCS#11 token is not there")
        return self.private.sign(data, signature_algorithm)


class _Broker(Mosquitto):
    def __init__(self) -> None:
        self.reloads, self.must_restart = 0, False

    def reload(self) -> None:
        self.reloads += 1


def test_a_revocation_reaches_the_brokers_list_when_the_token_is_back(tmp_path, caplog):
    key, broker, now = _Away(), _Broker(), NOW.timestamp()
    authority = ca.create("fleet-1", NOW, key)
    (tmp_path / "keys").mkdir()
    database = Database(sqlite_url(tmp_path))
    places = settle(Wanted(public_url="https://localhost:1", mqtt_public="mqtts://localhost:1"))
    service = Certificates(database, authority, "fleet-1", tmp_path / "keys", places, broker=broker,
                           broker_files=None, is_api_ours=False)  # fmt: skip
    service.keep_fresh(now)
    certificate = authority.device(make_device_key().public_key(), "board-7", "fleet-1", NOW)
    with database.begin() as connection:
        connection.execute(
            insert(devices).values(id="board-7", created_at=now, labels="{}", deployments="[]")
        )
        certificates.add(connection, certificate, "board-7", 1, now)
        certificates.revoke(connection, "board-7", "stolen", now)
    key.is_there, reloads = False, broker.reloads
    with pytest.raises(HardwareKeyError, match="board-7 is revoked here, but not yet at the broker"):
        service.revoked("board-7", now)
    service.keep_fresh(now + 61)  # raises nothing: rollouts go on
    assert "tried again in a minute" in caplog.text
    assert broker.reloads == reloads + 1, "the rules need no signature"
    key.is_there = True
    service.keep_fresh(now + 90)
    assert broker.reloads == reloads + 1, "not more than once a minute"
    service.keep_fresh(now + 122)
    assert broker.reloads > reloads + 1
    listed = x509.load_pem_x509_crl((tmp_path / "keys" / "crl.pem").read_bytes())
    assert listed.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
    database.close()
