"""Everything over pinned TLS: a real mosquitto that asks for certificates, an HTTPS fleet, and devices that are who they say."""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from edgekit.wire.enrolment import BrokerAddress

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(
        not (shutil.which("mosquitto") or Path("/usr/sbin/mosquitto").exists()),
        reason="mosquitto is not installed",
    ),
]


def command(*words, **more):
    return subprocess.run(
        [sys.executable, "-m", "edgekit", "agent", *map(str, words)],
        capture_output=True, text=True, check=False, **more,
    )  # fmt: skip


@pytest.fixture
def release(make_bundle):
    return make_bundle()


@pytest.fixture
def secure(make_fleet, tls_broker):
    return make_fleet(broker=tls_broker)


@pytest.fixture
def joined(secure, make_agent, tools):
    agent = make_agent(secure)
    tools.wait_until(lambda: secure.statuses and secure.statuses[-1].online, "it is online")
    return agent


def with_token(fleet, agent, folder, token, /, **changed):
    """From the next start on the agent gets an enrolment file with another token."""
    fleet.tokens.setdefault(token, None)
    folder = folder / token
    folder.mkdir()
    path = fleet.enrolment(folder, token=token, **changed)
    agent._words[agent._words.index("--enrolment") + 1] = str(path)


def kept(agent, name):
    return json.loads((agent.state / name).read_bytes().split(b"\n")[0])


def test_a_device_joins_gets_its_model_and_reports_all_by_its_certificate(secure, joined, release, tools):
    secure.order(secure.publish(release))
    tools.wait_until(lambda: secure.runs(release), "the release is committed")
    assert set(secure.named) == {secure.device}
    [asked] = secure.enrolled
    assert "BEGIN CERTIFICATE REQUEST" in asked.csr
    doctor = command("doctor", "--state", joined.state)
    assert doctor.returncode == 0, doctor.stdout
    assert "certificate valid until" in doctor.stdout
    assert "TLSv1.3" in doctor.stdout
    view = json.loads(command("status", "--state", joined.state, "--json").stdout)
    assert view["identity"]["device"] == secure.device
    assert "certificate until" in command("status", "--state", joined.state).stdout
    told = joined.log
    assert "PRIVATE" not in told
    assert "a-secret-credential" not in told
    for path in joined.state.rglob("*"):
        if path.is_file() and b"PRIVATE KEY" in path.read_bytes():
            assert path.name in ("key.json", "key.json.2")
            assert path.stat().st_mode & 0o777 == 0o600


def test_an_answer_that_was_lost_is_asked_for_again_with_the_same_key(secure, make_agent, tools):
    secure.answers_lost = 1
    agent = make_agent(secure)
    tools.wait_until(lambda: secure.enrolled, "it asked")
    agent.kill_tree()
    agent.start()
    tools.wait_until(lambda: secure.statuses and secure.statuses[-1].online, "it is online")
    assert len(secure.enrolled) >= 2
    assert "refused" not in agent.log


def test_a_device_waits_for_approval(secure, make_agent, tools):
    secure.approves = False
    agent = make_agent(secure)
    tools.wait_until(lambda: "to approve this device" in agent.log, "it waits")
    assert agent.process.poll() is None
    secure.approves = True
    agent.kill_tree()
    agent.start()
    tools.wait_until(lambda: secure.statuses and secure.statuses[-1].online, "it is online")


def test_a_fleet_of_another_authority_is_never_told_the_token(secure, make_agent, tools, authority):
    other = type(authority)("an impostor")
    path = secure.enrolment
    secure.enrolment = lambda folder: path(folder, ca=other.pem)
    agent = make_agent(secure)
    tools.wait_until(lambda: "certificate verify failed" in agent.log, "it notices")
    assert secure.enrolled == []


@pytest.mark.proof
def test_a_certificate_is_renewed_before_it_ends_and_used_by_the_next_connection(
    secure, make_agent, tls_broker, tools
):
    secure.certificate_life = timedelta(seconds=40)
    agent = make_agent(secure)
    tools.wait_until(lambda: secure.statuses and secure.statuses[-1].online, "it is online")
    before = kept(agent, "identity.json")["answer"]["not_after"]
    secure.certificate_life = timedelta(days=90)
    tools.wait_until(lambda: "certificate renewed" in agent.log, "it renews", 60)
    assert secure.renewals[-1] == secure.device
    assert kept(agent, "identity.json")["answer"]["not_after"] > before
    secure.statuses.clear()
    tls_broker.stop()
    tls_broker.start()
    tools.wait_until(
        lambda: secure.statuses and secure.statuses[-1].online, "it is online with the new one", 60
    )


