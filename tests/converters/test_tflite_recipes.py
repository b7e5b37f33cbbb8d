"""LiteRT's own recipes of a float TFLite file: made ready whatever wrote it, or told in one sentence why not."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import wild_models
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from litert_models import operators, outputs
from wild_models import Kind, Operator, written

from converters.backends import Prepared, Unsupported, get
from converters.backends.litert import ready, vela
from converters.recipes import recipes
from converters.source import tflite, tflite_source
from converters.source.project import from_flags
from edgekit import bundle, profile
from edgekit.errors import ToolFailedError

RECIPES = ("litert/fp16", "litert/static-int8", "litert/dynamic-int8", "litert/weights-int8")


def prepared(path, feeds):
    project = from_flags({
        "model": {"name": "m", "version": "1", "source": str(path)}, "targets": {"raspberry-pi-5": {}},
        "data": {"evaluation": "unused"},
    })  # fmt: skip
    return Prepared(tflite_source.open_file(project, path), None, lambda: iter(feeds))


def pictures(count):
    return [{"image": image[None]} for image in wild_models.samples()[0][1200 : 1200 + count]]


def plans(target, source=None, patterns=(), precision="fp32"):
    stored = source and source.native.stored
    return recipes.as_is(
        profile.load(target), "litert", precision, "a TFLite file", patterns, suffix=".tflite", stored=stored
    )


def answers(path, feeds):
    """What LiteRT's interpreter gives for each sample, outputs in the file's order."""
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    found = []
    for feed in feeds:
        for entry, array in zip(interpreter.get_input_details(), feed.values(), strict=True):
            interpreter.set_tensor(entry["index"], array)
        interpreter.invoke()
        found.append([interpreter.get_tensor(entry["index"]) for entry in interpreter.get_output_details()])
    return found


def model_of(path):
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))


def test_a_file_from_the_wild_is_made_ready(tmp_path):
    path, made = written(tmp_path / "wild.tflite"), tmp_path / "ready.tflite"
    notes = ready.made_ready(path, made)
    assert notes == (
        "weights that the source stores smaller were widened to float32 (2 tensors)",
        "activations merged into the operators before them (1)",
    )
    graph, model = tflite.read(made), model_of(made)
    assert graph.operators == ("CONV_2D", "FULLY_CONNECTED")
    # The field that ai-edge-quantizer reads; 0 is ADD.
    assert {code.builtinCode for code in model.operatorCodes} >= {Operator.CONV_2D, Operator.FULLY_CONNECTED}
    tensors = model.subgraphs[0].tensors
    assert len({tensor.name for tensor in tensors}) == len(tensors) == 6
    assert all(tensor.quantization is None or tensor.quantization.scale is None for tensor in tensors)
    used = {index for step in graph.steps for index in (*step.inputs, *step.outputs)} - {-1}
    assert used == set(range(len(tensors)))
    assert {name: list(side) for name, side in graph.signature.items()} == {
        "inputs": ["args_0"],
        "outputs": ["output_0"],
    }
    filters, rows, scales = wild_models.weights()
    for name, wanted in ((b"wide", filters.astype(np.float32)), (b"large", rows * scales[:, None])):
        (tensor,) = (tensor for tensor in tensors if tensor.name == name)
        np.testing.assert_array_equal(
            np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.float32), wanted.ravel()
        )
    # Data of what is gone is gone.
    assert sum(buffer.data is not None for buffer in model.buffers) == 3
    feeds = pictures(4)
    for (wanted,), (given,) in zip(answers(path, feeds), answers(made, feeds), strict=True):
        np.testing.assert_allclose(given, wanted, atol=1e-5)


def half_at(place):
    """The activation's input is also read by something else, or given."""

    def damage(made):
        if place == "output":
            made.graph.outputs.append(6)
        elif place == "inside":
            made.graph.operators[
                2
            ].builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.RELU6
        else:
            twice = made.tensor("twice", (1, 8, 8, 8))
            made.step(Operator.RELU, [6], twice)
            made.graph.outputs.append(twice)

    return damage


@pytest.mark.parametrize("place", ["output", "inside", "reader"])
def test_an_activation_stays_alone_where_the_value_before_it_is_wanted(place, tmp_path):
    def damage(made):
        # Names apart: an output is bound by its own.
        made.graph.tensors[6].name = b"before"
        half_at(place)(made)

    path, made = written(tmp_path / "wild.tflite", damage), tmp_path / "ready.tflite"
    notes = ready.made_ready(path, made)
    assert not any("merged" in note for note in notes)
    assert Counter(tflite.read(made).operators)["RELU"] == (2 if place == "reader" else 1)
    feeds = pictures(2)
    for wanted, given in zip(answers(path, feeds), answers(made, feeds), strict=True):
        for one, other in zip(wanted, given, strict=True):
            np.testing.assert_allclose(other, one, atol=1e-5)


