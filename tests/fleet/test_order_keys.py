"""The key that signs orders is exchanged through the publisher's targets, on a running service."""

from datetime import UTC, datetime
from pathlib import Path

import httpx
import msgspec
import pytest
from fleet_support import FakeDevice, Service, wait_until

from edgekit.errors import ConflictError
from edgekit.trust.orderkeys import OrderKeys
from fleet import api
from fleet.client import keys
from fleet.tuf import together


@pytest.fixture
def service(tmp_path: Path):
    made = Service(tmp_path)
    made.start()
    yield made
    made.stop()


def test_a_rotation_goes_from_the_command_to_orders_enrolment_files_and_a_restart(service: Service):
    client = service.client()
    [old] = client.keys().order_keys
    client.enroll(api.NewDevice("board", ("digits",)))
    home = together.home(service.state)
    home.set_order_keys(OrderKeys({"stranger": "0" * 64}), datetime.now(UTC))
    with pytest.raises(ConflictError, match="would follow no order"):
        keys.upload(client, home)
    assert list(client.keys().order_keys) == [old]

    new = client.next_order_key()
    assert client.next_order_key() == new
    home.set_order_keys(OrderKeys({new.keyid: new.public}), datetime.now(UTC))
    assert "fleet" in keys.upload(client, home)
    assert client.keys().order_keys == {new.keyid: new.public}
    file = client.enroll(api.NewDevice("other", ("digits",)))
    assert file.order_keys == {new.keyid: new.public}
    [listed] = (service.state / "tuf" / "metadata" / "targets" / "_fleet").glob("*.json")
    there = httpx.get(f"{file.metadata_url}/targets/_fleet/{listed.name}", trust_env=False)
    assert msgspec.json.decode(there.content) == {"keys": {new.keyid: new.public}}
    assert httpx.get(f"{file.metadata_url}/targets/_fleet/../root.json", trust_env=False).status_code == 404
    service.stop()
    service.start()
    assert service.client().keys().order_keys == {new.keyid: new.public}


@pytest.mark.proof
def test_orders_that_are_out_are_signed_again_by_the_new_key(service: Service):
    client = service.client()
    device = FakeDevice(client.enroll(api.NewDevice("board", ("digits",))))
    device.enrol()
    device.connect()
    try:
        assert client.add_deployment("board", "more").is_changed
        wait_until(lambda: device.orders, "it has an order")
        new = client.next_order_key()
        home = together.home(service.state)
        home.set_order_keys(OrderKeys({new.keyid: new.public}), datetime.now(UTC))
        before = len(device.orders)
        # As an agent that has looked at the list.
        device.file = msgspec.structs.replace(device.file, order_keys={new.keyid: new.public})
        keys.upload(client, home)
        wait_until(lambda: len(device.orders) > before, "the order came again, signed by the new key")
        assert device.orders[-1].deployments == device.orders[-2].deployments
    finally:
        device.close()