@pytest.mark.proof
def test_a_certificate_that_ended_while_the_device_was_off_is_renewed(secure, make_agent, tools):
    secure.certificate_life = timedelta(seconds=15)
    agent = make_agent(secure)
    tools.wait_until(lambda: secure.statuses and secure.statuses[-1].online, "it is online")
    agent.stop()
    secure.certificate_life = timedelta(days=90)
    time.sleep(16)
    assert command("doctor", "--state", agent.state).returncode == 1
    secure.statuses.clear()
    agent.start()
    tools.wait_until(lambda: "certificate renewed" in agent.log, "it renews")
    tools.wait_until(lambda: secure.statuses and secure.statuses[-1].online, "it is online", 60)


@pytest.mark.proof
def test_a_renewal_that_is_refused_is_reported_and_stops_nothing(secure, make_agent, release, tools):
    secure.certificate_life = timedelta(seconds=60)
    secure.refuses_renewals = True
    agent = make_agent(secure)
    secure.order(secure.publish(release))
    tools.wait_until(lambda: secure.runs(release), "the release is committed")
    told = tools.wait_until(
        lambda: [each for each in secure.now.conditions if each.code == "certificate-not-renewed"],
        "it is told",
        90,
    )
    assert "is revoked" in told[0].detail
    assert tools.Client(agent.port).get("/v2/health/ready").status == 200


@pytest.mark.proof
def test_a_new_enrolment_file_is_used_and_its_orders_are_followed(secure, joined, release, tmp_path, tools):
    secure.order(secure.publish(release))
    tools.wait_until(lambda: secure.runs(release), "the release is committed")
    joined.stop()
    secure.enrolment_number = 8
    with_token(secure, joined, tmp_path, "a-second-token")
    joined.start()
    tools.wait_until(lambda: secure.now.boot.enrolment == 8, "it is of the new enrolment", 40)
    assert secure.enrolled[0].csr != secure.enrolled[-1].csr
    tools.wait_until(lambda: tools.Client(joined.port).get("/v2/health/ready").status == 200, "it serves on")
    secure.order(secure.publish(release))
    tools.wait_until(lambda: secure.now.order_counter == secure.counter, "it follows")
    heard = len(secure.reports)
    tools.wait_until(lambda: len(secure.reports) > heard + 2, "reports arrive")


@pytest.mark.proof
def test_a_new_enrolment_file_that_the_fleet_refuses_is_told_and_the_old_identity_goes_on(
    secure, joined, release, tmp_path, tools
):
    secure.order(secure.publish(release))
    tools.wait_until(lambda: secure.runs(release), "the release is committed")
    joined.stop()
    with_token(secure, joined, tmp_path, "a-burnt-token")
    del secure.tokens["a-burnt-token"]
    joined.start()
    [told] = tools.wait_until(
        lambda: [each for each in secure.now.conditions if each.code == "enrolment-refused"], "it is told", 40
    )
    assert "the token is not valid" in told.detail
    assert secure.now.boot.enrolment == 7
    tools.wait_until(lambda: tools.Client(joined.port).get("/v2/health/ready").status == 200, "it serves on")


@pytest.mark.proof
def test_what_serves_goes_on_while_the_fleet_of_a_new_enrolment_file_is_away(
    secure, joined, release, tmp_path, tools
):
    secure.order(secure.publish(release))
    tools.wait_until(lambda: secure.runs(release), "the release is committed")
    joined.stop()
    url = f"https://127.0.0.1:{tools.free_port()}/v1/enrol"
    with_token(secure, joined, tmp_path, "a-second-token", enrol_url=url)
    joined.start()
    tools.wait_until(lambda: "the fleet cannot be reached" in joined.log, "it tries")
    tools.wait_until(lambda: tools.Client(joined.port).get("/v2/health/ready").status == 200, "it serves")
    assert kept(joined, "identity.json")["answer"]["enrolment"] == 7
    assert joined.stop() == 0


