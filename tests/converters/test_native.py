"""Sources that are already converted: shipped byte for byte with the same evidence, or refused in one sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from converters.backends.litert import vela
from converters.backends.openvino import graph
from converters.source import ir_source, tflite, tflite_source
from converters.source.work import work
from edgekit import bundle, evidence, selftest
from edgekit.engines import LoadedBundle
from edgekit.engines.openvino import core


@pytest.fixture(scope="module")
def files(digits, tmp_path_factory) -> Path:
    """float.tflite, int8.tflite (integer inputs and outputs) and ir.xml of the digits network."""
    import litert_torch
    import openvino as ov
    import torch
    from ai_edge_quantizer import quantizer, recipe

    folder = tmp_path_factory.mktemp("native")
    litert_torch.convert(digits.net, (torch.zeros(1, 1, 8, 8),)).export(str(folder / "float.tflite"))
    tool = quantizer.Quantizer(str(folder / "float.tflite"), recipe.static_wi8_ai8())
    calibration = np.load(digits.folder / "calib.npz")["x"]
    ranges = tool.calibrate({"serving_default": [{"args_0": row[None]} for row in calibration]})
    (folder / "int8.tflite").write_bytes(tool.quantize(ranges).quantized_model)
    model = core().read_model(digits.folder / "model.onnx")
    model.reshape([1, 1, 8, 8])
    ov.save_model(model, folder / "ir.xml", compress_to_fp16=False)
    return folder


def words(digits, source: Path, *targets: str, name: str) -> list[str]:
    """The digits' flags, with the data under the name of this model's input."""
    flags = digits.flags("model.onnx", *targets)
    flags[0] = str(source)
    flags[flags.index("--shape") + 1] = f"{name}=1,1,8,8"
    for flag, file in (("--calibration", "calib.npz"), ("--evaluation", "eval.npz")):
        arrays = dict(np.load(digits.folder / file))
        renamed = source.parent / f"{name}-{file}"
        np.savez(renamed, **{name: arrays.pop("x")}, **arrays)
        flags[flags.index(flag) + 1] = str(renamed)
    return flags


CASES = [
    ("float.tflite", "litert", "args_0", "x86-64-v3", "model/model.tflite"),
    ("int8.tflite", "litert", "args_0", "raspberry-pi-5", "model/model.tflite"),
    ("ir.xml", "openvino", "x", "x86-64-v3", "model/model.xml"),
]


@pytest.mark.parametrize(("file", "engine", "name", "target", "member"), CASES)
def test_the_file_itself_is_measured_and_shipped(
    file, engine, name, target, member, files, digits, run_build, tmp_path
):
    flags = words(digits, files / file, target, name=name)
    result = run_build(*flags, "--recipe", "*/as-is", "--out", tmp_path, "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "r.json").read_text())
    (entry,) = told["bundles"]
    assert entry["recipe"] == f"{engine}/as-is"
    assert entry["accuracy"]["shipped"] > 0.9
    assert entry["accuracy"]["drop"] == 0
    # What cannot be read is not tried, and said once; OpenVINO reads TFLite files itself.
    assert [item["recipe"] for item in told["candidates"]] == [f"{engine}/as-is"]
    others = "onnxruntime" if engine == "litert" else "onnxruntime and litert"
    if target == "x86-64-v3":
        (note,) = [note for note in entry["notes"] if note.startswith("no candidate")]
        assert note.startswith(f"no candidate for {others}: of this profile only ")
    found = bundle.read(Path(entry["path"]))
    found.extract(tmp_path / "b")
    assert (tmp_path / "b" / member).read_bytes() == (files / file).read_bytes()
    loaded = LoadedBundle(found.manifest, tmp_path / "b")
    assert selftest.check(found.manifest, loaded, tmp_path / "b").passed
    loaded.close()
    predicate = evidence.decode(evidence.beside(Path(entry["path"])).read_bytes()).predicate
    wanted = "measured" if target == "x86-64-v3" else "estimated"
    assert predicate.latency_p50_ms.how == wanted


@pytest.mark.parametrize(
    ("file", "recipe"),
    [
        ("float.tflite", "openvino/static-int8"),
        pytest.param("int8.tflite", "openvino/kept-int8", marks=pytest.mark.proof),
    ],
)
def test_openvino_makes_candidates_of_a_tflite_file(file, recipe, files, digits, run_build, tmp_path):
    """An integer input and output are float to the caller, as they are in LiteRT."""
    flags = words(digits, files / file, "x86-64-v3", name="args_0")
    result = run_build(*flags, "--recipe", recipe, "--out", tmp_path, "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    (entry,) = json.loads((tmp_path / "r.json").read_text())["bundles"]
    assert entry["recipe"] == recipe
    assert entry["accuracy"]["drop"] < 0.02
    found = bundle.read(Path(entry["path"]))
    assert [(spec.name, spec.dtype) for spec in found.manifest.inputs] == [("args_0", "float32")]


def test_operators_that_openvino_makes_of_a_tflite_file_are_called_the_same_at_every_reading(files):
    """By these names a repair leaves layers in float, and a bundle's bytes hold them."""

    def names():
        model = core().read_model(files / "float.tflite")
        graph.name_nodes(model, is_tflite=True)
        return [node.get_friendly_name() for node in model.get_ordered_ops()]

    first = names()
    assert names() == first
    assert len(set(first)) == len(first)


def test_a_recipe_that_would_be_the_file_again_is_none_and_that_is_said(files, digits, run_build, tmp_path):
    flags = words(digits, files / "float.tflite", "x86-64-v3", name="args_0")
    refused = run_build(*flags, "--recipe", "litert/fp32", "--out", tmp_path)
    assert refused.exit_code == 3
    assert "--recipe litert/fp32 leaves none of what this source gets" in str(refused.exception)


