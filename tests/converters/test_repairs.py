"""An int8 candidate that misses the contract is mended: the layers at fault are found and stay in float."""

import json

import torch


def test_the_layer_that_cannot_be_quantized_stays_in_float_and_is_named(digits, run_build, tmp_path):
    # One channel a thousand times larger than its neighbours: the same function in float, but a scale that has to
    # hold that channel rounds all others away.
    net = type(digits.net)()
    net.load_state_dict(digits.net.state_dict())
    net.eval()
    with torch.no_grad():
        net.layers[1].weight[0] *= 1000
        net.layers[1].bias[0] *= 1000
        net.layers[4].weight[:, 0] /= 1000
    source = tmp_path / "outlier.onnx"
    torch.onnx.export(
        net, (torch.zeros(1, 1, 8, 8),), str(source), dynamo=False, opset_version=17, input_names=["x"],
        output_names=["logits"],
    )  # fmt: skip
    found = run_build(
        *digits.flags(str(source), "x86-64-v3"), "--recipe", "onnxruntime/static-int8",
        "--out", tmp_path / "dist", "--json", tmp_path / "result.json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    result = json.loads((tmp_path / "result.json").read_text())
    plain, mended = result["candidates"]
    assert plain["status"] == "refused"
    assert "worst layers" in plain["reason"]
    assert mended["recipe"] == "onnxruntime/static-int8+mixed"
    assert mended["status"] == "picked"
    assert mended["accuracy"]["drop"] <= 0.03 < plain["accuracy"]["drop"]
    assert "+mixed try 1 of" in found.output
