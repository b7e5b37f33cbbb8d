"""ONNX Runtime's int8: layers left in float, what each layer costs, and graphs that break when quantized."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper

from converters.backends import Prepared, get, onnxruntime_qdq
from converters.prepare import canonical, onnx_source
from converters.prepare.project import from_flags
from converters.quantize.recipes import Tuning, plans
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

    made, notes = onnxruntime_qdq.settle(attempt, layers_of("Conv", "Conv", "Conv", "MatMul"))
    assert set(made.doc_string.split(",")) == guilty
    assert all(name in notes[0] for name in guilty)


def test_without_a_name_in_the_error_the_guilty_layer_is_found_by_halving():
    tried = []

    def attempt(skipped):
        tried.append(skipped)
        if "Conv.5" not in skipped:
            raise RuntimeError("rank mismatch")
        return onnx.ModelProto(doc_string=",".join(skipped))

    made, _ = onnxruntime_qdq.settle(attempt, layers_of(*["MatMul"] * 3, *["Conv"] * 8))
    assert made.doc_string == "Conv.5"
    assert len(tried) <= onnxruntime_qdq.MAX_TRIES


def test_what_cannot_be_helped_is_given_up_after_a_bounded_number_of_tries():
    tried = []

    def attempt(skipped):
        tried.append(skipped)
        raise RuntimeError("this engine is broken")

    with pytest.raises(ToolFailedError, match="this engine is broken"):
        onnxruntime_qdq.settle(attempt, layers_of("Conv", "MatMul", "Gemm"))
    assert len(tried) == 4
