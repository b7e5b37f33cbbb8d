"""Joining a fleet across an open network: who gets an identity, who keeps it, who loses it."""

import base64
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from fleet_support import FakeDevice, csr_of, key_pem, make_bundle, make_device_key, pinned, wait_until
from msgspec.structs import replace
from tls_support import TlsFleet, edgekit, make_fleet, secret

from edgekit.wire.enrolment import (
    PROOF_PREFIX,
    EnrolAnswer,
    EnrolmentFile,
    RenewRequest,
    renew_url,
    unprotected,
)
from fleet import api

pytestmark = [pytest.mark.broker, pytest.mark.slow]


def read(response: httpx.Response) -> EnrolAnswer:
    assert response.status_code == 200, response.text
    return msgspec.json.decode(response.content, type=EnrolAnswer)


def certificate(answer: EnrolAnswer) -> x509.Certificate:
    return x509.load_pem_x509_certificates(answer.certificate.encode())[0]


def asked(fleet: TlsFleet, *words: str | Path) -> str:
    done = edgekit("--fleet", fleet.service.state, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def batch(tls_fleet: TlsFleet, tmp_path: Path) -> EnrolmentFile:
    """For two devices of the site `batch`, whose names are not said beforehand."""
    out = tmp_path / "batch.json"
    asked(
        tls_fleet, "enroll", "--count", "2", "--expires", "7d", "--label", "site=batch",
        "--deployment", "digits", "--out", out,
    )  # fmt: skip
    return msgspec.json.decode(out.read_bytes(), type=EnrolmentFile)


def test_the_file_names_one_address_and_pins_it(tls_fleet: TlsFleet) -> None:
    file = tls_fleet.device("files").file
    port = tls_fleet.service.http_port
    assert file.enrol_url == f"https://localhost:{port}/v1/enrol"
    assert file.artifact_url == f"https://localhost:{port}/artifacts"
    assert (file.broker.host, file.broker.port, file.broker.tls) == (
        "localhost",
        tls_fleet.service.mqtt_port,
        True,
    )
    assert "BEGIN CERTIFICATE" in file.ca
    assert unprotected(replace(file, broker=replace(file.broker, host="fleet.example"))) == ()
    assert unprotected(replace(file, ca="", broker=replace(file.broker, host="fleet.example"))) != ()


def test_a_device_gets_a_certificate_in_its_own_name(tls_fleet: TlsFleet) -> None:
    device = tls_fleet.joined("named")
    made = certificate(device.answer)
    assert made.subject.rfc4514_string() == f"CN=named,O={device.file.fleet}"
    assert made.public_key() == device.key.public_key()
    left = device.answer.not_after - datetime.now(UTC)
    assert timedelta(days=89) < left <= timedelta(days=90)


def test_a_lost_answer_is_given_again_to_the_same_key_and_to_no_other(tls_fleet: TlsFleet) -> None:
    device = tls_fleet.device("lost")
    first, second = read(device.ask_to_enrol()), read(device.ask_to_enrol())
    assert first == second
    thief = FakeDevice(device.file)
    stolen = thief.ask_to_enrol()
    assert stolen.status_code == 403
    assert "by another key" in stolen.text
    assert read(device.ask_to_enrol()) == first


def test_an_answer_that_was_used_is_given_to_nobody_again(tls_fleet: TlsFleet) -> None:
    device = tls_fleet.joined("used")
    device.connect()
    wait_until(lambda: device.acked, "the fleet has heard of it")
    again = device.ask_to_enrol()
    assert again.status_code == 403
    assert "used already" in again.text
    device.close()


def test_two_keys_at_the_same_moment_get_one_identity(tls_fleet: TlsFleet) -> None:
    file = tls_fleet.device("raced").file
    racers = [FakeDevice(file) for _ in range(6)]
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda r=r: codes.append(r.ask_to_enrol().status_code)) for r in racers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [200] + [403] * 5


def test_a_file_works_no_longer_than_it_says(tls_fleet: TlsFleet) -> None:
    client = tls_fleet.service.client()
    short = FakeDevice(client.enroll(api.NewDevice("late", ("digits",), {}, expires="1s")))
    wait_until(lambda: short.ask_to_enrol().status_code == 403 or None, "it runs out", timeout_s=10)


def test_a_new_file_withdraws_the_one_before(tls_fleet: TlsFleet) -> None:
    old, new = tls_fleet.device("twice"), tls_fleet.device("twice")
    assert "replaced or withdrawn" in old.ask_to_enrol().text
    assert read(new.ask_to_enrol()).enrolment == 1


