"""Updates through a real broker, a real artifact server, real processes and real bundles."""

import json
import os
import signal
import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgekit.manifest import Contract
from edgekit.wire.messages import OrderOptions


def test_a_release_is_fetched_tested_switched_to_and_committed(fleet, settled, first, tools):
    assert tools.predict(settled) == "1.0.0"
    assert fleet.enrolled[0].device == fleet.device
    assert fleet.now.order_counter == fleet.counter
    assert "probation" in fleet.states()
    assert fleet.states()[-1] == "idle"
    current = settled.state / "deployments" / "digits" / "current"
    assert json.loads((current / "slot.json").read_text())["sha256"] == first.sha256
    assert "secret" not in settled.log
    assert settled.stop() == 0
    tools.wait_until(lambda: fleet.statuses[-1].online is False, "the agent says goodbye")


def test_what_an_agent_was_given_is_kept_to_itself(settled):
    modes = {
        name: (settled.state / name).stat().st_mode & 0o777
        for name in ("key.json", "key.json.2", "identity.json", "identity.json.2", "order.json")
    }
    assert modes == dict.fromkeys(modes, 0o600)
    assert "a-one-time-token" not in (settled.state / "identity.json").read_text()


@pytest.mark.proof
def test_the_next_release_replaces_it_and_going_back_fetches_nothing(fleet, settled, first, second, tools):
    fleet.order(fleet.publish(second))
    tools.wait_until(lambda: fleet.runs(second), "the second release is committed")
    assert tools.predict(settled) == "2.0.0"
    fetched = len(fleet.requests)
    fleet.order(fleet.publish(first))
    tools.wait_until(lambda: fleet.runs(first), "the first release is back")
    assert len(fleet.requests) == fetched
    assert tools.predict(settled) == "1.0.0"


@pytest.mark.proof
def test_an_order_without_the_deployment_stops_the_model(fleet, settled, first, tools):
    fleet.order(None)
    tools.wait_until(
        lambda: fleet.deployment().digest is None and fleet.deployment().committed is None, "no model"
    )
    client = tools.Client(settled.port)
    assert client.get("/v2/health/live").status == 200
    assert client.get("/v2/health/ready").status == 503
    answer = tools.Client(settled.port).post("/predict", {"input": [1]})
    assert answer.status == 503
    assert "runs no model" in answer.json["error"]
    fleet.order(fleet.publish(first))
    tools.wait_until(lambda: fleet.runs(first), "the model is back")


# Each row: what goes wrong, and the words that the device reports about it.
LIES = {
    "unsigned": "not among what the publisher signed",
    "altered in the store": "altered or damaged",
    "cut short in the store": "are due",
    "order names another length": "the publisher signed",
    "for another name": "not among what the publisher signed",
}


def test_what_the_publisher_did_not_sign_never_runs(fleet, settled, first, make_bundle, tools):
    """One agent is told all the lies in turn, each with a bundle of its own, and serves the first release throughout."""
    for number, (lie, words) in enumerate(LIES.items(), 10):
        built = make_bundle(version=f"{number}.0.0", seed=number)
        fleet.order(tell(lie, fleet, built))
        tools.wait_until(lambda built=built: fleet.deployment().ordered == built.sha256, f"{lie}: heard")
        said = tools.wait_until(
            lambda words=words: words in fleet.deployment().reason and fleet.deployment(), lie
        )
        assert said.digest == said.committed == first.sha256
        assert said.state.value in ("failed", "fetch")
        assert tools.predict(settled) == "1.0.0"
        assert not (settled.state / "deployments" / "digits" / "B").exists()


def tell(lie, fleet, built):
    """Publish a bundle dishonestly; what is ordered."""
    ordered = fleet.publish(built, signed=lie != "unsigned")
    data = fleet.artifacts[built.sha256]
    if lie == "altered in the store":
        fleet.artifacts[built.sha256] = data[:500] + b"\0" + data[501:]
    elif lie == "cut short in the store":
        fleet.artifacts[built.sha256] = data[:-10]
    elif lie == "order names another length":
        return type(ordered)(ordered.target, ordered.sha256, ordered.length + 1)
    elif lie == "for another name":
        return type(ordered)(ordered.target.replace("digits/", "other/"), ordered.sha256, ordered.length)
    return ordered


REFUSALS = {
    "another device": ({"device": "board-999999"}, "is for device"),
    "another fleet": ({"fleet": "other"}, "is for fleet"),
    "another enrolment": ({"enrolment": 8}, "is for enrolment"),
    "an old counter": ({"counter": 1}, "not above"),
    "a strange deployment": ({}, "not enrolled for what it names"),
    "another profile": ({}, "this device is"),
    "a wrong key": ({}, "no valid signature"),
}


