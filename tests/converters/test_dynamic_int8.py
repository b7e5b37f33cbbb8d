"""ONNX Runtime's dynamic int8, and the constants that quantizers would not find."""

import importlib.util
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from converters.backends import Prepared, Unsupported, get
from converters.graph import canonical
from converters.recipes.recipes import Tuning, plans
from converters.source import onnx_source
from converters.source.project import from_flags
from edgekit import profile
from edgekit.errors import ToolFailedError

WIDTH = 64


def value(name, *shape):
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def classifier(as_nodes=False):
    """An LSTM, a matrix product and a Gemm; its weights as initializers or as `Constant` nodes."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.standard_normal((1, 4 * WIDTH, 8)),
        "r": random.standard_normal((1, 4 * WIDTH, WIDTH)),
        "m": random.standard_normal((WIDTH, WIDTH)),
        "g": random.standard_normal((4, WIDTH)),
    }
    tensors = [
        numpy_helper.from_array((0.1 * array).astype(np.float32), name) for name, array in weights.items()
    ]
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["", "last"], "lstm", hidden_size=WIDTH),
        helper.make_node("Squeeze", ["last", "axes"], ["flat"], "flat"),
        helper.make_node("MatMul", ["flat", "m"], ["mixed"], "product"),
        helper.make_node("Tanh", ["mixed"], ["bent"], "tanh"),
        helper.make_node("Gemm", ["bent", "g"], ["y"], "head", transB=1),
    ]
    tensors.append(numpy_helper.from_array(np.array([0], np.int64), "axes"))
    if as_nodes:
        nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in tensors] + nodes
        tensors = []
    graph = helper.make_graph(nodes, "g", [value("x", 5, 2, 8)], [value("y", 2, 4)], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def prepare(path, folder, feeds):
    inputs = {
        name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in feeds[0].items()
    }
    project = from_flags({
        "model": {"name": "m", "version": "1", "source": str(path)}, "inputs": inputs,
        "targets": {"x86-64-v4-vnni": {}}, "data": {"evaluation": "unused"},
    })  # fmt: skip
    source = onnx_source.open_file(project, path)
    return Prepared(source, canonical.canonicalize(source, feeds, folder), None)


@pytest.fixture
def prepared(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(classifier(), path)
    random = np.random.default_rng(1)
    feeds = [{"x": random.standard_normal((5, 2, 8)).astype(np.float32)} for _ in range(3)]
    return Prepared(
        prepare(path, tmp_path, feeds).source, prepare(path, tmp_path, feeds).canonical, lambda: iter(feeds)
    )


def convert(prepared, folder, **tuning):
    (plan,) = plans(profile.load("x86-64-v4-vnni"), ["onnxruntime/dynamic-int8"])
    made = folder / "made"
    made.mkdir(exist_ok=True)
    return get("onnxruntime").convert(prepared, replace(plan, tuning=Tuning("t", **tuning)), made)


def kinds(artifact):
    return [node.op_type for node in onnx.load(str(artifact.folder / artifact.model)).graph.node]


def test_products_and_lstms_get_int8_weights_and_the_result_stays_near(prepared, tmp_path):
    artifact = convert(prepared, tmp_path)
    assert {"DynamicQuantizeLSTM", "MatMulInteger"} <= set(kinds(artifact))
    assert artifact.size_bytes < 0.5 * prepared.canonical.path.stat().st_size
    int8 = ort.InferenceSession(str(artifact.folder / artifact.model))
    wanted = [prepared.source.reference.run(feed) for feed in prepared.calibration()]
    have = [{"y": int8.run(["y"], feed)[0]} for feed in prepared.calibration()]
    assert 1e-6 < canonical.parity(wanted, have) < 0.1


def test_a_layer_left_in_float_keeps_its_operator(prepared, tmp_path):
    names = {node.op_type: node.name for node in onnx.load(str(prepared.canonical.path)).graph.node}
    assert kinds(convert(prepared, tmp_path)).count("MatMulInteger") == 2
    assert "LSTM" in kinds(convert(prepared, tmp_path, float_layers=(names["LSTM"],)))
    assert kinds(convert(prepared, tmp_path, float_layers=(names["Gemm"],))).count("MatMulInteger") == 1
    with pytest.raises(ToolFailedError, match="no layer 'hea'"):
        convert(prepared, tmp_path, float_layers=("hea",))
    with pytest.raises(ToolFailedError, match="unknown setting percentile; there are per_channel"):
        convert(prepared, tmp_path, settings={"percentile": 99.0})


def test_a_model_of_convolutions_is_not_tried_and_costs_nothing(digits, tmp_path):
    feeds = [{"x": np.zeros((1, 1, 8, 8), np.float32)}]
    prepared = prepare(digits.folder / "model.onnx", tmp_path, feeds)
    model = onnx.load(str(prepared.canonical.path))
    for node in model.graph.node:
        if node.op_type == "Gemm":
            node.input[1] = "elsewhere"
    prepared.canonical.path.write_bytes(model.SerializeToString())
    began = time.perf_counter()
    with pytest.raises(Unsupported, match="not tried: few of the weights"):
        convert(prepared, tmp_path)
    assert time.perf_counter() - began < 1


def test_a_table_that_rows_are_looked_up_in_does_not_count(tmp_path):
    """MiniLM's embedding is half of its weights and none of its work."""
    random = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array(random.standard_normal((1000, WIDTH)).astype(np.float32), "table"),
        numpy_helper.from_array(random.standard_normal((WIDTH, WIDTH)).astype(np.float32), "m"),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["rows"], "lookup"),
        helper.make_node("MatMul", ["rows", "m"], ["y"], "product"),
    ]
    ids = helper.make_tensor_value_info("x", onnx.TensorProto.INT64, (1, 4))
    graph = helper.make_graph(nodes, "g", [ids], [value("y", 1, 4, WIDTH)], tensors)
    path = tmp_path / "embedding.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    feeds = [{"x": np.arange(4, dtype=np.int64)[None]}]
    assert "MatMulInteger" in kinds(convert(prepare(path, tmp_path, feeds), tmp_path))