@pytest.mark.parametrize(
    ("activation", "inside"),
    [
        (Operator.RELU6, schema.ActivationFunctionType.RELU6),
        (Operator.RELU_N1_TO_1, schema.ActivationFunctionType.RELU_N1_TO_1),
    ],
)
def test_other_activations_are_merged_as_what_they_are(activation, inside, tmp_path):
    def damage(made):
        made.model.operatorCodes[1].deprecatedBuiltinCode = activation

    path, made = written(tmp_path / "wild.tflite", damage), tmp_path / "ready.tflite"
    ready.made_ready(path, made)
    (step, _) = model_of(made).subgraphs[0].operators
    assert step.builtinOptions.fusedActivationFunction == inside
    feeds = [{"image": 40 * feed["image"]} for feed in pictures(2)]
    for (wanted,), (given,) in zip(answers(path, feeds), answers(made, feeds), strict=True):
        np.testing.assert_allclose(given, wanted, rtol=1e-4, atol=1e-4)


def test_every_recipe_computes_what_the_file_does(tmp_path):
    """Each in its precision: what is stored or computed in eight bits is, and answers are near."""
    feeds = pictures(40)
    given = prepared(written(tmp_path / "wild.tflite"), feeds)
    known = {plan.name: plan for plan in plans("raspberry-pi-5")}
    wanted = [outputs_of_source(given, feed) for feed in feeds]
    for name in RECIPES:
        folder = tmp_path / name.replace("/", "-")
        folder.mkdir()
        artifact = get("litert").convert(given, known[name], folder)
        kinds = Counter(tensor.kind for tensor in tflite.read(folder / artifact.model).tensors)
        assert kinds["FLOAT16" if name == "litert/fp16" else "INT8"] >= 2, (name, kinds)
        assert operators(artifact)["RELU"] == 0
        found = [outputs(artifact, given, feed)["scores"] for feed in feeds]
        error = np.square(np.subtract(found, wanted)).sum() / np.square(wanted).sum()
        assert error < 1e-3, (name, error)


def outputs_of_source(given, feed):
    return given.source.reference.run(feed)["scores"].copy()


def integers_that_compute(made):
    """int8 weights read by their operator itself, as of files made by `Optimize.DEFAULT` without data."""
    made.graph.operators[4].inputs = [7, 3, -1]
    del made.graph.operators[1]


def input_given(made):
    made.graph.outputs.append(0)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (integers_that_compute, r"holds integers with a scale \(small\) .* build from the float model"),
        (input_given, "an input of it is an output too"),
    ],
)
def test_what_cannot_be_made_ready_is_told(damage, says, tmp_path):
    with pytest.raises(Unsupported, match=says):
        ready.made_ready(written(tmp_path / "wild.tflite", damage), tmp_path / "ready.tflite")


def test_weights_that_are_too_large_when_widened_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(ready, "MOST_BYTES", 20_000)
    with pytest.raises(Unsupported, match="a TFLite file holds less than"):
        ready.made_ready(written(tmp_path / "wild.tflite"), tmp_path / "ready.tflite")


def test_what_was_made_ready_wrong_is_not_used(tmp_path, monkeypatch):
    feeds = pictures(4)
    given = prepared(written(tmp_path / "wild.tflite"), feeds)
    values = ready._values
    monkeypatch.setattr(ready, "_values", lambda *words: [0.5 * array for array in values(*words)])
    (plan,) = plans("raspberry-pi-5", patterns=["litert/dynamic-int8"])
    with pytest.raises(ToolFailedError, match="differs from the source by"):
        get("litert").convert(given, plan, tmp_path)


def test_whole_numbers_reach_the_file_as_wide_as_it_takes_them(tmp_path):
    """litert-torch narrows 64-bit inputs; a file has its own."""

    def damage(made):
        made.model.operatorCodes.append(made.code(Operator.CAST))
        number = made.tensor("number", (1, 8, 8, 1), kind=Kind.INT64)
        made.graph.tensors[0].name = b"wide image"
        cast = schema.CastOptionsT()
        cast.inDataType, cast.outDataType = Kind.INT64, Kind.FLOAT32
        made.step(Operator.DEQUANTIZE, [number], 0, cast)
        step = made.graph.operators.pop()
        step.opcodeIndex = len(made.model.operatorCodes) - 1
        made.graph.operators.insert(0, step)
        made.graph.inputs = [number]

    feeds = [{"number": np.rint(16 * feed["image"]).astype(np.int64)} for feed in pictures(8)]
    given = prepared(written(tmp_path / "wild.tflite", damage), feeds)
    assert given.source.inputs[0].dtype == "int64"
    (plan,) = plans("raspberry-pi-5", patterns=["litert/static-int8"])
    artifact = get("litert").convert(given, plan, tmp_path)
    wanted = outputs_of_source(given, feeds[0])
    np.testing.assert_allclose(
        outputs(artifact, given, feeds[0])["scores"], wanted, atol=0.05 * np.abs(wanted).max()
    )