def test_a_batch_lets_so_many_in_and_no_more(tls_fleet: TlsFleet, batch: EnrolmentFile) -> None:
    assert batch.device == ""
    boards = [FakeDevice(batch, serial=f"serial-{number}") for number in range(3)]
    for board in boards[:2]:
        board.enrol()
        assert certificate(board.answer).subject.rfc4514_string().startswith(f"CN={board.serial},")
    refused = boards[2].ask_to_enrol()
    assert (refused.status_code, "all 2 places" in refused.text) == (403, True)
    assert read(boards[0].ask_to_enrol()) == boards[0].answer
    labels = {d.device: d.labels for d in tls_fleet.service.client().devices()}
    assert labels["serial-0"]["site"] == "batch"


def test_a_batch_takes_no_device_over(tls_fleet: TlsFleet, batch: EnrolmentFile) -> None:
    device = tls_fleet.joined("settled")
    thief = FakeDevice(batch, serial="settled").ask_to_enrol()
    assert thief.status_code == 409
    assert "takes none over" in thief.text
    assert device.fetch("0" * 64).status_code == 404  # still known, and ordered nothing


def test_a_batch_with_a_list_is_for_the_names_on_it(tls_fleet: TlsFleet, tmp_path: Path) -> None:
    serials, out = tmp_path / "serials.txt", tmp_path / "batch.json"
    serials.write_text("# the boards of May\nmay-1\n\nmay-2\n")
    asked(tls_fleet, "enroll", "--serials", serials, "--deployment", "digits", "--out", out)
    file = msgspec.json.decode(out.read_bytes(), type=EnrolmentFile)
    assert FakeDevice(file, serial="may-2").ask_to_enrol().status_code == 200
    assert "not on the list" in FakeDevice(file, serial="june-1").ask_to_enrol().text


def test_who_waits_for_approval_gets_nothing_before_it(tls_fleet: TlsFleet, tmp_path: Path) -> None:
    out = tmp_path / "batch.json"
    asked(tls_fleet, "enroll", "--count", "9", "--approve", "--deployment", "digits", "--out", out)
    file = msgspec.json.decode(out.read_bytes(), type=EnrolmentFile)
    good, bad = FakeDevice(file, serial="good"), FakeDevice(file, serial="bad")
    for board in (good, bad):
        waits = board.ask_to_enrol()
        assert (waits.status_code, waits.json()["error"]["code"]) == (202, "waits")
        assert int(waits.headers["retry-after"]) > 0
        assert "certificate" not in waits.json()
    assert FakeDevice(file, serial="good").ask_to_enrol().status_code == 403  # another key, same name
    assert {"good", "bad"} <= {line.split()[0] for line in asked(tls_fleet, "waiting").splitlines()}
    assert "good may join" in asked(tls_fleet, "approve", "good")
    asked(tls_fleet, "reject", "bad")
    assert read(good.ask_to_enrol()).device == "good"
    assert bad.ask_to_enrol().status_code == 403


def test_a_board_that_waits_takes_over_nobody_who_came_meanwhile(tls_fleet: TlsFleet, tmp_path: Path) -> None:
    files = []
    for name in ("one.json", "two.json"):
        asked(
            tls_fleet,
            "enroll",
            "--count",
            "9",
            "--approve",
            "--deployment",
            "digits",
            "--out",
            tmp_path / name,
        )
        files.append(msgspec.json.decode((tmp_path / name).read_bytes(), type=EnrolmentFile))
    waits = FakeDevice(files[0], serial="gate-4")
    assert waits.ask_to_enrol().status_code == 202
    other = FakeDevice(files[1], serial="gate-4").ask_to_enrol()
    assert (other.status_code, "by another file" in other.text) == (409, True)
    asked(tls_fleet, "approve", "gate-4")
    settled = tls_fleet.joined("gate-4")
    late = waits.ask_to_enrol()
    assert (late.status_code, "takes none over" in late.text) == (409, True)
    assert settled.fetch("0" * 64).status_code == 404  # its identity is still good


def test_a_certificate_is_renewed_for_a_new_key_and_the_answer_may_be_lost(tls_fleet: TlsFleet) -> None:
    device = tls_fleet.joined("renewing")
    key = make_device_key()
    first, second = read(device.renew(key)), read(device.renew(key))
    assert first == second
    assert certificate(first).public_key() == key.public_key()
    assert (first.enrolment, first.credential) == (device.enrolment, device.credential)
    device.key, device.answer = key, first
    assert device.renew().status_code == 200


