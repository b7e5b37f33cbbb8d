"""The agent as KServe's own inference client sees it, unmodified.

In an environment of its own: the client's package pins a protobuf that others here do not take.
"""

import json
import re
import subprocess
import venv
from pathlib import Path

import pytest

UNREACHABLE = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ProxyError|ReadTimeoutError"
)
KSERVE = "kserve==0.21.0"
STORY = """
import asyncio, json, sys
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferOutput, InferRequest, RESTConfig

async def main(url):
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=1))
    told = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model": await client.is_model_ready(url, "digits"),
    }
    image = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8)
    for is_binary in (False, True):
        tensor = InferInput("x", [1, 1, 8, 8], "FP32")
        tensor.set_data_from_numpy(image, binary_data=is_binary)
        request = InferRequest("digits", [tensor], request_id="7")
        answer = await client.infer(url, request, model_name="digits")
        told[f"binary {is_binary}"] = [answer.id, answer.outputs[0].as_numpy().ravel().tolist()]
    print(json.dumps(told))

asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kserve")
    venv.create(folder, with_pip=True)
    done = subprocess.run(
        [folder / "bin" / "pip", "install", "--quiet", "--no-compile", KSERVE],
        capture_output=True, text=True, check=False, timeout=540,
    )  # fmt: skip
    if done.returncode != 0 and UNREACHABLE.search(done.stderr):
        pytest.skip("no package registry can be reached")
    assert done.returncode == 0, done.stderr
    return folder / "bin" / "python"


@pytest.mark.slow
@pytest.mark.proof
def test_the_kserve_client(python: Path, module_front):
    done = subprocess.run(
        [python, "-c", STORY, f"http://127.0.0.1:{module_front.port}"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["live"], told["ready"], told["model"]) == (True, True, True)
    assert told["binary False"][0] == told["binary True"][0] == "7"
    assert told["binary False"][1] == pytest.approx(told["binary True"][1], rel=1e-5)
