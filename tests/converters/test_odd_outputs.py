"""Outputs that are an input, another output again, or a single number: every engine gives them, int8 too."""

import numpy as np
import onnx
import pytest
from litert_models import converted, outputs, prepared
from onnx import TensorProto, helper

from converters.backends.artifact import Artifact, passed
from edgekit.manifest import TensorSpec


@pytest.fixture
def ready(digits, tmp_path):
    model = onnx.load(str(digits.folder / "model.onnx"))
    model.graph.node.append(helper.make_node("Identity", ["logits"], ["again"]))
    model.graph.node.append(helper.make_node("ReduceMax", ["logits"], ["top"], keepdims=0))
    for name, shape in (("x", [1, 1, 8, 8]), ("again", [1, 10]), ("top", [])):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    feeds = [{"x": image[None]} for image in np.load(digits.folder / "calib.npz")["x"][:40]]
    return prepared(model, tmp_path, feeds)


def test_litert_gives_all_of_them_in_int8_too(ready, tmp_path):
    """The second copy of an output lost its values in int8, and an output with an input's name took the input's place."""
    artifact = converted(ready, tmp_path, "litert/static-int8", "x86-64-v3")
    feed = next(iter(ready.calibration()))
    wanted = ready.source.reference.run(feed)
    found = outputs(artifact, ready, feed)
    assert set(found) == {"logits", "x", "again", "top"}
    np.testing.assert_array_equal(found["x"], feed["x"])
    assert found["top"].shape == ()
    for name in ("logits", "again", "top"):
        np.testing.assert_allclose(found[name], wanted[name], atol=0.1 * np.abs(wanted["logits"]).max())


def test_an_input_and_an_output_of_one_name_have_bindings_of_their_own(tmp_path):
    spec = (TensorSpec("x", "float32", (1,)),)
    artifact = Artifact(tmp_path, "m", {"x": "args_0", passed("x"): "output_1"})
    assert artifact.bound(spec)[0].engine_name == "args_0"
    assert artifact.bound(spec, are_outputs=True)[0].engine_name == "output_1"
    assert Artifact(tmp_path, "m", {"x": "args_0"}).bound(spec, are_outputs=True)[0].engine_name == "args_0"
