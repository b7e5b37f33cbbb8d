"""TFLite files whose recurrent layers are one operator: each call from zeros, int8 where the kernels have it."""

from dataclasses import replace

import numpy as np
import pytest
import toy_tflite
from ai_edge_litert import schema_py_generated as schema
from litert_models import outputs
from wild_models import plans, prepared

from converters.backends import Unsupported, get
from converters.backends.artifact import copied
from converters.backends.litert import tables
from converters.recipes.recipes import Tuning
from converters.source import tflite

STEPS, WIDTH, UNITS = 6, 5, 32
BOARD = "raspberry-pi-5"


@pytest.fixture
def feeds():
    made = np.random.default_rng(4)
    return [{"in": made.normal(size=(1, STEPS, WIDTH)).astype(np.float32)} for _ in range(6)]


@pytest.fixture
def source(feeds, tmp_path):
    path = tmp_path / "lstm.tflite"
    path.write_bytes(toy_tflite.lstm(STEPS, WIDTH, UNITS))
    return prepared(path, feeds)


def converted(source, recipe, folder, **changes):
    (plan,) = plans(BOARD, patterns=[recipe])
    (folder / "made").mkdir()
    return get("litert").convert(source, replace(plan, **changes), folder / "made")


def test_every_sample_starts_from_zeros(source, feeds):
    for feed in (feeds[0], feeds[1], feeds[0]):
        found = source.source.reference.run(feed)["out"]
        np.testing.assert_allclose(found, toy_tflite.lstm_expected(feed["in"], UNITS), atol=1e-5)


def test_its_candidates_are_loaded_so_and_say_it(source, tmp_path):
    for made in (copied(source.source.native, tmp_path), converted(source, "litert/dynamic-int8", tmp_path)):
        assert made.options == {"variables": "reset"}
        assert any("it is set to zero before each" in note for note in made.notes)


def test_dynamic_int8_has_its_matrices_in_int8_and_is_near(source, feeds, tmp_path):
    artifact = converted(source, "litert/dynamic-int8", tmp_path)
    graph = tflite.read(artifact.folder / artifact.model)
    assert sum(tensor.kind == "INT8" for tensor in graph.tensors) == 8
    assert artifact.size_bytes < 0.5 * (tmp_path / "lstm.tflite").stat().st_size
    wanted = np.array([source.source.reference.run(feed)["out"] for feed in feeds])
    found = np.array([outputs(artifact, source, feed)["out"] for feed in feeds])
    gap = np.square(found - wanted).sum() / np.square(wanted).sum()
    assert 0 < gap < 1e-2


def test_a_layer_that_is_to_stay_in_float_does_and_then_nothing_is_int8(source, tmp_path):
    tuning = Tuning("mixed", ("unidirectional_sequence_lstm.0",))
    with pytest.raises(Unsupported, match="nothing of the model becomes int8 in LiteRT: UNIDIRECTIONAL_SEQ"):
        converted(source, "litert/dynamic-int8", tmp_path, tuning=tuning)


def test_what_is_int8_in_a_loop_alone_is_int8():
    """A recurrent layer of Keras 3 has all of its weights there."""
    made = toy_tflite.Tables()
    made.tensor("x", (1, 4))
    body = toy_tflite.Tables()
    body.tensor("w", (4, 4), np.ones((4, 4), np.int8), schema.TensorType.INT8)
    made.model.subgraphs.append(body.graph)
    assert tables.types(made.model) == {schema.TensorType.FLOAT32, schema.TensorType.INT8}


@pytest.mark.parametrize(
    ("recipe", "kind", "share"), [("litert/weights-int8", "INT8", 0.55), ("litert/fp16", "FLOAT16", 0.6)]
)
def test_its_weights_are_stored_smaller_where_it_computes_in_float(
    recipe, kind, share, source, feeds, tmp_path
):
    artifact = converted(source, recipe, tmp_path)
    graph = tflite.read(artifact.folder / artifact.model)
    assert sum(tensor.kind == kind and tensor.is_constant for tensor in graph.tensors) == 8
    assert artifact.size_bytes < share * (tmp_path / "lstm.tflite").stat().st_size
    for feed in (*feeds, feeds[0]):
        found = outputs(artifact, source, feed)["out"]
        np.testing.assert_allclose(found, toy_tflite.lstm_expected(feed["in"], UNITS), atol=0.02)


def test_it_is_among_the_layers_that_int8_may_hurt(source, tmp_path):
    artifact = converted(source, "litert/dynamic-int8", tmp_path)
    (plan,) = plans(BOARD, patterns=["litert/dynamic-int8"])
    (error,) = get("litert").sensitivity(source, plan, artifact)
    assert error.name == "unidirectional_sequence_lstm.0"
    assert 20 < error.snr_db < 60


def test_a_recipe_that_changes_nothing_is_no_candidate(source, tmp_path):
    with pytest.raises(Unsupported, match="nothing of the model becomes int8 in LiteRT"):
        converted(source, "litert/static-int8", tmp_path)