def test_nobody_renews_in_anothers_name(tls_fleet: TlsFleet) -> None:
    device, other = tls_fleet.joined("honest"), tls_fleet.joined("greedy")
    content = msgspec.json.encode(RenewRequest(csr_of(other.key, "honest")))
    answer = httpx.post(
        renew_url(device.file.enrol_url), content=content, verify=other.tls(), trust_env=False
    )
    assert (answer.status_code, "common name" in answer.text) == (400, True)
    naked = httpx.post(
        renew_url(device.file.enrol_url), content=content, verify=pinned(device.file), trust_env=False
    )
    assert naked.status_code == 401


def test_where_a_proxy_ends_tls_the_present_key_is_proved(tls_fleet: TlsFleet) -> None:
    device = tls_fleet.joined("behind-a-proxy")
    csr = csr_of(make_device_key(), device.name)

    def renew(signer: ec.EllipticCurvePrivateKey, credential: str = device.credential) -> httpx.Response:
        proof = base64.b64encode(signer.sign(PROOF_PREFIX + csr.encode(), ec.ECDSA(hashes.SHA256()))).decode()
        return httpx.post(
            renew_url(device.file.enrol_url),
            content=msgspec.json.encode(RenewRequest(csr, proof)),
            headers={"Authorization": f"Bearer {credential}"},
            verify=pinned(device.file),
            trust_env=False,
        )

    assert renew(make_device_key()).status_code == 403
    assert renew(device.key, "another").status_code == 401
    assert read(renew(device.key)).enrolment == device.enrolment


def test_a_model_is_fetched_with_a_certificate_or_a_credential_and_not_without(
    tls_fleet: TlsFleet, tmp_path: Path
) -> None:
    device = tls_fleet.joined("fetching")
    device.connect()
    wait_until(lambda: device.acked, "it is online")
    path = make_bundle(tmp_path, "1.0.0")
    asked(tls_fleet, "publish", path)
    asked(tls_fleet, "rollout", "start", "digits@1.0.0", "--to", "device=fetching", "--stages", "100%",
          "--gate", "error_rate < 5%", "--soak", "1s")  # fmt: skip
    wait_until(lambda: device.running, "it has followed its order")
    url = f"{device.file.artifact_url}/{device.running['digits'].sha256}"
    assert httpx.get(url, verify=device.tls(), trust_env=False).content == path.read_bytes()
    assert device.fetch(device.running["digits"].sha256).content == path.read_bytes()
    assert httpx.get(url, verify=pinned(device.file), trust_env=False).status_code == 401
    other = tls_fleet.joined("curious")
    assert httpx.get(url, verify=other.tls(), trust_env=False).status_code == 404
    tls_fleet.service.client().revoke("fetching", "")
    assert httpx.get(url, verify=device.tls(), trust_env=False).status_code == 403
    assert device.fetch(device.running["digits"].sha256).status_code == 401
    device.close()


def test_one_command_gives_an_enrolled_board_another_deployment(tls_fleet: TlsFleet) -> None:
    device = tls_fleet.joined("growing")
    device.connect()
    wait_until(lambda: device.acked, "it is online")
    assert "has deployment segment now" in asked(tls_fleet, "deployment", "add", "growing", "segment")
    wait_until(lambda: device.orders and device.orders[-1].added == ("segment",), "its order says so")
    assert "already" in asked(tls_fleet, "deployment", "add", "growing", "segment")
    [view] = [d for d in tls_fleet.service.client().devices() if d.device == "growing"]
    assert set(view.deployments) == {"digits", "segment"}
    device.close()


def test_a_board_out_of_service_is_gone_until_it_enrols_again(tls_fleet: TlsFleet) -> None:
    device = tls_fleet.joined("retired")
    asked(tls_fleet, "device", "decommission", "retired", "--reason", "scrapped")
    names = {d.device for d in tls_fleet.service.client().devices()}
    assert "retired" not in names
    assert device.renew().status_code == 403
    back = tls_fleet.joined("retired")
    assert back.enrolment == device.enrolment + 1
    assert "retired" in {d.device for d in tls_fleet.service.client().devices()}
    assert device.renew().status_code == 403


def test_a_certificate_of_another_authority_ends_the_connection(tls_fleet: TlsFleet, tmp_path: Path) -> None:
    from fleet.server import ca

    device = tls_fleet.joined("impersonated")
    strange = ca.create(device.file.fleet, datetime.now(UTC))
    key = make_device_key()
    forged = strange.device(key.public_key(), "impersonated", device.file.fleet, datetime.now(UTC))
    context = pinned(device.file)
    assert isinstance(context, ssl.SSLContext)
    (tmp_path / "forged.pem").write_bytes(key_pem(key) + ca.pem(forged).encode())
    context.load_cert_chain(tmp_path / "forged.pem")
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{device.file.artifact_url}/{'0' * 64}", verify=context, trust_env=False)


