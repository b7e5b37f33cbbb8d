"""What an operator sees and takes back of enrolment files for many, and of identities on other hardware."""

from pathlib import Path

import msgspec
import pytest
from fleet_support import FakeDevice, make_device_key
from tls_support import TlsFleet, edgekit

from edgekit.wire.enrolment import EnrolmentFile

pytestmark = [pytest.mark.broker, pytest.mark.slow]
ONE, OTHER = "a" * 64, "b" * 64


def asked(fleet: TlsFleet, *words: str | Path, code: int = 0) -> str:
    done = edgekit("--fleet", fleet.service.state, *words)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.mark.proof
def test_a_batch_is_listed_and_withdrawn_and_who_has_joined_stays(
    tls_fleet: TlsFleet, tmp_path: Path
) -> None:
    out = tmp_path / "batch.json"
    asked(tls_fleet, "enroll", "--count", "3", "--approve", "--label", "site=roof", "--deployment", "digits",
          "--out", out)  # fmt: skip
    file = msgspec.json.decode(out.read_bytes(), type=EnrolmentFile)
    first, second = FakeDevice(file, serial="roof-1"), FakeDevice(file, serial="roof-2")
    for board in (first, second):
        assert board.ask_to_enrol().status_code == 202
    asked(tls_fleet, "approve", "roof-1")
    first.enrol()
    [line, *_] = asked(tls_fleet, "batch", "list").splitlines()
    assert line.split()[1:5] == ["open", "1", "of", "3"]
    assert "1 waiting" in line
    assert "site=roof" in line
    batch = line.split()[0]
    assert "nobody joins" in asked(tls_fleet, "batch", "revoke", batch)
    assert "already" in asked(tls_fleet, "batch", "revoke", batch)
    for board in (second, FakeDevice(file, serial="roof-3")):
        refused = board.ask_to_enrol()
        assert (refused.status_code, "withdrawn" in refused.text) == (403, True)
    assert "roof-2" not in asked(tls_fleet, "waiting")
    assert first.renew().status_code == 200
    [found] = [one for one in tls_fleet.service.client().batches() if one.id == batch]
    assert (found.state, found.joined, found.waiting, found.refused) == ("withdrawn", 1, 0, 1)


@pytest.mark.proof
def test_only_a_batch_that_there_is_can_be_withdrawn(tls_fleet: TlsFleet) -> None:
    tls_fleet.device("by-name")  # its file is not a batch's
    ids = {one.id for one in tls_fleet.service.client().batches()}
    numbers = [int(one.removeprefix("b")) for one in ids]
    for missing in (f"b{max(numbers, default=0) + 1}", "x", "b-1"):
        assert "no batch" in asked(tls_fleet, "batch", "revoke", missing, code=5)


def explained(fleet: TlsFleet, device: str) -> str:
    return asked(fleet, "device", "explain", device)


def test_another_hardware_that_renews_in_a_devices_name_is_told(tls_fleet: TlsFleet) -> None:
    device = tls_fleet.device("copied", fingerprint=ONE)
    device.enrol()
    assert device.renew().status_code == 200
    assert "other hardware" not in explained(tls_fleet, "copied")
    device.fingerprint = OTHER  # the folder was copied, and the check of the agent taken out
    assert device.renew(make_device_key()).status_code == 200
    told = explained(tls_fleet, "copied")
    assert f"renewed on other hardware: {ONE[:12]} before, {OTHER[:12]} now" in told
    assert "revoke it" in told


def test_another_board_that_enrols_under_a_name_is_told_until_the_next_enrolment(tls_fleet: TlsFleet) -> None:
    for fingerprint, is_told in ((ONE, False), (OTHER, True), (OTHER, False), ("", False)):
        device = tls_fleet.device("replaced", fingerprint=fingerprint)
        device.enrol()
        assert ("enrolled again on other hardware" in explained(tls_fleet, "replaced")) is is_told
