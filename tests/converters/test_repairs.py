"""An int8 candidate that misses the contract is mended: the layers at fault are found and stay in float."""

import json
import re

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


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
    # Its tries are run over the search half; what comes of them is judged, once and in full.
    mending, _, _ = found.output.partition("measuring latency")
    tries = mending.count("+mixed try")
    assert tries
    assert len(re.findall(r"searching with \S+mixed", mending)) == tries
    assert len(re.findall(r"evaluating \S+mixed", mending)) == 1
    assert "samples" not in mended


def two_layers(path):
    """Linear, ReLU, linear, of random weights: few samples reach what the largest values are."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=size).astype(np.float32) for size in ((16, 32), (32, 8))]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w1"], ["y"]),
    ]
    ends = ([helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, w])] for n, w in (("x", 16), ("y", 8)))
    made = [numpy_helper.from_array(each, f"w{number}") for number, each in enumerate(weights)]
    graph = helper.make_graph(nodes, "two", *ends, made)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def test_where_a_quantizer_cuts_off_too_much_ranges_that_hold_everything_come_before_float_layers(
    run_build, tmp_path
):
    """On a target with no other engine; NNCF's own ranges cost half the signal."""
    two_layers(tmp_path / "model.onnx")
    samples = np.random.default_rng(1).normal(size=(160, 16)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=samples)
    data = str(tmp_path / "data.npz")
    found = run_build(
        str(tmp_path / "model.onnx"), "--name", "two", "--version", "1", "--shape", "x=1,16",
        "--calibration", data, "--evaluation", data, "--metric", "cosine", "--max-accuracy-drop", "0.05",
        "--target", "intel-core-ultra-npu", "--recipe", "openvino/static-int8", "--out", tmp_path / "dist",
        "--json", tmp_path / "result.json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    plain, mended = json.loads((tmp_path / "result.json").read_text())["candidates"]
    assert (plain["recipe"], plain["status"]) == ("openvino/static-int8", "refused")
    assert (mended["recipe"], mended["status"]) == ("openvino/static-int8+wide", "picked")
    before, after = (each["outputs"][0]["snr_db"] for each in (plain, mended))
    assert after > before + 10
    assert "ranges that cut nothing off" in found.output
