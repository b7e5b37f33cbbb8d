"""Names of classes that an ONNX file carries: read, kept in the bundle, given by post-processing that has none."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from converters.bundle.naming import named
from converters.judge.text import Alphabet
from converters.source import labels
from edgekit.cli import cli
from edgekit.manifest import Step, TensorSpec

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SCORES = (TensorSpec("logits", "float32", (1, 3)),)


def carrying(**metadata):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph)
    for key, text in metadata.items():
        model.metadata_props.add(key=key, value=text)
    return model


@pytest.mark.parametrize(
    ("metadata", "outputs", "wanted"),
    [
        ({"names": "{0: 'cat', 1: 'dog', 2: 'owl'}"}, SCORES, ("cat", "dog", "owl")),
        # A detector's rows: four numbers of a box, then the classes.
        ({"names": "{0: 'cat', 1: 'dog'}"}, (TensorSpec("o", "float32", (1, 6, 8400)),), ("cat", "dog")),
        # After a suppression the class is a number in the last column of as many rows as there are.
        ({"names": "{0: 'cat', 1: 'dog'}"}, (TensorSpec("o", "float32", (0, 6)),), ("cat", "dog")),
        ({"names": "{0: 'cat', 1: 'dog'}"}, (TensorSpec("o", "float32", (1, 300, 6)),), ("cat", "dog")),
        ({"names": "a,b,c,d"}, (TensorSpec("o", "float32", (1, 6)),), ()),
        ({"id2label": '{"1": "dog", "0": "cat", "2": "owl"}'}, SCORES, ("cat", "dog", "owl")),
        ({"classes": '["a", "b", "c"]'}, SCORES, ("a", "b", "c")),
        ({"Labels": "a, b, c"}, SCORES, ("a", "b", "c")),
        ({"class_names": "a\nb\nc\n"}, SCORES, ("a", "b", "c")),
        # A recogniser's blank before, and PaddleOCR's space behind.
        ({"character": "a"}, SCORES, ()),
        ({"character": "a\nb"}, (TensorSpec("o", "float32", (1, 40, 4)),), ("", "a", "b", " ")),
        ({"character": "a\nb"}, SCORES, ("", "a", "b")),
        # What is no list of names for these outputs.
        ({"names": "{0: 'cat', 2: 'owl'}"}, SCORES, ()),
        ({"names": "__import__('os').system('true')"}, SCORES, ()),
        ({"names": "[" * 5000}, SCORES, ()),
        ({"names": "a,b,c,d"}, SCORES, ()),
        ({"names": json.dumps(["a", "b", "c" * 201])}, SCORES, ()),
        ({}, SCORES, ()),
    ],
)
def test_what_a_file_says(metadata, outputs, wanted):
    assert labels.of_model(carrying(**metadata), outputs) == wanted


def test_a_classifier_of_scikit_learn_names_its_classes():
    model = carrying()
    model.graph.node.append(
        helper.make_node(
            "LinearClassifier", ["x"], ["l", "p"], domain="ai.onnx.ml", classlabels_strings=["a", "b", "c"]
        )
    )
    assert labels.of_model(model, SCORES) == ("a", "b", "c")


def test_post_processing_without_labels_gets_the_files_own_and_the_users_stand():
    bare, own = (
        Step("top_k", {"output": "logits"}),
        Step("top_k", {"output": "logits", "labels": ["x", "y", "z"]}),
    )
    assert named([bare], SCORES, ("a", "b", "c")).steps[0].args["labels"] == ["a", "b", "c"]
    assert named([bare], SCORES, ("a", "b", "c")).left == ()
    assert named([own], SCORES, ("a", "b", "c")).steps == (own,)
    assert named([own], SCORES, ("a", "b", "c")).left == ("a", "b", "c")
    # Four names for three entries are a detector's, or another output's.
    assert named([bare], SCORES, ("a", "b", "c", "d")).steps == (bare,)


def test_a_build_keeps_them_and_the_answer_says_the_name(digits, run_build, tmp_path):
    model = onnx.load(str(digits.folder / "model.onnx"))
    model.metadata_props.add(key="names", value=repr(dict(enumerate(DIGITS))))
    onnx.save(model, str(tmp_path / "named.onnx"))
    (tmp_path / "edgekit.toml").write_text(f"""
        model = {{ name = "digits", version = "1", source = "named.onnx" }}
        inputs.x.shape = [1, 1, 8, 8]
        postprocess = [{{ op = "top_k", output = "logits", k = 2 }}]
        data = {{ evaluation = "{digits.folder / "eval.npz"}", metric = "top1" }}
        [targets.x86-64-v3]
    """)
    words = ["--project", tmp_path, "--recipe", "onnxruntime/fp32", "--out", tmp_path / "dist"]
    result = run_build(*words, "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    (entry,) = json.loads((tmp_path / "r.json").read_text())["bundles"]
    rows = np.load(digits.folder / "eval.npz")
    np.save(tmp_path / "one.npy", rows["x"][0])
    answer = CliRunner().invoke(cli, ["run", entry["path"], str(tmp_path / "one.npy"), "--json"])
    assert answer.exit_code == 0, answer.output
    (first, _) = json.loads(answer.output.splitlines()[0])["outputs"]["logits"]
    assert first["label"] == DIGITS[first["index"]]
    # Without a step that says them, the bundle still does.
    text = (tmp_path / "edgekit.toml").read_text()
    (tmp_path / "edgekit.toml").write_text(
        "\n".join(line for line in text.splitlines() if "top_k" not in line)
    )
    assert run_build(*words, "--json", tmp_path / "r.json").exit_code == 0
    (entry,) = json.loads((tmp_path / "r.json").read_text())["bundles"]
    shown = CliRunner().invoke(cli, ["inspect", entry["path"]])
    assert "10: 'zero', 'one', 'two', 'three', 'four', …" in " ".join(shown.output.split())


def test_an_alphabet_of_the_file_serves_the_error_rates():
    """PP-OCR's recognisers carry theirs; `[data] alphabet` need not be given."""
    rapidocr = pytest.importorskip("rapidocr")
    path = Path(rapidocr.__file__).parent / "models" / "PP-OCRv6_rec_small.onnx"
    if not path.is_file():
        pytest.skip("no recogniser beside rapidocr")
    found = labels.of_model(onnx.load(str(path)), (TensorSpec("o", "float32", (1, 40, 18710)),))
    assert len(found) == 18710
    assert found[0] == ""
    assert found[-1] == " "
    assert len(Alphabet(found).characters) == 18710
