"""Keras files and SavedModels: converted by TensorFlow where there is one, one sentence where not."""

import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from converters.source import tensorflow_child, tensorflow_source
from converters.source.code import CodeGate
from converters.source.opening import open_source
from converters.source.project import from_flags
from edgekit.errors import SourceError

MAKES = """
    import keras, numpy as np
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="image")
    hidden = keras.layers.Conv2D(4, 3, activation="relu")(image)
    hidden = keras.layers.Flatten()(hidden)
    net = keras.Model(image, [keras.layers.Dense(3, name="scores")(hidden), keras.layers.Dense(1, name="size")(hidden)])
    rows = keras.Input((6, 5), name="rows")
    gru = keras.Model(rows, keras.layers.Dense(2, name="scores")(keras.layers.GRU(7)(rows)))
    net.save("net.keras")
    net.save("net.h5")
    net.export("saved", verbose=False)
    gru.export("saved_gru", verbose=False)
    both = keras.Model(rows, keras.layers.Dense(2)(keras.layers.Bidirectional(keras.layers.LSTM(7))(rows)))
    both.export("saved_both", verbose=False)
    gru.save("gru.keras")
    opened = keras.Input((None, 5), name="rows")
    keras.Model(opened, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling1D()(opened))).save("open.keras")
    given = keras.Input((5,), name="x")
    keras.Model(given, keras.layers.Lambda(lambda tensor: 2 * tensor)(given)).save("lambda.keras")
    random = np.random.default_rng(0)
    image, rows = random.random((1, 8, 8, 1), np.float32), random.random((1, 6, 5), np.float32)
    scores, size = net.predict(image, verbose=0)
    np.savez("wanted.npz", image=image, rows=rows, scores=scores, size=size, gru=gru.predict(rows, verbose=0), both=both.predict(rows, verbose=0))
"""


def opened(path, allowed=True, **shapes):
    project = from_flags({
        "model": {"name": "m", "version": "1", "source": str(path)},
        "inputs": {name: {"shape": shape, "dtype": "float32"} for name, shape in shapes.items()},
        "targets": {"x86-64-v3": {}}, "data": {"evaluation": "unused"},
    })  # fmt: skip
    return open_source(project, CodeGate(allowed, lambda _: None))


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A program in the place of TensorFlow's Python, which answers a question for its version and then does as told."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "net.keras").write_bytes(b"PK")

    def put(then: str) -> Path:
        program = tmp_path / "python"
        program.write_text(f'#!/bin/sh\nif [ "$2" = -c ]; then echo 2.21; exit 0; fi\n{then}\n')
        program.chmod(0o755)
        monkeypatch.setenv(tensorflow_source.PYTHON, str(program))
        return tmp_path / "net.keras"

    return put


def test_what_tensorflow_says_is_told_with_the_way_that_needs_none(stand_in):
    path = stand_in("""echo '{"error": "no such layer: Odd"}'; exit 3""")
    with pytest.raises(
        SourceError, match=r"TensorFlow cannot convert it: no such layer: Odd.*KERAS_BACKEND=torch"
    ):
        opened(path)


def test_a_child_that_dies_is_told_by_its_last_words(stand_in, tmp_path):
    with pytest.raises(SourceError, match="TensorFlow ended with status 9: killed by the kernel"):
        opened(stand_in("echo killed by the kernel >&2; exit 9"))
    assert not list((tmp_path / "cache").rglob("*.tflite"))


def test_nothing_is_converted_with_no_code_or_by_a_python_that_is_not_there(stand_in, monkeypatch, tmp_path):
    path = stand_in("exit 0")
    with pytest.raises(SourceError, match="--no-code refuses"):
        opened(path, allowed=False)
    monkeypatch.setenv(tensorflow_source.PYTHON, str(tmp_path / "nowhere"))
    with pytest.raises(SourceError, match="there is no such Python"):
        opened(path)
    with pytest.raises(SourceError, match="there is no such model file"):
        opened(tmp_path / "absent.keras")


def test_a_model_is_converted_once_for_each_content_and_shape(stand_in, tmp_path):
    """The stand-in makes no model, which the reader of TFLite then says; how often it was asked is what counts."""
    path = stand_in(f'echo "$5" >> {tmp_path}/asked; echo nothing > "$4"')
    for shapes in ({}, {}, {"image": [2, 8, 8, 1]}):
        with pytest.raises(Exception, match=r"(?i)tflite|flatbuffer|model"):
            opened(path, **shapes)
    assert len((tmp_path / "asked").read_text().splitlines()) == 2
    path.write_bytes(b"other")
    with pytest.raises(Exception, match=r"(?i)tflite|flatbuffer|model"):
        opened(path)
    assert len((tmp_path / "asked").read_text().splitlines()) == 3


