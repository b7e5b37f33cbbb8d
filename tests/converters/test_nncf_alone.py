"""NNCF in a worker: it costs the process no torch, and quantizes as it does beside torch."""

import subprocess
import sys

import torch

from converters.backends.openvino.nncf_alone import nncf_loaded

# Prints whether torch is loaded in the end, and a digest of the int8 model's weights and ranges.
_QUANTIZED = """
import hashlib, sys
{first}
import numpy as np
from openvino import Model, opset13 as op
from converters.backends.openvino.nncf_alone import nncf_loaded
from edgekit.quiet import quietly

def made():
    draw = np.random.default_rng(1)
    x = op.parameter([1, 3, 8, 8], np.float32, name="x")
    w = op.constant(draw.normal(size=(4, 3, 3, 3)).astype(np.float32))
    y = op.relu(op.convolution(x, w, [1, 1], [0, 0], [0, 0], [1, 1]))
    model = Model([op.result(y)], [x], "small")
    nncf = nncf_loaded()
    samples = [{{0: draw.normal(size=(1, 3, 8, 8)).astype(np.float32)}} for _ in range(4)]
    small = nncf.compress_weights(model.clone(), mode=nncf.CompressWeightsMode.INT8_ASYM)
    return nncf.quantize(model, nncf.Dataset(samples)), small

digest = hashlib.sha256()
for model in quietly(made):
    for node in model.get_ordered_ops():
        digest.update(node.get_type_name().encode())
        if node.get_type_name() == "Constant":
            digest.update(node.get_data().tobytes())
print("torch" in sys.modules, digest.hexdigest())
"""


def _quantized(first: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", _QUANTIZED.format(first=first)], capture_output=True, text=True, check=True
    )
    loaded, digest = done.stdout.split()
    return loaded, digest


def test_a_process_that_quantizes_does_not_load_torch_and_makes_the_model_that_it_makes_beside_torch() -> (
    None
):
    alone, beside = _quantized(""), _quantized("import torch")
    assert (alone[0], beside[0]) == ("False", "True")
    assert alone[1] == beside[1]


def test_torch_can_be_loaded_afterwards() -> None:
    code = "from converters.backends.openvino.nncf_alone import nncf_loaded as n; n(); import torch; print(torch.ones(2).sum())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "2." in done.stdout


def test_a_model_of_torch_is_known_as_one_where_torch_is_loaded() -> None:
    nncf_loaded()
    from nncf.common.utils import backend

    assert backend.get_backend(torch.nn.Linear(2, 2)) is backend.BackendType.TORCH