@pytest.mark.parametrize(
    ("target", "half", "wanted"),
    [
        ("raspberry-pi-5", False, ["as-is", "fp16", "static-int8", "dynamic-int8", "weights-int8"]),
        # The file's own weights are float16.
        ("raspberry-pi-5", True, ["as-is", "static-int8", "dynamic-int8", "weights-int8"]),
        ("x86-64-v3", True, ["as-is", "static-int8", "dynamic-int8", "weights-int8"]),
        # The file itself is none of its candidates, nor worth a line.
        ("arm-ethos-u55-128", True, ["static-int8", "static-int16x8", "percentile-int8"]),
    ],
)
def test_a_profile_gets_what_is_not_the_file_again(target, half, wanted):
    stored = "fp16" if half else None
    found = recipes.as_is(profile.load(target), "litert", "fp32", "a file", suffix=".tflite", stored=stored)
    assert [plan.recipe.name for plan in found if plan.recipe.engine == "litert"] == [
        f"litert/{name}" for name in wanted
    ]
    assert not any(plan.obstacle for plan in found)
    others = {plan.recipe.name for plan in found if plan.recipe.engine == "openvino"}
    assert others == (set() if "ethos" in target else {"openvino/f32", "openvino/static-int8"})


def test_what_is_asked_for_alone_says_why_it_is_refused():
    (plan,) = plans("arm-ethos-u55-128", patterns=["litert/as-is"])
    assert plan.obstacle == "the source computes in fp32; arm-ethos-u55-128 takes int8"


def test_an_integer_file_stays_as_it_is():
    found = [plan.name for plan in plans("raspberry-pi-5", precision="int8")]
    assert found == ["litert/as-is", "openvino/kept-int8"]


def words(folder: Path, *targets: str) -> list[str]:
    images, labels = wild_models.samples()
    np.savez(folder / "calib.npz", image=images[1200:1260])
    np.savez(folder / "eval.npz", image=images[1300:], labels=labels[1300:])
    return [
        str(written(folder / "wild.tflite")), "--name", "digits", "--version", "1.0.0", "--calibration",
        str(folder / "calib.npz"), "--evaluation", str(folder / "eval.npz"), "--max-accuracy-drop", "0.06",
        "--out", str(folder / "dist"), "--json", str(folder / "r.json"),
        *(word for target in targets for word in ("--target", target)),
    ]  # fmt: skip


def test_a_build_for_an_arm_board_and_an_ethos_u(run_build, tmp_path):
    result = run_build(*words(tmp_path, "raspberry-pi-5", "arm-ethos-u55-128"), "--recipe", "litert/*")
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "r.json").read_text())
    made = {(one["profile"], one["recipe"]): one for one in told["candidates"]}
    for name in ("as-is", *(recipe.partition("/")[2] for recipe in RECIPES[1:])):
        one = made["raspberry-pi-5", f"litert/{name}"]
        assert one["status"] in ("picked", "alternate", "stands", "passed", "slower"), one
        assert abs(one["accuracy"]["drop"]) < 0.03, one
    assert ("raspberry-pi-5", "litert/fp16") not in made
    by_target = {entry["profile"]: entry for entry in told["bundles"]}
    # A quarter of float16 weights and of int8 ones, which most of them are here.
    assert by_target["arm-ethos-u55-128"]["recipe"].startswith("litert/static")
    found = bundle.read(Path(by_target["arm-ethos-u55-128"]["path"]))
    found.extract(tmp_path / "b")
    assert tflite.read(tmp_path / "b" / "model" / vela.MODEL).operators == (tflite.NPU_OPERATOR,)
    assert [(spec.name, spec.dtype) for spec in found.manifest.inputs] == [("image", "float32")]


def test_layers_are_told_apart_and_left_in_float(tmp_path):
    feeds = pictures(16)
    given = prepared(written(tmp_path / "wild.tflite"), feeds)
    (plan,) = plans("raspberry-pi-5", patterns=["litert/static-int8"])
    backend = get("litert")
    (tmp_path / "whole").mkdir()
    artifact = backend.convert(given, plan, tmp_path / "whole")
    errors = backend.sensitivity(given, plan, artifact)
    assert {error.name for error in errors} == {"conv_2d.0", "fully_connected.1"}
    left = replace(plan, tuning=recipes.Tuning("mixed", (errors[0].name,)))
    (tmp_path / "mixed").mkdir()
    mixed = backend.convert(given, left, tmp_path / "mixed")
    assert any(note.startswith("in float within the integer model") for note in mixed.notes)
    assert not any(note.startswith("in float") for note in artifact.notes)
