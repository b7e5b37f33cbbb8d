"""ONNX files that are quantized already: taken as they are, named so, and made anew only where that is exact."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process
from quantized_models import with_small_weights

from converters.backends import Prepared, Unsupported
from converters.backends.openvino import backend
from converters.judge import fit
from converters.recipes import recipes
from converters.source import onnx_source, quantized
from converters.source.project import from_flags
from edgekit import bundle, profile, selftest
from edgekit.engines import LoadedBundle
from edgekit.manifest import TensorSpec


class Reader(CalibrationDataReader):
    def __init__(self, rows):
        self.rows = iter({"x": row[None]} for row in rows)

    def get_next(self):
        return next(self.rows, None)


@pytest.fixture(scope="module")
def files(digits, tmp_path_factory) -> Path:
    """The digits network as qdq.onnx, integers.onnx, dynamic.onnx and few_bits.onnx (its linear layer's weights alone)."""
    folder = tmp_path_factory.mktemp("quantized")
    quant_pre_process(str(digits.folder / "model.onnx"), str(folder / "float.onnx"))
    model = onnx.version_converter.convert_version(onnx.load(str(folder / "float.onnx")), 17)
    onnx.save(model, str(folder / "float.onnx"))
    rows = np.load(digits.folder / "calib.npz")["x"]
    for name, form in (("qdq", QuantFormat.QDQ), ("integers", QuantFormat.QOperator)):
        quantize_static(
            str(folder / "float.onnx"), str(folder / f"{name}.onnx"), Reader(rows), quant_format=form
        )
    quantize_dynamic(str(folder / "float.onnx"), str(folder / "dynamic.onnx"))
    onnx.save(with_small_weights(onnx.load(str(folder / "float.onnx"))), str(folder / "few_bits.onnx"))
    return folder


KINDS = [
    ("float", None),
    ("qdq", ("an int8 ONNX file (Q/DQ pairs)", False)),
    ("integers", ("an int8 ONNX file (QGemm, QLinearConv, QLinearMul)", False)),
    ("dynamic", ("an ONNX file with int8 weights and ranges taken at run time", False)),
    ("few_bits", ("an ONNX file with weights in few bits", True)),
]


@pytest.mark.parametrize(("name", "wanted"), KINDS)
def test_each_kind_is_told_from_the_file(name, wanted, files):
    assert quantized.kind(onnx.load(str(files / f"{name}.onnx"))) == wanted


def test_openvino_says_which_operator_it_lacks_and_what_to_do(files):
    project = from_flags({
        "model": {"name": "m", "version": "1", "source": str(files / "integers.onnx")},
        "targets": {"x86-64-v3": {}}, "data": {"evaluation": "unused"},
    })  # fmt: skip
    source = onnx_source.open_file(project, files / "integers.onnx")
    with pytest.raises(
        Unsupported, match=r"it does not convert com\.microsoft\.QGemm.*; for openvino, build from"
    ):
        backend._kept(Prepared(source, None, None))


def test_a_float_model_that_takes_bytes_is_none():
    """A picture's integers are widened at the door; what computes is float."""
    value = helper.make_tensor_value_info
    weights = numpy_helper.from_array(np.ones((100, 4), np.float32), "w")
    scale = numpy_helper.from_array(np.float32(1 / 255), "s")
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.UINT8, [1, 100])], [value("y", 1, [1, 4])], [weights, scale]
    )
    assert quantized.kind(helper.make_model(graph)) is None


def build(run_build, digits, source: Path, out: Path, *targets: str, extra: tuple[str, ...] = ()):
    flags = digits.flags("model.onnx", *targets)
    flags[0] = str(source)
    result = run_build(*flags, *extra, "--out", out, "--json", out / "r.json")
    told = json.loads((out / "r.json").read_text()) if (out / "r.json").exists() else {}
    return result, told


@pytest.mark.parametrize("name", ["qdq", "integers"])
def test_an_int8_file_ships_as_it_came_and_no_candidate_is_called_float(
    name, files, digits, run_build, tmp_path
):
    result, told = build(run_build, digits, files / f"{name}.onnx", tmp_path, "raspberry-pi-5")
    assert result.exit_code == 0, result.output
    picked = next(entry for entry in told["bundles"] if entry["recipe"] == "onnxruntime/as-is")
    assert picked is told["bundles"][0]
    assert picked["accuracy"]["drop"] == 0
    found = bundle.read(Path(picked["path"]))
    found.extract(tmp_path / "b")
    assert (tmp_path / "b" / "model/model.onnx").read_bytes() == (files / f"{name}.onnx").read_bytes()
    loaded = LoadedBundle(found.manifest, tmp_path / "b")
    assert selftest.check(found.manifest, loaded, tmp_path / "b").passed
    loaded.close()
    candidates = {item["recipe"]: item for item in told["candidates"]}
    assert set(candidates) == {"onnxruntime/as-is", "openvino/kept-int8", "litert/as-is"}
    assert "onnxruntime can; for litert, build from the float model" in candidates["litert/as-is"]["reason"]
    if name != "integers":
        # OpenVINO reads the pairs itself, and computes nearly the same.
        assert candidates["openvino/kept-int8"]["accuracy"]["drop"] < 0.02