def test_old_tls_is_refused(tls_fleet: TlsFleet) -> None:
    context = pinned(tls_fleet.device("old-tls").file)
    assert isinstance(context, ssl.SSLContext)
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"https://localhost:{tls_fleet.service.http_port}/", verify=context, trust_env=False)


def test_a_home_on_a_network_is_made_once_with_a_passphrase_and_for_its_owner(tmp_path: Path) -> None:
    home = tmp_path / "home"
    public = ("--public-url", "https://fleet.example:8443", "--mqtt-public", "mqtts://fleet.example:8883")
    assert "needs a passphrase" in edgekit("init", home, *public).stderr
    assert not home.exists()
    loose = secret(tmp_path / "loose")
    loose.chmod(0o644)
    assert "readable by others" in edgekit("init", home, *public, passphrase=loose).stderr
    made = edgekit("init", home, *public, passphrase=secret(tmp_path / "passphrase"))
    assert made.returncode == 0, made.stderr
    assert "Back up" in made.stdout
    for path in (home, *home.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.is_dir():
            assert mode == 0o700, path
        elif path.name.endswith(".key") or path.name == "fleet.toml":
            assert mode == 0o600, path
    assert b"ENCRYPTED" in (home / "keys" / "ca.key").read_bytes()
    again = edgekit("init", home, *public, passphrase=tmp_path / "passphrase")
    assert (again.returncode, "never made anew" in again.stderr) == (5, True)
    wrong = secret(tmp_path / "wrong", "another")
    for words, says in (((), "is encrypted"), (("--ca-passphrase-file", wrong), "is the passphrase right")):
        refused = edgekit("up", "--state", home, "--http", "127.0.0.1:0", *words)
        assert refused.returncode == 2
        refused = edgekit("up", "--state", home, "--http", "127.0.0.1:38443", *words)
        assert says in refused.stderr
        assert "another" not in refused.stderr


@pytest.mark.proof
def test_a_home_is_not_made_inside_a_repository(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    refused = edgekit("init", tmp_path / "a" / "home")
    assert (refused.returncode, "git work tree" in refused.stderr) == (2, True)
    (tmp_path / "inner" / ".git").mkdir(parents=True)
    (tmp_path / ".git").rmdir()
    assert edgekit("init", tmp_path / "inner" / ".." / "outside").returncode == 0
    (tmp_path / ".git").mkdir()
    assert edgekit("init", tmp_path / "home", "--inside-repository").returncode == 0
    assert (tmp_path / "home" / ".gitignore").read_text() == "*\n"


def test_a_home_beside_a_repository_is_not_inside_it(tmp_path: Path) -> None:
    (tmp_path / "repository" / ".git").mkdir(parents=True)
    beside = tmp_path / "repository" / ".." / "home"
    assert edgekit("init", beside).returncode == 0
    (tmp_path / "link").symlink_to(tmp_path / "repository")
    assert edgekit("init", tmp_path / "link" / "home").returncode == 2


def test_up_makes_no_keys_for_a_fleet_on_a_network(tmp_path: Path) -> None:
    refused = edgekit(
        "up", "--state", tmp_path / "home",
        "--public-url", "https://fleet.example:8443", "--mqtt-public", "mqtts://fleet.example:8883",
    )  # fmt: skip
    assert (refused.returncode, "edgekit fleet init" in refused.stderr) == (2, True)
    assert not (tmp_path / "home").exists()


@pytest.mark.proof
def test_a_home_and_a_database_of_different_fleets_do_not_start(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert edgekit("init", tmp_path / name, "--inside-repository").returncode == 0
    (tmp_path / "two" / "fleet.db").replace(tmp_path / "one" / "fleet.db")
    refused = edgekit("up", "--state", tmp_path / "one", "--http", "127.0.0.1:38444")
    assert (refused.returncode, "do not belong together" in refused.stderr) == (5, True)
    refused = edgekit("up", "--state", tmp_path / "two", "--http", "127.0.0.1:38444")
    assert (refused.returncode, "restore the backup" in refused.stderr) == (5, True)


@pytest.mark.proof
def test_a_fleet_goes_on_after_a_restart(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path)
    try:
        device = fleet.joined("steady")
        fleet.service.stop()
        fleet.service.start()
        assert read(device.ask_to_enrol()) == device.answer
        assert device.renew().status_code == 200
        text = "".join(
            path.read_text(errors="replace") for path in fleet.service.state.glob("*") if path.is_file()
        )
        for hidden in (device.credential, device.file.token, "a long passphrase"):
            assert hidden not in text
    finally:
        fleet.service.stop()
