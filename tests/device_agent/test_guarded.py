"""A worker with a guarded bundle: what is unfamiliar is flagged or refused, counted, and never blamed on anybody."""

import msgspec
import numpy as np
import pytest

from device_agent import collector
from device_agent.folder import DeploymentFolder
from edgekit.wire.messages import GUARD_SHARE, DeploymentWindow, Moments

STRANGE = np.full((8, 8), 16.0, np.float32)


@pytest.fixture
def hosted(tmp_path, tools, host_worker):
    def start(answer):
        built = tools.build_guarded(tmp_path, answer=answer)
        familiar = tools.digit_images(1)[0]
        worker = host_worker(tools.staged(DeploymentFolder(tmp_path / "d"), built), "digits")
        return worker, tools.Client(worker.port), familiar

    return start


def predict(client, picture):
    answer = client.post("/predict", {"input": picture.tolist()})
    return answer.status, answer.json


def infer(client, values):
    body = {
        "inputs": [{"name": "x", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": values.ravel().tolist()}]
    }
    answer = client.post("/v2/models/digits/infer", body)
    return answer.status, answer.json


def counted(worker):
    return msgspec.json.decode(msgspec.json.encode(worker.count()), type=DeploymentWindow)


def test_an_unfamiliar_input_is_answered_with_a_flag_and_counted(hosted):
    worker, client, familiar = hosted("flag")
    status, plain = predict(client, familiar)
    assert status == 200
    assert "parameters" not in plain
    status, flagged = predict(client, STRANGE)
    assert status == 200
    assert flagged["parameters"]["unfamiliar"] is True
    assert flagged["parameters"]["excess"] > 1
    assert flagged["label"]
    status, told = infer(client, STRANGE / 16)
    assert (status, told["parameters"]["unfamiliar"]) == (200, True)
    window = counted(worker)
    assert (window.requests, window.guarded, window.errors, window.rejected_inputs) == (3, 2, 0, 0)
    assert window.metrics[GUARD_SHARE] == Moments(3, 2.0)


def test_an_unfamiliar_input_is_refused_without_an_error_of_anybodys(hosted):
    worker, client, familiar = hosted("refuse")
    assert predict(client, familiar)[0] == 200
    status, told = predict(client, STRANGE)
    assert (status, told["code"]) == (422, "unfamiliar")
    assert "times as far" in told["error"]
    assert infer(client, STRANGE / 16)[0] == 422
    assert infer(client, STRANGE)[0] == 422
    window = counted(worker)
    assert (window.requests, window.guarded, window.errors, window.rejected_inputs) == (4, 3, 0, 0)
    assert window.infer_ms.count == 1, "the engine saw one of four"


def test_counts_of_two_windows_are_one():
    first = DeploymentWindow("d", None, requests=3, guarded=1, metrics={GUARD_SHARE: Moments(3, 1.0)})
    second = DeploymentWindow("d", None, requests=5, guarded=2, metrics={GUARD_SHARE: Moments(5, 2.0)})
    merged = collector.merge(first, second)
    assert merged.guarded == 3
    assert merged.metrics[GUARD_SHARE] == Moments(8, 3.0)
    assert 'edgekit_guarded_total{deployment="d",digest=""} 3' in collector.prometheus(
        {("d", None): merged}, {}
    )