def test_constant_nodes_become_initializers_and_compute_the_same(tmp_path):
    path = tmp_path / "nodes.onnx"
    onnx.save(classifier(as_nodes=True), path)
    form = prepare(path, tmp_path, [{"x": np.ones((5, 2, 8), np.float32)}]).canonical
    graph = onnx.load(str(form.path)).graph
    assert "Constant" not in {node.op_type for node in graph.node}
    assert len(graph.initializer) >= 4
    assert form.parity == 0


def test_the_voice_detector_keeps_its_weights_where_quantizers_look(tmp_path):
    found = importlib.util.find_spec("silero_vad")
    if found is None or found.origin is None:
        pytest.skip("silero-vad is not installed")
    path = Path(found.origin).parent / "data" / "silero_vad_op18_ifless.onnx"
    feeds = [
        {
            "input": np.zeros((1, 576), np.float32),
            "state": np.zeros((2, 1, 128), np.float32),
            "sr": np.array(16000),
        }
    ]
    form = prepare(path, tmp_path, feeds).canonical
    assert form.parity < 1e-5
    assert "Constant" not in {node.op_type for node in onnx.load(str(form.path)).graph.node}


def test_a_model_of_which_nothing_becomes_int8_is_not_called_so(tmp_path):
    """The quantizer gave a model of float64 back as it was, and it stood in the table as int8."""
    random = np.random.default_rng(0)
    kind = onnx.TensorProto.DOUBLE
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")], "g",
        [helper.make_tensor_value_info("x", kind, [1, 8])], [helper.make_tensor_value_info("y", kind, [1, 4])],
        [numpy_helper.from_array(random.standard_normal((8, 4)), "w")],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, tmp_path / "model.onnx")
    ready = prepare(tmp_path / "model.onnx", tmp_path, [{"x": random.standard_normal((1, 8))}])
    (plan,) = plans(profile.load("x86-64-v4-vnni"), ["onnxruntime/dynamic-int8"])
    with pytest.raises(Unsupported, match="no layer of this model becomes int8"):
        get("onnxruntime").convert(ready, plan, tmp_path)
