"""A whole agent with a shadow: it is fetched and tested, sees live inputs, answers nobody, and goes when the order says so."""

from pathlib import Path

import pytest

from edgekit.wire.messages import OrderedShadow


def said(fleet):
    deployment = fleet.deployment()
    return deployment.shadow if deployment is not None else None


def compared(fleet):
    return [w.shadow for report in fleet.reports for w in report.deployments if w.shadow is not None]


def ask(agent, tools, count=20):
    client = tools.Client(agent.port)
    answers = [client.post("/predict", {"input": picture.tolist()}) for picture in tools.digit_images(count)]
    assert all(answer.status == 200 for answer in answers)
    return {answer.json["version"] for answer in answers}


# A process at idle priority waits for as long as the machine has anything else to do.
@pytest.mark.proof
def test_a_shadow_is_compared_on_live_inputs_and_answers_nobody(
    make_fleet, make_agent, make_bundle, tools, tmp_path
):
    served, other, broken = (
        make_bundle(version="1.0.0", seed=1),
        make_bundle(version="2.0.0", seed=2),
        make_bundle(version="3.0.0", seed=3, scale=0.5),
    )
    fleet = make_fleet()
    agent = make_agent(fleet)
    bundle = fleet.publish(served)
    shadow = OrderedShadow(fleet.publish(other), share=0.5)
    fleet.order(bundle, shadows={"digits": shadow})
    tools.wait_until(lambda: fleet.runs(served), "the release is committed")
    tools.wait_until(lambda: said(fleet) and said(fleet).state == "running", "the shadow runs", 120)

    def is_compared():
        assert ask(agent, tools) == {"1.0.0"}
        return sum(window.compared for window in compared(fleet)) >= 5

    tools.wait_until(is_compared, "live inputs are compared", 120)
    (digest,) = {window.digest for window in compared(fleet)}
    assert digest == other.sha256
    shares = [window.agreement["logits"] for window in compared(fleet) if window.compared]
    share = sum(each.total for each in shares) / sum(each.count for each in shares)
    assert share < 0.9, "two networks of random weights do not agree"
    assert all(window.served_ms.count == window.compared for window in compared(fleet))
    assert fleet.runs(served), "the served bundle is untouched"

    fleet.order(bundle, shadows={"digits": OrderedShadow(fleet.publish(broken))})
    tools.wait_until(lambda: said(fleet) and said(fleet).state == "refused", "a bad one is refused", 120)
    assert "self-test" in said(fleet).reason

    fleet.order(bundle, shadows={"digits": OrderedShadow(bundle)})
    tools.wait_until(lambda: said(fleet) and said(fleet).state == "served", "what serves is no shadow", 60)

    fleet.order(bundle)
    tools.wait_until(lambda: said(fleet) is None, "none is reported any more", 60)
    (state,) = Path(agent.state).glob("shadows") if Path(agent.state, "shadows").exists() else (None,)
    tools.wait_until(lambda: state is None or not any(state.rglob("*.onnx")), "its files are gone")
    assert ask(agent, tools) == {"1.0.0"}
    assert fleet.runs(served)
