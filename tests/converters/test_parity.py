"""Whether a converted model still computes what its source does, where rounding is amplified on some inputs."""

from types import SimpleNamespace

import numpy as np
import pytest

from converters.backends import Prepared
from converters.backends.parity import smallest_gap
from edgekit.manifest import TensorSpec

SAMPLES = [{"x": np.full((1, 2), value, np.float32)} for value in (2.0, 3.0)]


def running(compute):
    return SimpleNamespace(run=lambda feed: {"y": compute(feed["x"])})


@pytest.fixture
def ready():
    source = SimpleNamespace(
        inputs=(TensorSpec("x", "float32", (1, 2)),), sets=(), reference=running(lambda x: x * 2)
    )
    return Prepared(source, None, lambda: iter(SAMPLES))


def test_a_difference_on_one_kind_of_input_alone_is_rounding(ready):
    assert smallest_gap(ready, running(lambda x: x * 2 + (0.1 if x.max() < 1 else 0.0))) == 0


def test_a_wrong_operator_differs_on_every_input(ready):
    assert smallest_gap(ready, running(lambda x: x * 2.1)) == pytest.approx(0.05, rel=1e-3)
    assert smallest_gap(ready, running(lambda x: np.concatenate([x, x]))) == float("inf")