def test_an_order_that_is_not_for_this_device_is_refused_with_a_reason(fleet, settled, first, second, tools):
    before = fleet.now.order_counter
    for case, (changed, words) in REFUSALS.items():
        bundle = fleet.publish(second)
        if case == "another profile":
            target = bundle.target.replace("x86-64-v3", "raspberry-pi-5")
            bundle = type(bundle)(target, bundle.sha256, bundle.length)
        fleet.order(
            bundle,
            deployments={"other": bundle} if case == "a strange deployment" else None,
            key=Ed25519PrivateKey.generate() if case == "a wrong key" else None,
            **changed,
        )
        tools.wait_until(lambda words=words: words in fleet.now.refused, f"{case}: refused with {words!r}")
        assert fleet.now.order_counter == before
        assert fleet.runs(first)
    good = fleet.order(fleet.publish(second))
    tools.wait_until(lambda: fleet.runs(second), "a good order is still followed")
    assert (fleet.now.order_counter, fleet.now.refused) == (good, "")


def test_a_bundle_whose_self_test_fails_is_refused_and_remembered(fleet, settled, first, make_bundle, tools):
    wrong = fleet.publish(make_bundle(version="4.0.0", seed=1, scale=0.5))
    fleet.order(wrong)
    said = tools.wait_until(
        lambda: fleet.deployment().state.value == "failed" and fleet.deployment(), "refused"
    )
    assert said.reason.startswith("self-test: ")
    assert said.digest == first.sha256
    fetched = len(fleet.requests)
    again = fleet.order(wrong)
    tools.wait_until(lambda: fleet.now.order_counter == again, "the second order is heard")
    tools.wait_until(lambda: fleet.deployment().reason == said.reason, "refused with the first reason")
    assert fleet.deployment().state.value == "failed"
    assert len(fleet.requests) == fetched
    settled.stop()
    settled.start()
    third = fleet.order(wrong)
    tools.wait_until(lambda: fleet.now.order_counter == third, "heard after a restart")
    tools.wait_until(lambda: fleet.deployment().reason == said.reason, "still refused")
    assert len(fleet.requests) == fetched


@pytest.mark.proof
def test_a_bundle_above_its_latency_contract_fails_the_self_test(fleet, settled, first, make_bundle, tools):
    slow = make_bundle(version="3.0.0", seed=3, contract=Contract(latency_p95_ms=0.0001))
    fleet.order(fleet.publish(slow))
    said = tools.wait_until(
        lambda: fleet.deployment().state.value == "failed" and fleet.deployment(), "refused"
    )
    assert "latency p95" in said.reason
    assert tools.predict(settled) == "1.0.0"


def test_errors_in_probation_roll_back(fleet, settled, first, second, tools):
    fleet.order(fleet.publish(second), options=OrderOptions(probation_s=60))
    tools.wait_until(lambda: fleet.deployment().state.value == "probation", "on probation")
    client = tools.Client(settled.port)
    for _ in range(4):
        assert client.post("/predict", {"input": [[1000.0] * 8] * 8}).status == 500
    time.sleep(1.5)
    assert fleet.deployment().state.value == "probation", "a few errors are no evidence"
    assert client.post("/predict", {"input": [[1000.0] * 8] * 8}).status == 500
    said = tools.wait_until(
        lambda: (
            fleet.deployment().state.value == "rollback"
            and fleet.deployment().digest == first.sha256
            and fleet.deployment()
        ),
        "rolled back",
    )
    assert "5 of 5 requests failed" in said.reason
    assert said.committed == first.sha256
    assert tools.predict(settled) == "1.0.0"


@pytest.mark.proof
def test_a_worker_that_keeps_dying_in_probation_rolls_back(fleet, settled, first, second, tools):
    fleet.order(fleet.publish(second), options=OrderOptions(probation_s=60))
    tools.wait_until(lambda: fleet.deployment().state.value == "probation", "on probation")
    tools.wait_until(lambda: len(settled.children()) == 1, "the old worker has ended")
    for death in range(3):
        (worker,) = tools.wait_until(settled.children, "a worker")
        tools.wait_until(lambda: tools.predict(settled) == "2.0.0", f"it serves before death {death + 1}")
        assert fleet.deployment().state.value == "probation"
        os.kill(worker, signal.SIGKILL)
        tools.wait_until(lambda worker=worker: worker not in settled.children(), "it is gone")
    said = tools.wait_until(
        lambda: fleet.deployment().digest == first.sha256 and fleet.deployment(), "rolled back"
    )
    assert "the worker died 3 times" in said.reason


@pytest.mark.proof
def test_a_set_number_of_requests_ends_probation_early(fleet, settled, second, tools):
    fleet.order(fleet.publish(second), options=OrderOptions(probation_s=600, probation_requests=5))
    tools.wait_until(lambda: fleet.deployment().state.value == "probation", "on probation")
    client = tools.Client(settled.port)
    for image in tools.digit_images(6):
        assert client.post("/predict", {"input": image.tolist()}).status == 200
    tools.wait_until(lambda: fleet.runs(second), "committed")


