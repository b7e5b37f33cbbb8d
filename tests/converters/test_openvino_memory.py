"""NNCF's calibration streams: its process needs no more memory for many samples than for a few."""

import subprocess
import sys

import pytest

PEAK = """
import resource, sys
from dataclasses import replace
from types import SimpleNamespace
import numpy as np
import openvino as ov
from openvino import opset13 as ops
from converters.backends.openvino import quantizer
from converters.recipes.recipes import Tuning, plans
from edgekit import profile
count = int(sys.argv[1])
random = np.random.default_rng(0)
x = ops.parameter([128, 512], np.float32, name="x")
x.output(0).set_names({"x"})
weights = random.standard_normal((512, 512)).astype(np.float32) / 22
model = ov.Model([ops.matmul(ops.relu(ops.matmul(x, weights, False, False)), weights, False, False)], [x], "m")
(plan,) = plans(profile.load("x86-64-v3"), ["openvino/static-int8"])
plan = replace(plan, tuning=Tuning("t", settings={"subset_size": count}))
seen = 0
def samples():
    global seen
    for _ in range(count):
        seen += 1
        yield {"x": random.standard_normal((128, 512)).astype(np.float32)}
source = SimpleNamespace(reference=SimpleNamespace(run=lambda feed: {}))
quantizer.quantized(model, SimpleNamespace(calibration=samples, source=source), plan)
assert seen >= count
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.proof
@pytest.mark.slow
def test_the_process_needs_no_more_memory_for_a_thousand_samples_than_for_sixteen():
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", PEAK, count], capture_output=True, text=True, check=True
            ).stdout.splitlines()[-1]
        )
        for count in ("16", "1000")
    ]
    # In kB. The inputs alone are 262 MB.
    assert peaks[1] - peaks[0] < 50_000