def test_a_file_of_another_fleet_is_refused_loudly(secure, joined, tmp_path):
    joined.stop()
    with_token(secure, joined, tmp_path, "another", fleet="elsewhere")
    joined.start()
    assert joined.process.wait(30) == 2
    assert "belongs to" in joined.log
    assert "is of fleet elsewhere" in joined.log


@pytest.mark.proof
def test_a_copied_card_must_enrol_again_and_gets_a_key_of_its_own(
    secure, make_agent, tmp_path, tools, monkeypatch
):
    def board(name):
        place = tmp_path / name
        (place / "sys/firmware/devicetree/base").mkdir(parents=True)
        (place / "sys/firmware/devicetree/base/serial-number").write_text(f"10000000{name}\0")
        return str(place)

    agent = make_agent(secure, start=False)
    agent.environment["EDGEKIT_HARDWARE_ROOT"] = board("cafe01")
    agent.start()
    tools.wait_until(lambda: secure.statuses and secure.statuses[-1].online, "it is online")
    assert len(secure.enrolled[0].fingerprint) == 64
    agent.stop()
    words = list(agent._words)
    where = agent._words.index("--enrolment")
    del agent._words[where : where + 2]
    agent.start()
    tools.wait_until(lambda: "link up" in agent.log, "the same board starts")
    agent.stop()
    agent.environment["EDGEKIT_HARDWARE_ROOT"] = copy = board("cafe02")
    agent.start()
    assert agent.process.wait(30) == 2
    assert "on other hardware" in agent.log
    monkeypatch.setenv("EDGEKIT_HARDWARE_ROOT", copy)
    doctor = command("doctor", "--state", agent.state)
    assert doctor.returncode == 1
    assert "made on other hardware" in doctor.stdout
    assert "other hardware" in command("status", "--state", agent.state).stdout
    agent._words = words
    secure.enrolment_number = 9
    with_token(secure, agent, tmp_path, "a-token-for-the-copy")
    agent.start()
    tools.wait_until(lambda: secure.now.boot.enrolment == 9, "it enrolled again", 40)
    first, second = secure.enrolled[0], secure.enrolled[-1]
    assert first.fingerprint != second.fingerprint
    assert secure.tokens["a-one-time-token"] != secure.tokens["a-token-for-the-copy"]


def test_a_batch_file_is_for_every_board_that_has_a_serial_number(secure, make_agent, tmp_path, tools):
    place = tmp_path / "board"
    (place / "proc").mkdir(parents=True)
    (place / "proc/cpuinfo").write_text(f"Serial\t\t: {secure.device}\n")
    original = secure.enrolment
    secure.enrolment = lambda folder: original(folder, device="")
    nameless = make_agent(secure)
    assert nameless.process.wait(30) == 2
    assert "give --name" in nameless.log
    agent = make_agent(secure, start=False)
    agent.environment["EDGEKIT_HARDWARE_ROOT"] = str(place)
    agent.start()
    tools.wait_until(lambda: secure.statuses and secure.statuses[-1].online, "it is online")
    assert secure.enrolled[0].device == secure.device


@pytest.mark.proof
def test_a_deployment_that_is_added_to_an_enrolled_board_takes_effect_and_stays(
    secure, joined, make_bundle, release, tools
):
    secure.order(secure.publish(release))
    tools.wait_until(lambda: secure.runs(release), "the release is committed")
    second = make_bundle(name="counter", stateful=True)
    wanted = {"digits": secure.publish(release), "counter": secure.publish(second)}
    secure.order(None, deployments=wanted)
    [told] = tools.wait_until(
        lambda: [each for each in secure.now.conditions if each.code == "unknown-deployment"], "it is told"
    )
    assert "counter" in told.detail
    assert secure.runs(release)
    secure.order(None, deployments=wanted, added=("counter",))
    tools.wait_until(lambda: secure.runs(second, "counter"), "the second is committed")
    client = tools.Client(joined.port)
    assert client.get("/v2").json["deployments"] == ["digits", "counter"]
    assert client.post("/predict/counter", {"input": [[1]], "sequence_id": "s"}).status == 200
    image = tools.digit_images(1)[0].tolist()
    assert client.post("/predict", {"input": image}).json["deployment"] == "digits", (
        "clients of the first go on"
    )
    joined.stop()
    joined.start()
    tools.wait_until(
        lambda: (
            tools.Client(joined.port).post("/predict/counter", {"input": [[1]], "sequence_id": "s"}).status
            == 200
        ),
        "it is there after a restart",
    )


