"""Publisher keys in a PKCS#11 token, through securesystemslib, on SoftHSM2."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from softhsm import PIN, Tokens, needed

from edgekit.errors import UsageError
from edgekit.trust.target import Target
from fleet.tuf import documents, ring
from fleet.tuf.home import Home
from fleet.tuf.online import Online
from fleet.tuf.ring import Ring

pytestmark = needed
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
BUNDLE = Target("digits", "1.0.0", "pi", 100, "0" * 64)


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tokens:
    made = Tokens(tmp_path / "softhsm")
    for name, value in (("SOFTHSM2_CONF", made.config), ("PYKCS11LIB", made.library), (ring.PIN, PIN)):
        monkeypatch.setenv(name, str(value))
    made.add("publisher")
    for number in (2, 3):
        made.make_key(f"key {number}", key_id=bytes([number]), token="publisher")
    return made


def publisher(folder: Path) -> Home:
    (folder / "publisher").mkdir(exist_ok=True)
    return Home(Ring(folder / "publisher", lambda: b""))


def whole(home: Home, above: int = 0) -> tuple[tuple[bytes, ...], dict[str, bytes]]:
    found = home.documents()
    return (
        tuple(documents.encode(one) for one in found.roots if one.signed.version > above),
        {role: documents.encode(one) for role, one in found.roles.items()},
    )


def test_root_and_publisher_role_sign_in_the_token_and_a_fleet_takes_it(tokens, tmp_path, monkeypatch):
    online, home = Online(tmp_path / "fleet"), publisher(tmp_path)
    home.init(online.key, NOW, tokens=["hsm:publisher"])
    online.offer(*whole(home), NOW)
    home.add(BUNDLE, NOW)
    assert home.rotate("model.digits", NOW, token="hsm:publisher;id=3") == []
    # Another day: nothing is remembered but what is on disk; the PIN is in a file.
    monkeypatch.delenv(ring.PIN)
    (tmp_path / "pin").write_text(PIN + "\n")
    monkeypatch.setenv(ring.PIN_FILE, str(tmp_path / "pin"))
    home = publisher(tmp_path)
    assert home.sign(["root", "model.digits"], NOW) == []
    online.offer(*whole(home, above=1), NOW)
    found = online.documents()
    assert found is not None
    for role in ("root", "model.digits"):
        [keyid] = found.delegator(role).get_delegated_role(role).keyids
        assert home.ring.held[keyid].uri.startswith("hsm:")
        assert [*found.document(role).signatures] == [keyid]
    assert BUNDLE.path in found.roles["model.digits"].signed.targets
    assert PIN not in (home.folder / "ring.json").read_text()


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("hsm:elsewhere", "No PKCS#11 token found for label elsewhere"),
        ("hsm:publisher;id=9", "could not find ECDSA key"),
        ("hsm:publisher;id=x", "hsm:LABEL;id=N"),
        ("hsm:publisher;slot=3", "hsm:LABEL;id=N"),
    ],
)
def test_what_is_not_there_is_a_sentence(tokens, tmp_path, token, said):
    with pytest.raises(UsageError, match=said):
        publisher(tmp_path).ring.make("root", token)


# securesystemslib leaves a search of python-pkcs11's unfinished in a session that is closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_second_key_of_the_same_address_is_a_sentence(tokens, tmp_path):
    tokens.make_key("key 2 again", key_id=bytes([2]), token="publisher")
    with pytest.raises(UsageError, match="multiple"):
        publisher(tmp_path).ring.make("root", "hsm:publisher")


def test_a_wrong_pin_signs_nothing_and_is_a_sentence(tokens, tmp_path, monkeypatch):
    monkeypatch.setenv(ring.PIN, "not-the-pin")
    home = publisher(tmp_path)
    with pytest.raises(UsageError, match="the PIN is not the token's") as caught:
        home.init(Online(tmp_path / "fleet").key, NOW, tokens=["hsm:publisher"])
    assert "not-the-pin" not in str(caught.value)
    assert not home.exists
    monkeypatch.setenv(ring.PIN, PIN)
    home = publisher(tmp_path)
    home.init(Online(tmp_path / "fleet").key, NOW, tokens=["hsm:publisher"])
    assert home.exists


def test_where_nobody_can_be_asked_the_pin_s_place_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv(ring.PIN, raising=False)
    monkeypatch.delenv(ring.PIN_FILE, raising=False)
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UsageError, match="the token's PIN"):
        publisher(tmp_path).ring._pin("pin")


def test_a_library_that_is_none_is_a_sentence(tokens, tmp_path, monkeypatch):
    monkeypatch.setenv("PYKCS11LIB", str(tokens.config))
    with pytest.raises(UsageError, match="hsm:publisher"):
        publisher(tmp_path).ring.make("root", "hsm:publisher")
