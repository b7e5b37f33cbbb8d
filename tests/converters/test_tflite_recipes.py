"""LiteRT's own recipes of a float TFLite file, for each kind of profile."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import wild_models
from ai_edge_litert import schema_py_generated as schema
from litert_models import operators, outputs
from wild_models import Operator, outputs_of_source, pictures, plans, prepared, written

from converters.backends import Unsupported, get
from converters.backends.litert import int8, vela
from converters.backends.litert.graph import Layer
from converters.recipes import recipes
from converters.source import tflite
from edgekit import bundle, profile

RECIPES = ("litert/fp16", "litert/static-int8", "litert/dynamic-int8", "litert/weights-int8")


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


def test_a_loop_has_no_ranges(tmp_path):
    """As of a recurrent layer of Keras."""
    given = prepared(written(tmp_path / "wild.tflite"), pictures(1))
    loop = Layer("while.0", "WHILE", ("a",), ("b",), (0, 0))
    (plan,) = plans("raspberry-pi-5", patterns=["litert/static-int8"])
    with pytest.raises(
        Unsupported, match=r"a loop or branch \(WHILE\) computes; .* \(dynamic-int8, weights-int8\) need none"
    ):
        int8.quantized(given, plan, tmp_path / "wild.tflite", [loop])


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
    """The file itself in a build: `test_native`."""
    result = run_build(
        *words(tmp_path, "raspberry-pi-5", "arm-ethos-u55-128"), "--recipe", "litert/static-int8"
    )
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "r.json").read_text())
    made = {entry["profile"]: entry for entry in told["bundles"]}
    assert {entry["recipe"] for entry in made.values()} == {"litert/static-int8"}
    assert all(abs(entry["accuracy"]["drop"]) < 0.03 for entry in made.values())
    operators_of = {}
    for target, entry in made.items():
        found = bundle.read(Path(entry["path"]))
        found.extract(tmp_path / target)
        assert [(spec.name, spec.dtype) for spec in found.manifest.inputs] == [("image", "float32")]
        operators_of[target] = tflite.read(tmp_path / target / "model" / vela.MODEL).operators
    assert operators_of["arm-ethos-u55-128"] == (tflite.NPU_OPERATOR,)
    assert operators_of["raspberry-pi-5"] == ("QUANTIZE", "CONV_2D", "FULLY_CONNECTED", "DEQUANTIZE")


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


def with_activation(code, slopes=None):
    """Another activation in the RELU's place, with its slopes."""

    def damage(made):
        made.model.operatorCodes[1].deprecatedBuiltinCode = code
        if code == Operator.LEAKY_RELU:
            made.graph.operators[3].builtinOptionsType = schema.BuiltinOptions.LeakyReluOptions
            made.graph.operators[3].builtinOptions = schema.LeakyReluOptionsT()
            made.graph.operators[3].builtinOptions.alpha = 0.1
        if slopes is not None:
            made.graph.operators[3].inputs.append(made.tensor("slopes", (1, 1, len(slopes)), slopes))

    return damage


SLOPES = np.linspace(-0.5, 1.5, wild_models.CHANNELS, dtype=np.float32)


@pytest.mark.parametrize(
    ("code", "slopes"), [(Operator.PRELU, SLOPES), (Operator.PRELU, 0 * SLOPES), (Operator.LEAKY_RELU, None)]
)
def test_an_ethos_u_takes_activations_that_the_quantizer_leaves_in_float(code, slopes, tmp_path):
    feeds = pictures(30)
    given = prepared(written(tmp_path / "wild.tflite", with_activation(code, slopes)), feeds)
    (plan,) = plans("arm-ethos-u55-128", patterns=["litert/static-int8"])
    (tmp_path / "made").mkdir()
    artifact = get("litert").convert(given, plan, tmp_path / "made")
    (name,) = (name for name, value in vars(Operator).items() if value == code)
    assert operators(artifact) == {"CONV_2D": 1, name: 1, "FULLY_CONNECTED": 1}
    wanted = [outputs_of_source(given, feed) for feed in feeds]
    found = [outputs(artifact, given, feed)["scores"] for feed in feeds]
    assert np.square(np.subtract(found, wanted)).sum() < 2e-3 * np.square(wanted).sum()
    (tmp_path / "compiled").mkdir()
    compiled = vela.compiled(artifact, plan.constraints.vela, tmp_path / "compiled").compiled
    assert compiled.on_cpu == {}
    # A CPU has no quick kernel of it in integers, or none that gains.
    (plan,) = plans("raspberry-pi-5", patterns=["litert/static-int8"])
    (tmp_path / "cpu").mkdir()
    on_cpu = get("litert").convert(given, plan, tmp_path / "cpu")
    assert operators(on_cpu)["DEQUANTIZE"] == 2


def test_an_activation_that_is_wanted_in_float_too_stays_there(tmp_path):
    def damage(made):
        made.graph.tensors[7].name = b"seen"
        with_activation(Operator.PRELU, SLOPES)(made)
        made.graph.outputs.append(7)

    given = prepared(written(tmp_path / "wild.tflite", damage), pictures(4))
    (plan,) = plans("arm-ethos-u55-128", patterns=["litert/static-int8"])
    (tmp_path / "made").mkdir()
    artifact = get("litert").convert(given, plan, tmp_path / "made")
    assert operators(artifact)["PRELU"] == 1
    answer = outputs(artifact, given, pictures(1)[0])
    wanted = given.source.reference.run(pictures(1)[0])
    for name in ("scores", "seen"):
        np.testing.assert_allclose(answer[name], wanted[name], atol=0.05 * np.abs(wanted[name]).max())


BOARD = """
name = "toy"
extends = "x86-64-v3"
title = "A board with a toy of an accelerator"
engines = { litert = ">=2.1,<3" }
precisions = ["fp32", "int8"]
[quantization]
static_shapes_only = true
[accelerator]
kind = "litert-delegate"
delegate = "libtoy_delegate.so"
operators = ["FULLY_CONNECTED"]
"""


def test_a_delegate_gets_static_integers(tmp_path):
    (tmp_path / "toy.toml").write_text(BOARD)
    given = prepared(written(tmp_path / "wild.tflite"), pictures(8))
    found = {plan.name: plan for plan in plans(str(tmp_path / "toy.toml"), given.source)}
    assert list(found) == ["litert/as-is", "litert/static-int8"]
    assert all(plan.options["delegate"] == "libtoy_delegate.so" for plan in found.values())
    (tmp_path / "made").mkdir()
    artifact = get("litert").convert(given, found["litert/static-int8"], tmp_path / "made")
    assert operators(artifact)["FULLY_CONNECTED"] == 1
    assert "libtoy_delegate.so is to take 1 of" in artifact.notes[-1]
