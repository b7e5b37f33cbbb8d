"""Float TFLite files as they are found, made ready for LiteRT's quantizer, or told in one sentence why not."""

from collections import Counter

import numpy as np
import pytest
import wild_models
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from litert_models import operators, outputs
from wild_models import Kind, Operator, outputs_of_source, pictures, plans, prepared, written

from converters.backends import Unsupported, get
from converters.backends.litert import ready
from converters.source import tflite
from edgekit.errors import ToolFailedError


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


def test_axes_of_length_one_come_and_go_in_integers(tmp_path):
    """As around a Conv1D of Keras."""

    def damage(made):
        # EXPAND_DIMS itself refuses a scale that is left over.
        made.graph.tensors[7].quantization = None
        for code in (Operator.EXPAND_DIMS, Operator.SQUEEZE):
            made.model.operatorCodes.append(made.code(code))
        axis = made.tensor("axis", (1,), np.array([1], np.int32), Kind.INT32)
        more, less = made.tensor("more", (1, 1, 8, 8, 8)), made.tensor("less", (1, 8, 8, 8))
        for place, inputs, output in ((0, [7, axis], more), (1, [more], less)):
            made.step(Operator.RELU, inputs, output)
            made.graph.operators[-1].opcodeIndex = len(wild_models.CODES) + place
        made.graph.operators.append(made.graph.operators.pop(4))
        made.graph.operators[-1].inputs[0] = less

    feeds = pictures(20)
    path = written(tmp_path / "wild.tflite", damage)
    assert {"EXPAND_DIMS", "SQUEEZE"} <= set(tflite.read(path).operators)
    given = prepared(path, feeds)
    (plan,) = plans("raspberry-pi-5", patterns=["litert/static-int8"])
    (tmp_path / "made").mkdir()
    artifact = get("litert").convert(given, plan, tmp_path / "made")
    assert operators(artifact)["RESHAPE"] == 2
    assert not any(note.startswith("in float") for note in artifact.notes), artifact.notes
    wanted = outputs_of_source(given, feeds[0])
    found = outputs(artifact, given, feeds[0])["scores"]
    np.testing.assert_allclose(found, wanted, atol=0.05 * np.abs(wanted).max())


def test_names_are_apart_in_all_graphs_together(tmp_path):
    """As of a loop, whose body has a graph of its own; ranges go by name alone."""

    def damage(made):
        main, made.graph = made.graph, schema.SubGraphT()
        made.graph.tensors, made.graph.operators = [], []
        given, _, result = (made.tensor(name, (1, 8, 8, 8)) for name in ("image", "left over", "scores"))
        made.step(Operator.RELU, [given], result)
        made.graph.inputs, made.graph.outputs = [given], [result]
        made.model.subgraphs.append(made.graph)
        made.graph = main

    path, made = written(tmp_path / "wild.tflite", damage), tmp_path / "ready.tflite"
    ready.made_ready(path, made)
    main, other = model_of(made).subgraphs
    names = [tensor.name for graph in (main, other) for tensor in graph.tensors]
    assert len(set(names)) == len(names) == 8
    assert len(other.tensors) == 2
    feeds = pictures(2)
    for (wanted,), (given,) in zip(answers(path, feeds), answers(made, feeds), strict=True):
        np.testing.assert_allclose(given, wanted, atol=1e-5)