@pytest.mark.proof
def test_weights_alone_in_few_bits_have_an_exact_float_form_that_other_engines_quantize(
    files, digits, run_build, tmp_path
):
    result, told = build(
        run_build,
        digits,
        files / "few_bits.onnx",
        tmp_path,
        "x86-64-v3",
        extra=("--recipe", "litert/weights-int8"),
    )
    assert result.exit_code == 0, result.output
    (entry,) = told["bundles"]
    assert entry["accuracy"]["drop"] < 0.02
    names = {plan.name for plan in recipes.of_quantized(
        profile.load("x86-64-v3"), "x", is_widened=True, most_bytes=1
    )}  # fmt: skip
    assert {
        "onnxruntime/as-is",
        "openvino/kept-int8",
        "litert/weights-int8",
        "onnxruntime/static-int8",
    } <= names
    assert not [name for name in names if "fp32" in name or "f32" in name or "fp16" in name]


def test_the_float_form_of_weights_computes_the_same(files, tmp_path):
    made = quantized.widened(onnx.load(str(files / "few_bits.onnx")))
    assert not [node for node in made.graph.node if node.op_type == "DequantizeLinear"]
    x = np.random.default_rng(0).random((1, 1, 8, 8), np.float32)
    want, have = (
        ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for data in ((files / "few_bits.onnx").read_bytes(), made.SerializeToString())
    )
    np.testing.assert_allclose(have, want, atol=1e-5)


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_a_product_of_four_bit_blocks_is_one_of_their_numbers(is_symmetric):
    value = helper.make_tensor_value_info
    weights = np.random.default_rng(1).standard_normal((72, 16)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [value("x", 1, [2, 72])],
        [value("y", 1, [2, 16])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    tool = MatMulNBitsQuantizer(model, block_size=32, is_symmetric=is_symmetric)
    tool.process()
    small = tool.model.model
    assert quantized.kind(small) == ("an ONNX file with weights in few bits", True)
    x = np.random.default_rng(2).standard_normal((2, 72)).astype(np.float32)
    want, have = (
        ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"x": x}
        )[0]
        for made in (small, quantized.widened(small))
    )
    np.testing.assert_allclose(have, want, atol=1e-4)


def test_what_grew_beside_its_source_is_refused():
    """35 MB that became 85 were shipped once."""
    limit = quantized.Quantized("x", True, 35_000_000, None).most_bytes
    assert "may grow to 43.85 MB" in fit.grown(85_000_000, limit)
    assert not fit.grown(36_000_000, limit)
    assert not fit.grown(85_000_000, 0)
    plans = recipes.of_quantized(profile.load("raspberry-pi-5"), "x", is_widened=True, most_bytes=limit)
    assert {plan.name for plan in plans if not plan.most_bytes} == {"onnxruntime/as-is"}


def test_an_engine_alone_gets_candidates_made_anew(files):
    """An Ethos-U has LiteRT only: nothing there takes the file, so the importer's form is quantized anew."""
    plans = recipes.of_quantized(
        profile.load("arm-ethos-u55-128"), "an int8 ONNX file", is_widened=False, most_bytes=1
    )
    assert {plan.recipe.engine for plan in plans} == {"litert"}
    assert all(not plan.obstacle and not plan.most_bytes for plan in plans)


def test_weights_beside_the_file_are_shipped_inside_it(files, tmp_path):
    model = onnx.load(str(files / "qdq.onnx"))
    onnx.save(
        model, str(tmp_path / "m.onnx"), save_as_external_data=True, size_threshold=64, location="w.bin"
    )
    (tmp_path / "alone").mkdir()
    onnx_source.written_as_it_came(tmp_path / "m.onnx", tmp_path / "alone" / "m.onnx")
    assert ort.InferenceSession(str(tmp_path / "alone" / "m.onnx"), providers=["CPUExecutionProvider"])


def test_what_comes_behind_an_operator_without_shapes_is_counted_as_nothing(tmp_path):
    """onnx infers no shape behind com.microsoft's operators, and lists the tensor all the same; a Gemm there cost the build."""
    packed = numpy_helper.from_array(np.zeros((16, 1, 8), np.uint8), "packed")
    scales = numpy_helper.from_array(np.ones((16,), np.float32), "scales")
    head = numpy_helper.from_array(np.ones((16, 4), np.float32), "head")
    nodes = [
        helper.make_node(
            "MatMulNBits", ["x", "packed", "scales"], ["h"], domain="com.microsoft", K=16, N=16, bits=4, block_size=16
        ),
        helper.make_node("Gemm", ["h", "head"], ["y"]),
    ]  # fmt: skip
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [1, 16])], [value("y", 1, [1, 4])], [packed, scales, head],
        value_info=[value("h", TensorProto.FLOAT, None)],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    spec = TensorSpec("x", "float32", (1, 16))
    counted = onnx_source.quantized_work(
        helper.make_model(graph, opset_imports=imports, ir_version=8), (spec,)
    )
    assert counted.macs == 0
    assert counted.weights == 16 * 8 + 16 + 16 * 4