@pytest.mark.proof
def test_without_an_acknowledgement_it_neither_commits_nor_rolls_back(fleet, settled, first, second, tools):
    fleet.acknowledges = False
    fleet.order(fleet.publish(second))
    tools.wait_until(lambda: fleet.deployment().state.value == "commit", "waiting to commit")
    time.sleep(2.5)
    said = fleet.deployment()
    assert (said.state.value, said.digest, said.committed) == ("commit", second.sha256, first.sha256)
    fleet.acknowledges = True
    tools.wait_until(lambda: fleet.runs(second), "committed once acknowledged", 30)


@pytest.mark.proof
def test_another_order_in_the_middle_of_probation_goes_back_first(
    fleet, settled, first, second, make_bundle, tools
):
    third = make_bundle(version="3.0.0", seed=3)
    fleet.order(fleet.publish(second), options=OrderOptions(probation_s=60))
    tools.wait_until(lambda: fleet.deployment().state.value == "probation", "on probation")
    fleet.order(fleet.publish(third))
    tools.wait_until(lambda: fleet.runs(third), "the third is committed")
    current = settled.state / "deployments" / "digits" / "current"
    assert json.loads((current / "slot.json").read_text())["sha256"] == third.sha256


def test_a_signal_during_a_download_that_hangs_ends_the_agent_quickly(fleet, settled, second, tools):
    fleet.chunk_delay_s = 20
    fleet.order(fleet.publish(second))
    tools.wait_until(lambda: any(name == second.sha256 for name, _ in fleet.requests), "the download began")
    began = time.monotonic()
    assert settled.stop() == 0
    assert time.monotonic() - began < 4


@pytest.mark.proof
def test_an_interrupted_download_goes_on_where_it_ended(fleet, settled, second, tools):
    fleet.cut_after = 2048
    fleet.order(fleet.publish(second))
    tools.wait_until(lambda: fleet.runs(second), "committed")
    ranges = [wanted for name, wanted in fleet.requests if name == second.sha256]
    assert ranges == [None, "bytes=2048-"] or ranges[-1] is not None


def test_a_host_that_the_enrolment_does_not_allow_is_never_asked(
    make_fleet, make_agent, first, tools, tmp_path
):
    fleet = make_fleet()
    original = fleet.enrolment
    fleet.enrolment = lambda folder: original(
        folder, artifact_url=f"http://localhost:{fleet.http.server_port}/artifacts"
    )
    make_agent(fleet)
    fleet.order(fleet.publish(first))
    said = tools.wait_until(
        lambda: fleet.deployment() and fleet.deployment().reason and fleet.deployment(), "refused"
    )
    assert "not among the hosts" in said.reason
    assert fleet.requests == []


def test_a_killed_worker_is_replaced_and_counted(fleet, settled, first, tools):
    (old,) = settled.children()
    os.kill(old, signal.SIGKILL)
    tools.wait_until(
        lambda: settled.children() not in ([], [old]) and tools.predict(settled) == "1.0.0", "replaced"
    )
    tools.wait_until(
        lambda: sum(window.worker_deaths for report in fleet.reports for window in report.deployments) == 1,
        "the death is reported",
    )
    tools.wait_until(lambda: fleet.runs(first), "it runs what it ran")


@pytest.mark.proof
def test_a_committed_bundle_that_was_damaged_on_disk_is_fetched_again(fleet, settled, first, second, tools):
    fleet.order(fleet.publish(second))
    tools.wait_until(lambda: fleet.runs(second), "the second release is committed")
    settled.stop()
    model = settled.state / "deployments" / "digits" / "current" / "model" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    withheld = fleet.artifacts.pop(second.sha256)
    settled.start()
    said = tools.wait_until(
        lambda: fleet.deployment().digest == first.sha256 and fleet.deployment(), "the first serves meanwhile"
    )
    assert said.state.value == "fetch"
    assert tools.predict(settled) == "1.0.0"
    fleet.artifacts[second.sha256] = withheld
    tools.wait_until(lambda: fleet.runs(second), "the second is back, without an order", 30)
    assert tools.predict(settled) == "2.0.0"


@pytest.mark.proof
def test_order_keys_rotate_without_enrolling_again(fleet, settled, first, second, tools):
    """The publisher lists the new key; an order by it makes the agent look, and from then on the old key is nothing."""
    new = Ed25519PrivateKey.generate()
    fleet.publisher.set_order_keys({"new": new.public_key().public_bytes_raw().hex()})
    fleet.order(fleet.publish(second), key=new, keyid="new")
    tools.wait_until(lambda: fleet.runs(second), "an order by the new key is followed", 60)
    accepted = fleet.now.order_counter
    fleet.order(fleet.publish(first))
    tools.wait_until(lambda: "no valid signature" in fleet.now.refused, "the old key is refused")
    settled.stop()
    before = fleet.now.boot
    settled.start()
    tools.wait_until(lambda: fleet.now.boot != before and fleet.runs(second), "it serves after a restart", 60)
    fleet.order(fleet.publish(first))
    tools.wait_until(lambda: "no valid signature" in fleet.now.refused, "the old key is refused then too")
    assert (fleet.now.order_counter, fleet.runs(second)) == (accepted, True)
    assert len(fleet.enrolled) == 1
