"""`--search`: settings and float layers beyond the fixed recipes, tried on the search half, resumable."""

from dataclasses import replace

import pytest

from converters import backends
from converters.backends import litert_int8, onnxruntime_qdq, openvino_nncf
from converters.quantize.recipes import Tuning, plans
from edgekit import profile

CHECKS = {
    "onnxruntime": onnxruntime_qdq.choices,
    "openvino": lambda plan: openvino_nncf.check_settings(plan.tuning),
    "litert": litert_int8._check_settings,
}


@pytest.mark.parametrize("name", ["x86-64-v3", "raspberry-pi-5", "intel-core-ultra-npu"])
def test_every_value_of_every_knob_is_one_that_its_backend_takes(name):
    turned = 0
    for plan in plans(profile.load(name)):
        if plan.recipe.scheme != "static":
            continue
        for knob in backends.get(plan.recipe.engine).knobs(plan):
            for value in knob.values:
                if value is not None:
                    CHECKS[plan.recipe.engine](replace(plan, tuning=Tuning("x", (), {knob.name: value})))
                    turned += 1
    assert turned > 3
