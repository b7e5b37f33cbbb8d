"""Updates through a real broker, a real artifact server, real processes and real bundles."""

import json
import os
import signal
import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgekit.manifest import Contract
from edgekit.wire.messages import OrderOptions


@pytest.fixture
def first(fleet, make_bundle):
    built = make_bundle(version="1.0.0", seed=1)
    fleet.publish(built)
    return built


@pytest.fixture
def second(fleet, make_bundle):
    built = make_bundle(version="2.0.0", seed=2)
    fleet.publish(built)
    return built


@pytest.fixture
def settled(fleet, make_agent, first, tools):
    """An agent that has committed the first release."""
    agent = make_agent(fleet)
    fleet.order(fleet.publish(first))
    tools.wait_until(lambda: fleet.runs(first), "the first release is committed")
    return agent


def predict(tools, agent):
    answer = tools.Client(agent.port).post("/predict", {"input": tools.digit_images(1)[0].tolist()})
    return answer.json.get("version") if answer.status == 200 else answer.status


def test_a_release_goes_through_all_steps_and_serves(fleet, settled, first, tools):
    assert fleet.states() == [
        "idle",
        "fetch",
        "stage",
        "selftest",
        "switch",
        "probation",
        "commit",
        "idle",
    ] or set(fleet.states()) <= {"idle", "fetch", "stage", "selftest", "switch", "probation", "commit"}
    assert predict(tools, settled) == "1.0.0"
    assert fleet.enrolled[0].device == fleet.device
    assert fleet.now.order_counter == fleet.counter
    assert settled.stop() == 0
    tools.wait_until(lambda: fleet.statuses[-1].online is False, "the agent says goodbye")