def test_an_int8_file_goes_through_vela_and_a_float_one_itself_is_refused(files, digits, run_build, tmp_path):
    flags = words(digits, files / "int8.tflite", "arm-ethos-u55-128", name="args_0")
    result = run_build(*flags, "--out", tmp_path, "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    (entry,) = json.loads((tmp_path / "r.json").read_text())["bundles"]
    found = bundle.read(Path(entry["path"]))
    found.extract(tmp_path / "b")
    assert tflite.read(tmp_path / "b" / "model" / vela.MODEL).operators == (tflite.NPU_OPERATOR,)
    flags[0] = str(files / "float.tflite")
    refused = run_build(*flags, "--recipe", "litert/as-is", "--out", tmp_path / "c")
    assert refused.exit_code == 3
    assert "computes in fp32; arm-ethos-u55-128 takes int8" in str(refused.exception)


def test_work_read_from_each_format_is_the_work_of_the_onnx_file(files, digits):
    import onnx

    wanted = work(onnx.load(str(digits.folder / "model.onnx"))).macs
    # 64 outputs of 9 products for 8 channels, 16 of 72 for 16, and 256 x 10.
    assert wanted == 64 * 8 * 9 + 16 * 16 * 72 + 2560
    for name in ("float.tflite", "int8.tflite"):
        assert tflite_source.work(tflite.read(files / name)).macs == wanted
    assert ir_source.work(core().read_model(files / "ir.xml")).macs == wanted


def test_precision_is_read_from_the_file(files):
    assert tflite_source.precision(tflite.read(files / "float.tflite")) == "fp32"
    assert tflite_source.precision(tflite.read(files / "int8.tflite")) == "int8"


def truncated(files: Path, folder: Path) -> Path:
    (folder / "m.tflite").write_bytes((files / "int8.tflite").read_bytes()[:-400])
    return folder / "m.tflite"


def text(files: Path, folder: Path) -> Path:
    (folder / "m.tflite").write_text("no model")
    return folder / "m.tflite"


def compiled(files: Path, folder: Path) -> Path:
    from converters.backends.artifact import Artifact
    from converters.recipes.recipes import VelaConfig

    config = VelaConfig("ethos-u55-128", "Ethos_U55_High_End_Embedded", "Shared_Sram")
    made = vela.compiled(Artifact(files, "int8.tflite", {}), config, folder)
    return made.folder / made.model


def without_weights(files: Path, folder: Path) -> Path:
    return Path(shutil.copy(files / "ir.xml", folder / "m.xml"))


def with_weights(files: Path, folder: Path, data: bytes) -> Path:
    (folder / "m.bin").write_bytes(data)
    return without_weights(files, folder)


def shorter(files: Path, folder: Path) -> Path:
    return with_weights(files, folder, (files / "ir.bin").read_bytes()[:-8])


def longer(files: Path, folder: Path) -> Path:
    return with_weights(files, folder, (files / "ir.bin").read_bytes() + b"more")


def no_graph(files: Path, folder: Path) -> Path:
    path = with_weights(files, folder, b"")
    path.write_text("<net")
    return path


def edited(files: Path, folder: Path, change: Callable[[Any], None]) -> Path:
    """float.tflite with its tables changed."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs((files / "float.tflite").read_bytes(), 0))
    change(model)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    (folder / "m.tflite").write_bytes(bytes(builder.Output()))
    return folder / "m.tflite"


def open_batch(files: Path, folder: Path) -> Path:
    def change(model: Any) -> None:
        graph = model.subgraphs[0]
        graph.tensors[graph.inputs[0]].shapeSignature = [-1, 1, 8, 8]

    return edited(files, folder, change)


def with_variable(files: Path, folder: Path) -> Path:
    def change(model: Any) -> None:
        code = schema.OperatorCodeT()
        code.builtinCode = schema.BuiltinOperator.VAR_HANDLE
        # The field of old readers is one byte; 127 sends them to the new one.
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = 1
        model.operatorCodes.append(code)
        graph = model.subgraphs[0]
        handle = schema.TensorT()
        handle.type, handle.shape, handle.name, handle.buffer = schema.TensorType.RESOURCE, [], b"handle", 0
        graph.tensors.append(handle)
        step = schema.OperatorT()
        step.opcodeIndex, step.inputs, step.outputs = (
            len(model.operatorCodes) - 1,
            [],
            [len(graph.tensors) - 1],
        )
        step.builtinOptionsType = schema.BuiltinOptions.VarHandleOptions
        step.builtinOptions = schema.VarHandleOptionsT()
        step.builtinOptions.container, step.builtinOptions.sharedName = b"", b"state"
        graph.operators.insert(0, step)

    return edited(files, folder, change)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            open_batch,
            "are open, and a file that is taken as it is keeps its shapes",
        ),
        (with_variable, "keeps its state inside (VAR_HANDLE), which cannot be set back to zero"),
        (truncated, "not a TFLite model, or damaged"),
        (text, "not a TFLite model, or damaged"),
        (compiled, "already compiled by Vela"),
        (without_weights, "put m.bin there"),
        (shorter, "belongs to another model or is damaged"),
        (longer, "belongs to another model or is damaged"),
        (no_graph, "not an OpenVINO IR, or damaged"),
    ],
)
def test_a_file_that_cannot_be_taken(make, says, files, digits, run_build, tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    flags = digits.flags("model.onnx", "x86-64-v3")
    flags[0] = str(make(files, folder))
    result = run_build(*flags, "--out", tmp_path / "dist")
    assert result.exit_code == 2
    assert says in str(result.exception)
    assert not (tmp_path / "dist").exists()
