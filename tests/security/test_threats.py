"""Attackers that no other test is about: whoever reads or changes the fleet's database, or copies its home."""

import base64
import itertools
import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fleet_support import FakeDevice, pinned, wait_until
from msgspec.structs import replace
from tls_support import TlsFleet, edgekit

from edgekit.errors import SignatureRefusedError
from edgekit.trust import dsse

pytestmark = [pytest.mark.broker, pytest.mark.slow]
NUMBERS = itertools.count(1)
SECRET_LIKE = re.compile(r"[A-Za-z0-9_=+/-]{16,512}")


def stored(fleet: TlsFleet) -> dict[str, list[str]]:
    """Every text and blob of the database, by table."""
    place = fleet.service.state / "fleet.db"
    with sqlite3.connect(f"file:{place}?mode=ro", uri=True) as connection:
        tables = [
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        return {
            table: [
                value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
                for row in connection.execute(f'SELECT * FROM "{table}"')
                for value in row
                if value is not None
            ]
            for table in tables
        }


@pytest.fixture
def device(tls_fleet: TlsFleet) -> Iterator[FakeDevice]:
    made = tls_fleet.joined(f"threat-{next(NUMBERS)}")
    made.connect()
    wait_until(lambda: made.acked, "it is connected")
    yield made
    made.close()


def test_nothing_in_the_database_lets_anybody_in(
    tls_fleet: TlsFleet, device: FakeDevice, tmp_path: Path
) -> None:
    waiting = tls_fleet.device("not-joined-yet")  # its token is still good
    everything = stored(tls_fleet)
    texts = [text for values in everything.values() for text in values]
    assert any(device.name in text for text in texts)
    assert not [text for text in texts if "PRIVATE KEY" in text]
    words = {word for text in texts for word in SECRET_LIKE.findall(text)}
    known = {device.credential, waiting.file.token, tls_fleet.service.client()._transport._access.token}
    assert not words & known
    hashes = {word for word in words if re.fullmatch("[0-9a-f]{64}", word)}
    assert len(hashes) > 3
    url, trust = f"https://localhost:{tls_fleet.service.http_port}", pinned(device.file)
    with httpx.Client(verify=trust, trust_env=False) as client:
        for word in hashes:
            bearer = {"Authorization": f"Bearer {word}"}
            assert client.get(f"{url}/api/v1/devices", headers=bearer).status_code == 401
            assert client.get(f"{url}/artifacts/{'0' * 64}", headers=bearer).status_code == 401
    for word in hashes:
        stolen = FakeDevice(replace(waiting.file, token=word))
        assert stolen.ask_to_enrol().status_code == 403
    assert waiting.ask_to_enrol().status_code == 200


def test_an_order_that_was_changed_in_the_database_is_followed_by_nobody(
    tls_fleet: TlsFleet, device: FakeDevice
) -> None:
    tls_fleet.service.client().add_deployment(device.name, "segment")
    wait_until(lambda: device.orders, "it has an order")
    orders = [json.loads(text) for text in stored(tls_fleet)["outbox"] if '"payloadType"' in text]
    [envelope] = [one for one in orders if device.name in base64.b64decode(one["payload"]).decode()]
    keys = device.file.order_keys
    assert dsse.verify(json.dumps(envelope).encode(), dsse.ORDER_TYPE, keys)
    payload = base64.b64decode(envelope["payload"])
    for changed in (
        payload.replace(device.name.encode(), b"another"),
        payload.replace(b"segment", b"segmint"),
    ):
        assert changed != payload
        forged = envelope | {"payload": base64.b64encode(changed).decode()}
        with pytest.raises(SignatureRefusedError):
            dsse.verify(json.dumps(forged).encode(), dsse.ORDER_TYPE, keys)


def test_the_passphrase_of_the_authority_is_nowhere_in_the_home(tls_fleet: TlsFleet, tmp_path: Path) -> None:
    for path in tls_fleet.service.state.rglob("*"):
        if path.is_file():
            assert b"a long passphrase" not in path.read_bytes(), path
    assert b"ENCRYPTED" in (tls_fleet.service.state / "keys" / "ca.key").read_bytes()
    thief = edgekit(
        "broker-config", "mosquitto", "--state", tls_fleet.service.state, "--out", tmp_path / "made"
    )
    assert (thief.returncode, "is encrypted" in thief.stderr) == (2, True)
    assert not (tmp_path / "made").exists()
