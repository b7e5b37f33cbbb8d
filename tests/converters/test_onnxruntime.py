"""ONNX Runtime's int8: layers left in float, what each layer costs, and graphs that break when quantized."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from converters.backends import Prepared, get, settling
from converters.backends.onnxruntime import graph, qdq
from converters.graph import canonical
from converters.recipes.recipes import Tuning, plans
from converters.source import onnx_source
from converters.source.project import from_flags
from edgekit import profile
from edgekit.errors import ToolFailedError
from edgekit.samples import load_npz


@pytest.fixture(scope="module")
def prepared(digits, tmp_path_factory):
    project = from_flags({
        "model": {"name": "digits", "version": "1", "source": str(digits.folder / "model.onnx")},
        "targets": {"x86-64-v3": {}},
        "data": {"evaluation": "unused"},
    })  # fmt: skip
    source = onnx_source.open_file(project, digits.folder / "model.onnx")
    samples = load_npz(digits.folder / "calib.npz", source.inputs)
    feeds = [{"x": samples.inputs["x"][index].reshape(1, 1, 8, 8)} for index in range(20)]
    form = canonical.canonicalize(source, feeds[:2], tmp_path_factory.mktemp("canonical"))
    return Prepared(source, form, lambda: iter(feeds))


def plan(target="x86-64-v4-vnni", recipe="onnxruntime/static-int8", **tuning):
    (made,) = plans(profile.load(target), [recipe])
    return replace(made, tuning=Tuning("t", **tuning))


def convert(prepared, tmp_path, **arguments):
    made = plan(**arguments)
    return made, get("onnxruntime").convert(prepared, made, tmp_path)


def weights(artifact):
    model = onnx.load(str(artifact.folder / artifact.model))
    return {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1}


def test_each_layer_is_told_apart_and_the_worst_stands_first(prepared, tmp_path):
    made, artifact = convert(prepared, tmp_path)
    layers = get("onnxruntime").sensitivity(prepared, made, artifact)
    assert sorted(layer.op_type for layer in layers) == ["Conv", "Conv", "Gemm"]
    assert [layer.snr_db for layer in layers] == sorted(layer.snr_db for layer in layers)
    assert all(10 < layer.snr_db < 100 for layer in layers)


def test_a_layer_left_in_float_keeps_its_float_weights_and_an_unknown_one_is_refused(prepared, tmp_path):
    made, artifact = convert(prepared, tmp_path)
    assert weights(artifact) == {onnx.TensorProto.INT8}
    names = tuple(layer.name for layer in get("onnxruntime").sensitivity(prepared, made, artifact))
    _, mixed = convert(prepared, tmp_path, float_layers=names[:1])
    assert weights(mixed) == {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT}
    wrong = names[0] + "x"
    with pytest.raises(ToolFailedError, match=f"no layer '{wrong}'; close are .*{names[0]}"):
        convert(prepared, tmp_path, float_layers=(wrong,))


def test_settings_change_the_model_and_unknown_ones_are_refused(prepared, tmp_path):
    seen = set()
    for settings in ({}, {"calibration": "mse"}, {"calibration": "entropy"}, {"per_channel": False},
                     {"calibration": "percentile", "percentile": 99.0}, {"ops": "Conv"}):  # fmt: skip
        _, artifact = convert(prepared, tmp_path, settings=settings)
        seen.add((tmp_path / artifact.model).read_bytes())
    assert len(seen) == 6
    for settings, words in (
        ({"percentil": 99.0}, "unknown setting percentil; there are calibration, percentile"),
        ({"calibration": "best"}, "there are minmax, percentile"),
        ({"percentile": 0.99}, "above 50"),
    ):
        with pytest.raises(ToolFailedError, match=words):
            convert(prepared, tmp_path, settings=settings)


def test_arm_gets_signed_activations_and_avx2_gets_weights_of_seven_bits(prepared, tmp_path):
    kinds, largest = {}, {}
    for target in ("raspberry-pi-5", "x86-64-v3", "x86-64-v4-vnni"):
        _, artifact = convert(prepared, tmp_path, target=target)
        model = onnx.load(str(tmp_path / artifact.model))
        tensors = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
        points = [tensors[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
        kinds[target] = {str(point.dtype) for point in points}
        largest[target] = max(np.abs(array).max() for array in tensors.values() if array.ndim > 1)
    assert kinds == {"raspberry-pi-5": {"int8"}, "x86-64-v3": {"uint8"}, "x86-64-v4-vnni": {"uint8"}}
    assert largest == {"raspberry-pi-5": 127, "x86-64-v3": 64, "x86-64-v4-vnni": 127}


def test_schemes_of_one_source_share_one_pass_over_the_calibration_data(prepared, tmp_path):
    passes = []

    def counted():
        passes.append(0)
        for feed in prepared.calibration():
            passes[-1] += 1
            yield feed

    own = Prepared(prepared.source, prepared.canonical, counted)
    for recipe in ("onnxruntime/static-int8", "onnxruntime/percentile-int8"):
        convert(own, tmp_path, recipe=recipe)
    assert passes.count(20) == 1
    assert set(passes) == {20, 1}


def layers_of(*kinds):
    return {f"{kind}.{i}": helper.make_node(kind, [f"in{i}"], [f"out{i}"]) for i, kind in enumerate(kinds)}


@pytest.mark.parametrize("guilty", [{"Conv.1"}, {"Conv.1", "MatMul.3"}])
def test_a_layer_that_an_error_names_stays_float_and_the_notes_say_so(guilty):
    def attempt(skipped):
        for name in sorted(guilty - skipped):
            raise RuntimeError(f"node {name} has an invalid axis")
        return onnx.ModelProto(doc_string=",".join(sorted(skipped)))

    made, notes = qdq.settle(attempt, layers_of("Conv", "Conv", "Conv", "MatMul"))
    assert set(made.doc_string.split(",")) == guilty
    assert all(name in notes[0] for name in guilty)


def test_without_a_name_in_the_error_the_guilty_layer_is_found_by_halving():
    tried = []

    def attempt(skipped):
        tried.append(skipped)
        if "Conv.5" not in skipped:
            raise RuntimeError("rank mismatch")
        return onnx.ModelProto(doc_string=",".join(skipped))

    made, _ = qdq.settle(attempt, layers_of(*["MatMul"] * 3, *["Conv"] * 8))
    assert made.doc_string == "Conv.5"
    assert len(tried) <= settling.MAX_TRIES


def test_what_cannot_be_helped_is_given_up_after_a_bounded_number_of_tries():
    tried = []

    def attempt(skipped):
        tried.append(skipped)
        raise RuntimeError("this engine is broken")

    with pytest.raises(ToolFailedError, match="this engine is broken"):
        qdq.settle(attempt, layers_of("Conv", "MatMul", "Gemm"))
    assert len(tried) == 4


def spelled_out(folder):
    """A convolution, a hard-swish of four nodes, a GELU of five, a mean over the image, and a product."""
    random = np.random.default_rng(0)
    numbers = {"three": 3.0, "none": 0.0, "six": 6.0, "root": 2.0**0.5, "one": 1.0, "half": 0.5}
    tensors = [helper.make_tensor(name, 1, [], [number]) for name, number in numbers.items()]
    for name, shape in {"w": (8, 3, 3, 3), "v": (8, 8, 3, 3), "m": (8, 4)}.items():
        tensors.append(onnx.numpy_helper.from_array(random.normal(0, 0.3, shape).astype(np.float32), name))
    nodes = [helper.make_node(*parts) for parts in (
        ("Conv", ["x", "w"], ["c"], "first"),
        ("Add", ["c", "three"], ["c3"]), ("Clip", ["c3", "none", "six"], ["c6"]), ("Mul", ["c", "c6"], ["cc"]),
        ("Div", ["cc", "six"], ["h"]), ("Conv", ["h", "v"], ["d"], "second"),
        ("Div", ["d", "root"], ["e1"]), ("Erf", ["e1"], ["e2"]), ("Add", ["e2", "one"], ["e3"]),
        ("Mul", ["d", "e3"], ["e4"]), ("Mul", ["e4", "half"], ["g"]),
    )]  # fmt: skip
    nodes += [helper.make_node("ReduceMean", ["g"], ["p"], axes=[2, 3], keepdims=1),
              helper.make_node("Flatten", ["p"], ["f"]), helper.make_node("MatMul", ["f", "m"], ["y"], "head")]  # fmt: skip
    ends = (
        [helper.make_tensor_value_info(name, 1, shape)]
        for name, shape in (("x", [1, 3, 12, 12]), ("y", [1, 4]))
    )
    graph = helper.make_graph(nodes, "g", *ends, tensors)
    path = folder / "spelled.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def opened(path, feeds, folder):
    shapes = {name: {"shape": list(array.shape)} for name, array in feeds[0].items()}
    project = from_flags({
        "model": {"name": "m", "version": "1", "source": str(path)}, "inputs": shapes,
        "targets": {"x86-64-v3": {}}, "data": {"evaluation": "unused"},
    })  # fmt: skip
    source = onnx_source.open_file(project, path)
    return Prepared(source, canonical.canonicalize(source, feeds[:2], folder), lambda: iter(feeds))


def operators(artifact):
    return {node.op_type for node in onnx.load(str(artifact.folder / artifact.model)).graph.node}


def outputs_of(artifact, feeds):
    session = ort.InferenceSession(str(artifact.folder / artifact.model))
    (name,) = (value.name for value in session.get_outputs())
    return [{name: session.run(None, dict(feed))[0]} for feed in feeds]


def test_functions_that_are_spelled_out_reach_the_engine_as_what_it_has_kernels_for(tmp_path):
    random = np.random.default_rng(1)
    feeds = [{"x": random.standard_normal((1, 3, 12, 12)).astype(np.float32)} for _ in range(8)]
    spelled = opened(spelled_out(tmp_path), feeds, tmp_path)
    wanted = [spelled.source.reference.run(feed) for feed in feeds]
    made = {}
    for recipe in ("onnxruntime/fp32", "onnxruntime/static-int8"):
        made[recipe] = get("onnxruntime").convert(spelled, plan(recipe=recipe), tmp_path)
        assert made[recipe].notes == ()
        assert {"HardSigmoid", "Gelu"} <= operators(made[recipe])
        assert not {"Clip", "Erf", "Div"} & operators(made[recipe])
        gap = canonical.parity(wanted, outputs_of(made[recipe], feeds))
        assert gap < (1e-5 if recipe.endswith("fp32") else 0.1)
    assert "GlobalAveragePool" in operators(made["onnxruntime/static-int8"])


def test_a_wide_depthwise_kernel_is_one_int8_convolution(tmp_path):
    random = np.random.default_rng(2)
    tensors = [
        onnx.numpy_helper.from_array(random.normal(0, 0.3, shape).astype(np.float32), name)
        for name, shape in {"v": (8, 3, 1, 1), "w": (8, 1, 7, 7)}.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["h"]),
        helper.make_node("Conv", ["h", "w"], ["y"], pads=[3, 3, 3, 3], group=8),
    ]
    ends = (
        [helper.make_tensor_value_info(name, 1, [1, channels, 14, 12])]
        for name, channels in (("x", 3), ("y", 8))
    )
    path = tmp_path / "wide.onnx"
    graph = helper.make_graph(nodes, "g", *ends, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    feeds = [{"x": random.standard_normal((1, 3, 14, 12)).astype(np.float32)} for _ in range(8)]
    wide = opened(path, feeds, tmp_path)
    made = get("onnxruntime").convert(wide, plan(), tmp_path)
    assert made.notes == ()
    assert weights(made) == {onnx.TensorProto.INT8}
    assert operators(made) == {"Conv", "QuantizeLinear", "DequantizeLinear"}
    assert (
        canonical.parity([wide.source.reference.run(feed) for feed in feeds], outputs_of(made, feeds)) < 0.05
    )


def test_a_tensor_that_a_pattern_adds_has_a_shape_of_its_own():
    """Queries of 1 x 4 against keys of 4 x 16: the scale goes to the queries."""
    nodes = [helper.make_node("MatMul", ["q", "k"], ["p"]), helper.make_node("Mul", ["p", "c"], ["y"])]
    shapes = {"q": [1, 4], "k": [4, 16], "p": [1, 16], "y": [1, 16]}
    infos = {name: helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items()}
    scale = onnx.numpy_helper.from_array(np.float32(0.125), "c")
    whole = helper.make_graph(
        nodes, "g", [infos["q"], infos["k"]], [infos["y"]], [scale], value_info=[infos["p"]]
    )
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 20)], ir_version=8)
    made = graph.for_int8(model)
    (added,) = (value for value in made.graph.value_info)
    assert [node.op_type for node in made.graph.node] == ["Mul", "MatMul"]
    assert [size.dim_value for size in added.type.tensor_type.shape.dim] == [1, 4]


def test_a_rewriting_that_computes_something_else_is_left_out_and_told(tmp_path, monkeypatch):
    def wrong(node):
        return [helper.make_node("Sigmoid", node.input, node.output)]

    feeds = [{"x": np.ones((1, 3, 12, 12), np.float32)}]
    spelled = opened(spelled_out(tmp_path), feeds, tmp_path)
    monkeypatch.setitem(graph._SPELLED, "Gelu", wrong)
    made = get("onnxruntime").convert(spelled, plan(recipe="onnxruntime/fp32"), tmp_path)
    assert "patterns left as they were" in made.notes[0]
    assert (tmp_path / made.model).read_bytes() == spelled.canonical.path.read_bytes()


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """rapidocr's orientation classifier, an opset-11 graph, with lines upright and upside down."""
    found = importlib.util.find_spec("rapidocr")
    if found is None or found.origin is None:
        pytest.skip("rapidocr is not installed")
    monkey = pytest.MonkeyPatch()
    monkey.syspath_prepend(str(Path(__file__).parents[1] / "e2e" / "real_data"))
    from orientation import lines

    monkey.undo()
    feeds = [
        {"x": ((sample["x"].astype(np.float32) - 127.5) / 127.5).transpose(2, 0, 1)[None]}
        for sample, _ in lines(40, seed=3)
    ]
    path = Path(found.origin).parent / "models" / "ch_ppocr_mobile_v2.0_cls_mobile.onnx"
    return opened(path, feeds, tmp_path_factory.mktemp("orientation"))


