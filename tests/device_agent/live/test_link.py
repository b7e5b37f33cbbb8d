"""A link that is lost with a release and comes back without it."""

import pytest

from edgekit.wire.messages import OrderOptions


@pytest.fixture
def own(brokers, broker_folder, tools):
    """A broker that nobody else uses."""
    broker = brokers["iotcore"](broker_folder, tools.free_port())
    broker.start()
    yield broker
    broker.stop()


def test_a_release_after_which_the_link_is_lost_is_left_and_tried_again_when_the_old_one_brings_it_back(
    own, make_fleet, make_agent, make_bundle, tools
):
    first, second = make_bundle(version="1.0.0", seed=1), make_bundle(version="2.0.0", seed=2)
    fleet = make_fleet(broker=own)
    agent = make_agent(fleet)
    fleet.order(fleet.publish(first))
    tools.wait_until(lambda: fleet.runs(first), "the first release is committed")
    fleet.order(fleet.publish(second), options=OrderOptions(probation_s=60))
    tools.wait_until(lambda: fleet.deployment().state.value == "probation", "the second is on trial")
    assert tools.predict(agent) == "2.0.0"
    own.stop()
    tools.wait_until(lambda: tools.predict(agent) == "1.0.0", "the old one serves while the link is away")
    assert agent.process.poll() is None
    own.start()
    [told] = tools.wait_until(
        lambda: [each for each in fleet.now.conditions if "came back with" in each.detail], "it is told", 60
    )
    assert told.code == "update-waiting"
    said = fleet.deployment()
    assert (said.digest, said.committed) == (first.sha256, first.sha256)
    assert tools.predict(agent) == "1.0.0"


@pytest.mark.proof
def test_a_release_that_does_not_fit_into_memory_waits_and_says_with_which_figures(
    fleet, make_agent, make_bundle, tools
):
    first, second = make_bundle(version="1.0.0", seed=1), make_bundle(version="2.0.0", seed=2)
    agent = make_agent(fleet)
    fleet.order(fleet.publish(first))
    tools.wait_until(lambda: fleet.runs(first), "the first release is committed")
    ordered = fleet.publish(second)
    fetched = len(fleet.requests)
    fleet.order(type(ordered)(ordered.target, ordered.sha256, ordered.length, 1e9))
    [told] = tools.wait_until(
        lambda: [each for each in fleet.now.conditions if each.code == "update-waiting"], "it waits"
    )
    assert "needs 1000000000 MB beside the " in told.detail
    assert len(fleet.requests) == fetched
    assert tools.predict(agent) == "1.0.0"
    fleet.order(ordered)
    tools.wait_until(lambda: fleet.runs(second), "with a figure that fits it arrives")
