"""An agent on a board that has nothing but tflite-runtime 2.14, the last one: an environment of its own, with numpy 1."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit import bundle as bundles

ROOT = Path(__file__).parents[3]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.version_info >= (3, 12), reason="tflite-runtime has no build for this Python"),
]


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of an environment with the agent and tflite-runtime. Skips where no registry can be reached."""
    folder = tmp_path_factory.mktemp("board") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    words = [
        "-m",
        "uv",
        "pip",
        "install",
        "--quiet",
        "--python",
        folder / "bin/python",
        f"{ROOT}[agent,tflite]",
    ]
    done = subprocess.run([sys.executable, *words], check=False, capture_output=True, text=True)
    if "error sending request" in done.stderr:
        pytest.skip("no package registry can be reached")
    assert done.returncode == 0, done.stderr
    return folder / "bin/python"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A small classifier, built for LiteRT by the command, and its samples with their answers."""
    folder = tmp_path_factory.mktemp("model")
    rng = np.random.default_rng(7)
    weights = rng.normal(size=(64, 10)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weights"], ["logits"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(weights, "weights")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        folder / "small.onnx",
    )
    samples = rng.normal(size=(400, 1, 64)).astype(np.float32)
    labels = (samples @ weights).argmax(-1)[:, 0]
    np.savez(folder / "data.npz", x=samples, labels=labels)
    words = [
        "small.onnx",
        "--name",
        "digits",
        "--version",
        "1",
        "--evaluation",
        "data.npz",
        "--recipe",
        "litert/fp32",
    ]
    subprocess.run(
        [sys.executable, "-m", "edgekit", "build", *words, "--target", "x86-64-v3", "--no-cache"],
        check=True, cwd=folder, capture_output=True,
    )  # fmt: skip
    (path,) = (folder / "dist").glob("*.edgekit")
    return path, samples, labels


@pytest.mark.proof
def test_it_installs_what_it_can_run_and_serves(python, built, fleet, make_agent, tools):
    path, samples, labels = built
    bundle = bundles.read(path)
    ordered = tools.Built(path, bundle.sha256, bundle.size_bytes, bundle.manifest)
    agent = make_agent(fleet, start=False)
    agent.python = python
    agent.environment = {"PYTHONPATH": os.fspath(ROOT)}
    agent.start()
    fleet.order(fleet.publish(ordered))
    tools.wait_until(lambda: fleet.runs(ordered), "it is committed", 60)
    assert fleet.now.engines == {"litert": "2.14.0"}
    answered = []
    for sample in samples[:20]:
        inputs = [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": sample.ravel().tolist()}]
        answer = tools.Client(agent.port).post("/v2/models/digits/infer", {"inputs": inputs})
        answered.append(int(np.argmax(answer.json["outputs"][0]["data"])))
    assert answered == labels[:20].tolist()


@pytest.mark.proof
def test_what_it_cannot_run_fails_the_self_test_and_says_so(python, built):
    """Activations quantized per call came after 2.14: it takes the file and answers noise."""
    folder = built[0].parents[1]
    words = [
        "small.onnx",
        "--name",
        "digits",
        "--version",
        "2",
        "--evaluation",
        "data.npz",
        "--target",
        "x86-64-v3",
    ]
    subprocess.run(
        [sys.executable, "-m", "edgekit", "build", *words, "--recipe", "litert/dynamic-int8", "--no-cache", "--out", "int8", "--max-accuracy-drop", "0.5"],
        check=True, cwd=folder, capture_output=True,
    )  # fmt: skip
    (path,) = (folder / "int8").glob("*.edgekit")
    done = subprocess.run(
        [python, "-m", "edgekit", "verify", path, "--json"], check=False, capture_output=True
    )
    assert done.returncode != 0
    told = json.loads(done.stdout)
    assert told["passed"] is False, told
