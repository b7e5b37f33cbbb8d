"""A channel that reaches a thousand times as far as the others leaves these no steps of 256, until it is brought nearer."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from litert_models import outputs
from wild_models import Operator, Wild, plans, prepared

from converters.backends import get
from converters.backends.litert import equalized, ready

FARTHER = 1000
NONE, RELU, RELU6 = (getattr(schema.ActivationFunctionType, name) for name in ("NONE", "RELU", "RELU6"))


def feeds(count=12):
    random = np.random.default_rng(3)
    return [{"image": random.normal(size=(1, 8, 8, 1)).astype(np.float32)} for _ in range(count)]


def written(path, farther=FARTHER, inside=NONE, hidden_is_given=False):
    """image (1, 8, 8, 1) → CONV_2D, 8 channels → CONV_2D 1x1 → scores; the first channel is `farther` times as large between
    the two.
    """
    random = np.random.default_rng(4)
    first, bias = random.normal(size=(8, 3, 3, 1)), random.normal(size=8)
    second = random.normal(size=(4, 1, 1, 8))
    first[0], bias[0], second[..., 0] = first[0] * farther, bias[0] * farther, second[..., 0] / farther
    made = Wild()
    image = made.tensor("image", (1, 8, 8, 1))
    hidden, scores = made.tensor("hidden", (1, 8, 8, 8)), made.tensor("scores", (1, 8, 8, 4))
    held = [
        made.tensor(name, array.shape, array.astype(np.float32))
        for name, array in (("w", first), ("b", bias), ("v", second), ("c", np.zeros(4)))
    ]
    for inputs, output, activation in (
        ([image, *held[:2]], hidden, inside),
        ([hidden, *held[2:]], scores, NONE),
    ):
        options = schema.Conv2DOptionsT()
        options.padding, options.strideH, options.strideW = schema.Padding.SAME, 1, 1
        options.fusedActivationFunction = activation
        made.step(Operator.CONV_2D, inputs, output, options)
    made.graph.inputs, made.graph.outputs = [image], [scores, *([hidden] if hidden_is_given else [])]
    return made.written(path)


def error(folder, farther):
    """Of static int8: what is lost, as a share of the outputs' power."""
    folder.mkdir()
    given = prepared(written(folder / "model.tflite", farther), feeds())
    (plan,) = plans("raspberry-pi-5", patterns=["litert/static-int8"])
    (folder / "made").mkdir()
    artifact = get("litert").convert(given, plan, folder / "made")
    wanted = [given.source.reference.run(feed)["scores"].copy() for feed in feeds()]
    found = [outputs(artifact, given, feed)["scores"] for feed in feeds()]
    told = any("brought nearer" in note for note in artifact.notes)
    return np.square(np.subtract(found, wanted)).sum() / np.square(wanted).sum(), told


def test_static_integers_lose_no_more_by_it(tmp_path, monkeypatch):
    even, is_told = error(tmp_path / "even", 1)
    assert not is_told
    far, is_told = error(tmp_path / "far", FARTHER)
    assert is_told
    assert far < 3 * even
    monkeypatch.setattr(equalized, "FAR", 1e9)
    left, is_told = error(tmp_path / "left", FARTHER)
    assert not is_told
    assert left > 100 * even


def made_ready(tmp_path, **kind):
    path = tmp_path / "ready.tflite"
    ready.made_ready(written(tmp_path / "model.tflite", **kind), path)
    return path


def taken():
    return [{"args_0": feed["image"]} for feed in feeds()]


@pytest.mark.parametrize("inside", [NONE, RELU])
def test_in_float_nothing_changes_at_all(inside, tmp_path):
    path = made_ready(tmp_path, inside=inside)
    before, content = answers(path), path.read_bytes()
    assert equalized.equalized(path, taken()) == 1
    np.testing.assert_array_equal(answers(path), before)
    assert path.read_bytes() != content
    assert len(path.read_bytes()) <= len(content)


def answers(path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    found = []
    for feed in taken():
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], feed["args_0"])
        interpreter.invoke()
        found.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    return np.array(found)


@pytest.mark.parametrize("kind", [{"farther": 2}, {"inside": RELU6}, {"hidden_is_given": True}])
def test_what_has_no_such_channel_or_is_seen_otherwise_stays_to_the_byte(kind, tmp_path):
    path = made_ready(tmp_path, **kind)
    content = path.read_bytes()
    assert equalized.equalized(path, taken()) == 0
    assert path.read_bytes() == content
