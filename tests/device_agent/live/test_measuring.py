"""Bundles measured on a board that serves: brought, timed in turn, gone again, and nothing else changed."""

import threading
import time

import pytest

from edgekit.wire.commands import ClearRefused, Measure


def over(fleet, tools, number):
    return tools.wait_until(lambda: fleet.result(number), "the command is over", patience_s=400)


def test_bundles_are_timed_beside_what_serves_and_no_request_is_lost(
    fleet, settled, first, second, make_bundle, tools
):
    third = make_bundle(version="3.0.0", seed=3)
    bad = make_bundle(version="4.0.0", seed=4, scale=1.0)
    before = sorted(str(path) for path in (settled.state / "deployments").rglob("*"))
    measured = Measure(tuple(fleet.publish(one) for one in (second, third, bad)), "digits", budget_s=0.5)
    answers, ending = [], threading.Event()

    def ask() -> None:
        while not ending.is_set():
            answers.append(tools.predict(settled))
            time.sleep(0.02)

    client = threading.Thread(target=ask)
    client.start()
    try:
        result = over(fleet, tools, fleet.command(measured))
    finally:
        ending.set()
        client.join()
    assert result.reason == ""
    found = result.payload
    assert [one.test.sha256 for one in found.bundles] == [one.sha256 for one in (second, third, bad, first)]
    assert [one.test.passed for one in found.bundles] == [True, True, False, True]
    assert [one.serves for one in found.bundles] == [False, False, False, True]
    timed = [one for one in found.bundles if one.test.passed]
    assert len({len(one.rounds_ms) for one in timed}) == 1
    assert len(timed[0].rounds_ms) >= 12
    for one in timed:
        assert 0 < one.p50_low_ms <= one.p50_ms <= one.p50_high_ms
        assert (one.engine, one.threads) == ("onnxruntime", 1)
        assert one.memory_mb > 10
    assert found.bundles[2].rounds_ms == ()
    assert found.cpu
    assert len(answers) > 20
    assert set(answers) == {"1.0.0"}
    assert fleet.runs(first)
    assert not (settled.state / "measuring").exists()
    after = sorted(str(path) for path in (settled.state / "deployments").rglob("*"))
    assert [path for path in after if "/cache" not in path] == [
        path for path in before if "/cache" not in path
    ]


@pytest.mark.proof
def test_what_the_publisher_did_not_sign_is_not_measured(fleet, settled, second, tools):
    unsigned = fleet.publish(second, signed=False)
    result = over(fleet, tools, fleet.command(Measure((unsigned,), budget_s=0.5)))
    assert result.state == "failed"
    assert "is not among what the publisher signed" in result.reason
    assert not fleet.requests or fleet.requests[-1][0] != second.sha256


@pytest.mark.proof
def test_a_power_cut_in_the_middle_is_told_and_leaves_nothing(fleet, settled, first, second, tools):
    number = fleet.command(Measure((fleet.publish(second),), "digits", budget_s=60))
    tools.wait_until(lambda: settled.children("device_agent.commands.timing"), "it is being timed")
    boot = fleet.now.boot
    settled.kill_tree()
    settled.start()
    result = over(fleet, tools, number)
    assert (result.state.value, result.reason) == ("failed", "the agent ended while it was under way")
    tools.wait_until(lambda: fleet.now.boot > boot and fleet.runs(first), "it serves again")
    assert not (settled.state / "measuring").exists()
    assert over(fleet, tools, fleet.command(ClearRefused())).state == "done"
