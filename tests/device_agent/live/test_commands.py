"""Commands to a real agent: signed, done once, answered for until the fleet has heard."""

import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgekit.wire.commands import ClearRefused, LogLevel, Restart, SelfTest


def over(fleet, tools, number, what="the command is over"):
    return tools.wait_until(lambda: fleet.result(number), what)


def condition(fleet, code):
    return next((one.detail for one in fleet.now.conditions if one.code == code), "")


def test_what_serves_is_tested_and_figures_come_back(fleet, settled, first, tools):
    result = over(fleet, tools, fleet.command(SelfTest()))
    assert result.state == "done"
    [test] = result.payload.tests
    assert (test.deployment, test.sha256, test.passed) == ("digits", first.sha256, True)
    assert test.agreement == 1.0
    assert 0 < test.latency_p50_ms <= test.latency_p95_ms
    said = [one.state.value for one in fleet.results]
    assert said[:2] == ["accepted", "running"]
    refused = over(fleet, tools, fleet.command(SelfTest("faces")))
    assert (refused.state, refused.reason) == ("refused", "this device has no deployment 'faces'")
    model = settled.state / "deployments" / "digits" / "current" / "model" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-4] + b"\x00\x00\x80\x7f")
    damaged = over(fleet, tools, fleet.command(SelfTest()))
    assert damaged.state == "failed"
    assert not damaged.payload.tests[0].passed


def test_forged_misdirected_expired_and_repeated_commands_do_nothing(fleet, settled, tools):
    now = datetime.now(UTC)
    forged = fleet.command(Restart(), key=Ed25519PrivateKey.generate())
    tools.wait_until(
        lambda: "no valid signature" in condition(fleet, "command-refused"), "the forgery is told"
    )
    other = fleet.command(Restart(), device="board-999")
    tools.wait_until(lambda: "for device" in condition(fleet, "command-refused"), "the wrong device is told")
    expired = over(
        fleet,
        tools,
        fleet.command(Restart(), issued=now - timedelta(hours=2), expires=now - timedelta(hours=1)),
    )
    assert (expired.state.value, "expired" in expired.reason) == ("refused", True)
    fleet.send_order()  # an order's envelope is no command, and the other way round
    done = fleet.command(Restart("digits"))
    assert over(fleet, tools, done).state == "done"
    assert condition(fleet, "command-refused") == ""
    worker = settled.children()
    fleet.results.clear()
    fleet.send_command()
    tools.wait_until(lambda: fleet.result(done), "the repeat is answered from the ledger")
    assert settled.children() == worker
    boot = fleet.now.boot
    settled.kill_tree()
    settled.start()
    tools.wait_until(lambda: fleet.now.boot > boot and settled.children(), "the agent serves again")
    worker = settled.children()
    fleet.results.clear()
    fleet.send_command()
    tools.wait_until(lambda: fleet.result(done), "so it is after a power cut")
    assert settled.children() == worker
    assert not any(one.id in (forged, other) for one in fleet.results)


@pytest.mark.proof
def test_a_result_is_kept_until_the_fleet_acknowledges_it(fleet, settled, tools):
    fleet.acknowledges = False
    number = fleet.command(LogLevel("debug", 600))
    over(fleet, tools, number)
    assert "debug" in settled.log
    settled.kill_tree()
    fleet.results.clear()
    settled.start()
    over(fleet, tools, number, "the result comes from the disk")
    fleet.acknowledges = True
    tools.wait_until(lambda: len([one for one in fleet.results if one.id == number]) > 1, "and again")


@pytest.mark.proof
def test_what_was_refused_is_tried_again_when_an_operator_says_so(fleet, settled, make_bundle, tools):
    bad = make_bundle(version="3.0.0", seed=3, scale=1.0)
    fleet.order(fleet.publish(bad))
    tools.wait_until(lambda: fleet.deployment().state == "failed", "it is refused")
    result = over(fleet, tools, fleet.command(ClearRefused()))
    assert list(result.payload.digests) == [bad.sha256]
    assert "self-test" in result.payload.digests[bad.sha256]
    states = len(fleet.reported)
    tools.wait_until(
        lambda: any(one.deployments["digits"].state == "selftest" for one in fleet.reported[states:]),
        "it is tested once more",
    )


def test_the_agent_starts_anew_in_its_process_with_its_words(fleet, settled, first, tools):
    words = Path(f"/proc/{settled.process.pid}/cmdline")
    before = words.read_bytes()
    boot = fleet.now.boot
    number = fleet.command(Restart())
    assert over(fleet, tools, number).state == "done"
    assert settled.process.poll() is None
    assert words.read_bytes() == before
    tools.wait_until(
        lambda: fleet.now.boot.incarnation > boot.incarnation and fleet.runs(first), "it runs again"
    )
    assert tools.predict(settled) == "1.0.0"
    settled.process.send_signal(signal.SIGTERM)
    assert settled.process.wait(30) == 0