def over_the_web(fleet, tls_broker, tools, host="127.0.0.1"):
    """Enrolment files name a port for plain MQTT that nothing listens at."""
    original = fleet.enrolment
    there = BrokerAddress(
        host, tools.free_port(), tls=True, websocket_path="/mqtt", websocket_port=tls_broker.websocket_port
    )
    fleet.enrolment = lambda folder: original(folder, broker=there)


@pytest.mark.proof
def test_where_only_web_ports_are_open_the_link_comes_up_over_websockets(
    secure, make_agent, release, tls_broker, tools
):
    over_the_web(secure, tls_broker, tools)
    agent = make_agent(secure)
    secure.order(secure.publish(release))
    tools.wait_until(lambda: secure.runs(release), "the release is committed", 40)
    assert "over=MQTT over WebSockets" in agent.log.replace('"', "").replace("'", "")
    doctor = command("doctor", "--state", agent.state)
    assert doctor.returncode == 0, doctor.stdout
    assert "the other way to it works" in doctor.stdout


@pytest.mark.proof
def test_behind_a_proxy_the_link_goes_through_it_over_websockets(
    secure, make_agent, release, tls_broker, tools, proxy
):
    """The name of the broker is known to the proxy alone."""
    tls_broker.stop()
    tls_broker.start(hosts=("broker.example", "127.0.0.1"))
    over_the_web(secure, tls_broker, tools, "broker.example")
    agent = make_agent(secure, start=False)
    agent.environment |= {"HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}", "NO_PROXY": "localhost"}
    agent.start()
    secure.order(secure.publish(release))
    tools.wait_until(lambda: secure.runs(release), "the release is committed", 60)
    # Nobody but the link: not the engines that the probe, the self-test and the worker load, who do not know the way.
    assert set(proxy.asked) == {f"broker.example:{tls_broker.websocket_port}"}
    [worker] = agent.children()
    assert b"_PROXY=" not in Path(f"/proc/{worker}/environ").read_bytes()


class Proxy:
    """Takes CONNECT, and finds every host here."""

    def __init__(self):
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.asked = []
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.server.accept()
                threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        with client, contextlib.suppress(OSError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += client.recv(1)
            target = head.split()[1].decode()
            self.asked.append(target)
            beyond = socket.create_connection(("127.0.0.1", int(target.rpartition(":")[2])))
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            threading.Thread(target=pump, args=(beyond, client), daemon=True).start()
            pump(client, beyond)


def pump(source, sink):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy():
    made = Proxy()
    yield made
    made.server.close()


@pytest.mark.proof
def test_a_revoked_device_is_kept_out_and_serves_on(secure, joined, release, tls_broker, authority, tools):
    secure.order(secure.publish(release))
    tools.wait_until(lambda: secure.runs(release), "the release is committed")
    chain = kept(joined, "identity.json")["answer"]["certificate"]
    authority.revoked.append(x509.load_pem_x509_certificate(chain.encode()).serial_number)
    tls_broker.stop()
    tls_broker.start()
    secure.refuses_renewals = True
    tools.wait_until(lambda: "revoked" in joined.log or "without a word" in joined.log, "it is told", 40)
    assert tools.Client(joined.port).get("/v2/health/ready").status == 200


PLAIN = {
    "enrolment": {"enrol_url": "http://fleet.example/v1/enrol"},
    "artifacts": {"artifact_url": "http://10.1.2.3/artifacts"},
}


@pytest.mark.parametrize("case", PLAIN)
def test_a_file_that_would_be_unprotected_beyond_loopback_is_refused(case, make_fleet, tmp_path, tools):
    path = make_fleet().enrolment(tmp_path, **PLAIN[case])
    words = (
        "--state",
        tmp_path / "state",
        "--http",
        f"127.0.0.1:{tools.free_port()}",
        "--profile",
        "x86-64-v3",
    )
    done = command("run", "--enrolment", path, *words)
    assert done.returncode == 2
    assert "without TLS" in done.stderr
    assert "--public-url" in done.stderr
