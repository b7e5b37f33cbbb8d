"""Another version of agent or engine is a release too: what was committed is tested again before it serves."""

import hashlib
import json

import pytest
from msgspec.structs import replace

from device_agent.folder import StateFolder
from device_agent.record import Record
from device_agent.update.machine import Machine


def commit(fleet, tools, *wanted):
    for built in wanted:
        fleet.order(fleet.publish(built))
        tools.wait_until(lambda built=built: fleet.runs(built), "it is committed")


def upgrade(agent):
    """As if everything here had been committed under an older engine."""
    record = Record(StateFolder(agent.state).deployment("digits").machine, Machine, copies=1)
    machine = record.load()
    now = machine.stamp["onnxruntime"]
    old = {**machine.stamp, "onnxruntime": "1.0"}
    record.save(replace(machine, stamp=old, proved=dict.fromkeys(machine.proved, old)))
    return now


def make_fail(agent, slot):
    """The bundle asks for more than any engine gives, and its mark vouches for that."""
    folder = agent.state / "deployments" / "digits" / slot
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["selftest"]["tolerance"] = dict.fromkeys(manifest["selftest"]["tolerance"], -1.0)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    mark = json.loads((folder / "slot.json").read_text())
    mark["manifest_sha256"] = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    (folder / "slot.json").write_text(json.dumps(mark))


def engine_changed(fleet):
    """What the device says of it, if it does."""
    found = [each.detail for each in fleet.now.conditions if each.code == "engine-changed"]
    return found[0] if found else ""


@pytest.mark.proof
def test_what_passes_under_another_engine_serves_on_and_is_not_tested_twice(fleet, make_agent, first, tools):
    agent = make_agent(fleet)
    commit(fleet, tools, first)
    agent.stop()
    now = upgrade(agent)
    agent.start()
    tools.wait_until(lambda: tools.predict(agent) == "1.0.0", "it serves")
    agent.stop()
    record = Record(StateFolder(agent.state).deployment("digits").machine, Machine, copies=1)
    assert record.load().proved[first.sha256]["onnxruntime"] == now


def test_what_fails_under_another_engine_is_left_for_the_one_before_and_the_fleet_sees_why(
    fleet, make_agent, first, second, tools
):
    agent = make_agent(fleet)
    commit(fleet, tools, first, second)
    agent.stop()
    now = upgrade(agent)
    make_fail(agent, "B")
    agent.start()
    said = tools.wait_until(
        lambda: fleet.deployment().digest == first.sha256 and fleet.deployment(), "the first serves again"
    )
    assert tools.predict(agent) == "1.0.0"
    assert said.state.value == "diverged"
    assert said.committed == first.sha256
    assert f"engine changed: onnxruntime 1.0 -> {now}: " in said.reason


@pytest.mark.proof
def test_with_nothing_to_fall_back_to_it_serves_only_if_told_to(fleet, make_agent, first, tools):
    agent = make_agent(fleet)
    commit(fleet, tools, first)
    agent.stop()
    now = upgrade(agent)
    make_fail(agent, "A")
    agent.start()
    told = tools.wait_until(lambda: engine_changed(fleet), "it says so")
    assert told.startswith(f"onnxruntime 1.0 -> {now}: ")
    assert told.endswith("it does not serve")
    assert fleet.deployment().digest is None
    assert tools.Client(agent.port).get("/v2/health/ready").status == 503
    agent.stop()
    agent.words("--serve-despite-engine-change")
    agent.start()
    tools.wait_until(lambda: tools.predict(agent) == "1.0.0", "it serves as told")
    tools.wait_until(lambda: engine_changed(fleet).endswith("it serves all the same, as told"), "and says so")