class Spec:
    """As TensorFlow's, as far as a shape goes."""

    def __init__(self, sizes):
        self.shape = self
        self.sizes = sizes
        self.rank = None if sizes is None else len(sizes)

    def as_list(self):
        return list(self.sizes)


def test_the_batch_becomes_one_and_other_open_axes_are_asked_for():
    assert tensorflow_child._closed("x", Spec([None, 8, 8, 1]), None) == [1, 8, 8, 1]
    assert tensorflow_child._closed("x", Spec([None, None, 5]), [2, 6, 5]) == [2, 6, 5]
    assert tensorflow_child._closed("x", Spec(None), [2, 6]) == [2, 6]
    for sizes, given in (([None, None, 5], None), (None, None), ([None, 8], [1, 9]), ([None, 8], [8])):
        with pytest.raises(tensorflow_child._Refused, match="--shape"):
            tensorflow_child._closed("x", Spec(sizes), given)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Files of Keras and TensorFlow, with what Keras computes."""
    python = os.environ.get(tensorflow_source.PYTHON) or (sys.executable if find_spec("tensorflow") else None)
    if python is None:
        pytest.skip(
            f"TensorFlow is not installed, and {tensorflow_source.PYTHON} names no Python that has it"
        )
    folder = tmp_path_factory.mktemp("keras")
    done = subprocess.run(
        [python, "-I", "-c", textwrap.dedent(MAKES)], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.proof
@pytest.mark.parametrize("name", ["net.keras", "net.h5", "saved", "gru.keras", "saved_gru", "saved_both"])
def test_a_model_computes_what_keras_computes(made, name, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    wanted = np.load(made / "wanted.npz")
    source = opened(made / name)
    (spec,) = source.inputs
    answers = source.reference.run({spec.name: wanted[spec.name]})
    if name == "gru.keras":
        np.testing.assert_allclose(answers["scores"], wanted["gru"], atol=1e-6)
    elif name in ("saved_gru", "saved_both"):
        assert spec.shape == (1, 6, 5)
        np.testing.assert_allclose(answers["output_0"], wanted[name.removeprefix("saved_")], atol=1e-6)
    elif name == "saved":
        assert sorted(answers) == ["output_0", "output_1"]
        np.testing.assert_allclose(answers["output_0"], wanted["scores"], atol=1e-6)
    else:
        assert sorted(answers) == ["scores", "size"]
        np.testing.assert_allclose(answers["scores"], wanted["scores"], atol=1e-6)
        np.testing.assert_allclose(answers["size"], wanted["size"], atol=1e-6)


@pytest.mark.proof
def test_open_axes_and_code_inside_are_told(made, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    with pytest.raises(SourceError, match=r"the shape of input 'rows' is open.*--shape rows="):
        opened(made / "open.keras")
    assert opened(made / "open.keras", rows=[1, 6, 5]).inputs[0].shape == (1, 6, 5)
    with pytest.raises(SourceError, match="arbitrary code"):
        opened(made / "lambda.keras")


COMPARES = """
    import runpy, sys
    import tensorflow as tf
    child = runpy.run_path(sys.argv[1])
    signature = [tf.TensorSpec([1, 4], tf.float32, "x")]
    def file(factor):
        net = tf.Module()
        net.call = tf.function(lambda x: {"y": factor * x})
        tf.saved_model.save(net, str(factor), signatures=net.call.get_concrete_function(*signature))
        return tf.lite.TFLiteConverter.from_saved_model(str(factor)).convert()
    traced = tf.function(lambda x: {"y": 2.0 * x}).get_concrete_function(*signature)
    child["_compare"](tf, file(2.0), traced, signature)
    child["_compare"](tf, file(2.1), traced, signature)
"""


@pytest.mark.proof
def test_a_file_that_gives_something_else_than_the_model_is_refused(made, tmp_path):
    """Lists of a SavedModel's loops are given the batch, which is held against the model itself."""
    python = os.environ.get(tensorflow_source.PYTHON) or sys.executable
    words = [python, "-I", "-c", textwrap.dedent(COMPARES), str(tensorflow_source.CHILD)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "_Refused: with closed lists its loops give another 'y'" in done.stderr
    assert done.stderr.count("_compare") == 1
