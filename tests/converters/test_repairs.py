"""An int8 candidate that misses the contract is mended: the layers at fault are found and stay in float."""

import json


def test_the_layer_that_cannot_be_quantized_stays_in_float_and_is_named(outlier, digits, run_build, tmp_path):
    found = run_build(
        *digits.flags(str(outlier), "x86-64-v3"), "--recipe", "onnxruntime/static-int8",
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