@pytest.mark.parametrize(
    ("target", "kind", "largest"),
    [("x86-64-v3", "uint8", 64), ("x86-64-v4-vnni", "uint8", 127), ("raspberry-pi-5", "int8", 127)],
)
def test_a_real_opset_11_graph_gets_the_int8_of_each_instruction_set(turned, tmp_path, target, kind, largest):
    """A scale a channel needs opset 13; pairs of U8S8 products overflow 16 bits without VNNI; Arm multiplies S8S8."""
    artifact = get("onnxruntime").convert(turned, plan(target=target), tmp_path)
    assert artifact.notes == ()
    model = onnx.load(str(tmp_path / artifact.model))
    assert model.opset_import[0].version >= 13
    tensors = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    kernels = [tensors[node.input[0]] for node in model.graph.node
               if node.op_type == "DequantizeLinear" and tensors.get(node.input[0], np.empty(0)).ndim == 4]  # fmt: skip
    scales = [tensors[node.input[1]] for node in model.graph.node
              if node.op_type == "DequantizeLinear" and tensors.get(node.input[0], np.empty(0)).ndim == 4]  # fmt: skip
    assert len(kernels) == 53
    assert [scale.size for scale in scales] == [len(kernel) for kernel in kernels]
    assert max(np.abs(kernel.astype(int)).max() for kernel in kernels) == largest
    points = [tensors[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert {str(point.dtype) for point in points} == {kind}
    feeds = list(turned.calibration())
    name = turned.source.outputs[0].name
    wanted = np.concatenate([turned.source.reference.run(feed)[name] for feed in feeds])
    have = np.concatenate([item[name] for item in outputs_of(artifact, feeds)])
    assert np.mean(have.argmax(axis=1) == wanted.argmax(axis=1)) >= 0.95
