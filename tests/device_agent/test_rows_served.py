"""Outputs of as many rows as the data says are served with their own length, none too."""

import json

import numpy as np

from device_agent.folder import DeploymentFolder
from edgekit import local

DTYPES = {"INT64": np.int64, "FP32": np.float32}


def asked(client, x, *, is_binary):
    """The outputs and the answer's parameters."""
    body = {
        "inputs": [{"name": "x", "shape": [1, 8], "datatype": "FP32", "data": x.tolist()}],
        "parameters": {"binary_data_output": is_binary},
    }
    told = client.post("/v2/models/finder/infer", body)
    assert told.status == 200, told.body
    split = int(told.headers.get("inference-header-content-length", len(told.body)))
    head, rest = json.loads(told.body[:split]), told.body[split:]
    found = {}
    for output in head["outputs"]:
        dtype = DTYPES[output["datatype"]]
        if is_binary:
            size = output["parameters"]["binary_data_size"]
            flat, rest = np.frombuffer(rest[:size], dtype), rest[size:]
        else:
            flat = np.array(output["data"], dtype)
        found[output["name"]] = flat.reshape(output["shape"])
    return found, head.get("parameters", {})


def test_an_answer_has_as_many_rows_as_were_found(host_worker, tools, tmp_path):
    slot = tools.staged(DeploymentFolder(tmp_path / "finder"), tools.build_finder(tmp_path))
    client = tools.Client(host_worker(slot, "finder").port)
    described = client.get("/v2/models/finder").json
    assert [output["shape"] for output in described["outputs"]] == [[2, -1], [-1]]
    for count, is_binary in [(count, is_binary) for count in range(5) for is_binary in (False, True)]:
        x = np.where(np.arange(8) < count, 0.5, -1).astype(np.float32)
        found, told = asked(client, x, is_binary=is_binary)
        assert found["where"].shape == (2, count)
        np.testing.assert_array_equal(found["values"], x[:count])
        assert told == {}
    # More than the bundle says are cut, and the caller is told.
    found, told = asked(client, np.ones(8, np.float32), is_binary=False)
    assert found["where"].tolist() == [[0] * 4, [0, 1, 2, 3]]
    assert told == {"rows_cut": True}
    plain = client.post("/predict", {"input": [[-1.0] * 8]}).json
    assert plain["outputs"] == {"where": [[], []], "values": []}


def test_its_bundle_passes_its_own_self_test(tools, tmp_path):
    result = local.verify(tools.build_finder(tmp_path).path)
    assert result.passed, result.reason
