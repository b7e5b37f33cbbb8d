"""Bad input: each is one clear sentence and an exit code, and nothing half-written is left."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from converters.source import tensorflow_source

PROJECT = """
[model]
name = "digits"
version = "1.0.0"
source = "model.onnx"
[inputs.x]
shape = [1, 1, 8, 8]
[data]
evaluation = "eval.npz"
[targets.x86-64-v3]
"""


def flags_with(digits, *, drop=(), **changes):
    words = digits.flags("model.onnx", "x86-64-v3")
    for flag in drop:
        at = words.index(f"--{flag}")
        del words[at : at + 2]
    for flag, value in changes.items():
        words[words.index(f"--{flag}") + 1] = str(value)
    return words


# What is wrong, how the flags change, the exit code, and words of the message.
FLAGS = [
    ("unknown profile", {"target": "raspberry-pi-9"}, 2, ["raspberry-pi-9", "known are", "raspberry-pi-5"]),
    ("profile file missing", {"target": "mine.toml"}, 2, ["mine.toml", "no such profile file"]),
    (
        "calibration folder missing",
        {"calibration": "/nowhere/calib"},
        2,
        ["/nowhere/calib", "no such file or folder"],
    ),
    ("version with a space", {"version": "1 0"}, 2, ["version"]),
    ("name in capitals", {"name": "Digits"}, 2, ["name"]),
    ("shape of words", {"shape": "x=one"}, 2, ["--shape x=one", "expected numbers"]),
    ("shape without a name", {"shape": "1,1,8,8"}, 2, ["--shape", "NAME=VALUE"]),
    ("shape that contradicts", {"shape": "x=1,1,9,9"}, 2, ["contradicts", "x: float32 1x1x8x8"]),
    ("shape of no input", {"shape": "y=1,1,8,8"}, 2, ["'y'", "no such input"]),
]


@pytest.mark.parametrize(
    ("changes", "code", "words"), [case[1:] for case in FLAGS], ids=[case[0] for case in FLAGS]
)
def test_a_wrong_flag(changes, code, words, digits, run_build, tmp_path):
    result = run_build(*flags_with(digits, **changes), "--out", tmp_path / "dist")
    assert result.exit_code == code
    for word in words:
        assert word in str(result.exception)
    assert not (tmp_path / "dist").exists()


def test_an_unknown_metric(digits, run_build, tmp_path):
    result = run_build(
        *digits.flags("model.onnx", "x86-64-v3"), "--metric", "top-one", "--out", tmp_path / "dist"
    )
    assert result.exit_code == 2
    assert "known are top1" in str(result.exception)


def write_text(path):
    path.write_text("this is no model")


def write_empty_graph(path):
    path.write_bytes(onnx.ModelProto().SerializeToString())


def write_weights(path):
    torch.save({"weight": torch.zeros(3)}, path)


def write_other(path):
    path.write_text("keras")


SOURCES = [
    ("a text file called .onnx", "bad.onnx", write_text, "not an ONNX model"),
    ("an empty .onnx", "empty.onnx", write_empty_graph, "not an ONNX model"),
    ("a text file called .pt", "bad.pt", write_text, "not TorchScript"),
    ("weights without a program", "weights.pt", write_weights, "holds weights but no program"),
    ("a text file called .pt2", "bad.pt2", write_text, "not a torch.export program"),
    ("a format that is unknown", "model.caffemodel", write_other, "give an ONNX file"),
    ("no such file", "absent.onnx", None, "no such model file"),
    ("no such factory file", "absent.py:make", None, "no such file"),
]


@pytest.mark.parametrize(
    ("name", "make", "words"), [case[1:] for case in SOURCES], ids=[case[0] for case in SOURCES]
)
def test_a_file_that_is_no_model(name, make, words, digits, run_build, tmp_path):
    if make is not None:
        make(tmp_path / name)
    flags = digits.flags("model.onnx", "x86-64-v3")
    flags[0] = str(tmp_path / name)
    result = run_build(*flags, "--out", tmp_path / "dist")
    assert result.exit_code == 2
    assert words in str(result.exception)
    assert not (tmp_path / "dist").exists()


def test_an_open_shape_lists_what_is_open_and_the_flag_that_closes_it(digits, run_build, tmp_path):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g",
        [value("x", 1, ["batch", 3, "?", 8])], [value("y", 1, None)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    (tmp_path / "open.onnx").write_bytes(model.SerializeToString())
    flags = flags_with(digits, drop=["shape"])
    flags[0] = str(tmp_path / "open.onnx")
    result = run_build(*flags, "--out", tmp_path / "dist")
    assert result.exit_code == 2
    assert "x: float32 ?x3x?x8" in str(result.exception)
    assert "--shape x=N,3,N,8" in str(result.exception)


def test_a_torch_program_without_shapes_says_how_to_give_them(digits, run_build, tmp_path):
    flags = flags_with(digits, drop=["shape"])
    flags[0] = str(digits.folder / "net.py:make")
    result = run_build(*flags, "--out", tmp_path / "dist")
    assert result.exit_code == 2
    assert "--shape x=1,3,224,224" in str(result.exception)


DATA = [
    ("another input's name", {"z": np.zeros((40, 1, 8, 8), np.float32)}, "'z' is no input"),
    ("another shape", {"x": np.zeros((40, 1, 9, 9), np.float32)}, "expected N samples of x: float32 1x1x8x8"),
    ("too few samples", {"x": np.zeros((5, 1, 8, 8), np.float32)}, "self-test alone needs 32"),
    (
        "labels that do not fit",
        {"x": np.zeros((80, 1, 8, 8), np.float32), "labels": np.zeros((80, 7))},
        "label",
    ),
]


@pytest.mark.parametrize(("arrays", "words"), [case[1:] for case in DATA], ids=[case[0] for case in DATA])
def test_evaluation_data_that_does_not_fit(arrays, words, digits, run_build, tmp_path):
    np.savez(tmp_path / "bad.npz", **arrays)
    result = run_build(*flags_with(digits, evaluation=tmp_path / "bad.npz"), "--out", tmp_path / "dist")
    assert result.exit_code == 2
    assert words in str(result.exception)
    assert not (tmp_path / "dist").exists()


def test_a_sample_that_the_source_answers_with_nan_is_named_before_anything_is_made(
    digits, run_build, tmp_path
):
    x = np.load(digits.folder / "eval.npz")["x"].copy()
    x[3] = np.nan
    np.savez(tmp_path / "bad.npz", x=x)
    result = run_build(*flags_with(digits, evaluation=tmp_path / "bad.npz"), "--out", tmp_path / "dist")
    assert result.exit_code == 2
    assert "of the source is NaN on evaluation sample 3 (counted from 0)" in str(result.exception)


KEYS = [
    ("unknown key", "[model]", "[model]\ncolour = 'red'", "colour"),
    ("unknown table", "[data]", "[dta]", "dta"),
    ("open shape", "shape = [1, 1, 8, 8]", "shape = [1, 1, -1, 8]", "inputs"),
    ("unknown step", "[data]", "[[preprocess.x]]\nop = 'sharpen'\n[data]", "sharpen"),
    ("step without op", "[data]", "[[preprocess.x]]\nfactor = 2\n[data]", "needs an op"),
    ("state of no input", "[data]", "[state]\nh = 'hN'\n[data]", "state.h"),
    ("negative budget", "[targets.x86-64-v3]", "[targets.x86-64-v3]\nlatency_p95_ms = -1", "latency_p95_ms"),
    ("no target", "[targets.x86-64-v3]", "[targets]", "name at least one profile"),
    ("no data", 'evaluation = "eval.npz"', "", "evaluation data"),
    ("not TOML", "[data]", "[data", "not TOML"),
]


@pytest.mark.parametrize(("old", "new", "words"), [case[1:] for case in KEYS], ids=[case[0] for case in KEYS])
def test_a_wrong_project_file_is_refused_with_the_file_and_the_key(
    old, new, words, digits, run_build, tmp_path
):
    for name in ("model.onnx", "eval.npz"):
        (tmp_path / name).write_bytes((digits.folder / name).read_bytes())
    (tmp_path / "edgekit.toml").write_text(PROJECT.replace(old, new))
    result = run_build("--project", tmp_path, "--out", tmp_path / "dist")
    assert result.exit_code == 2
    assert words in str(result.exception)
    assert "edgekit.toml" in str(result.exception)
    assert not (tmp_path / "dist").exists()


def test_a_profile_with_an_unknown_engine_is_refused(digits, run_build, tmp_path):
    text = 'name = "mine"\nextends = "x86-64-v3"\ntitle = "mine"\n[engines]\ntensorrt = ">=1"\n'
    (tmp_path / "mine.toml").write_text(text)
    result = run_build(*flags_with(digits, target=tmp_path / "mine.toml"), "--out", tmp_path / "dist")
    assert result.exit_code == 2
    assert "unknown engine 'tensorrt'" in str(result.exception)


def test_a_failing_factory_is_the_users_fault_and_says_where(digits, run_build, tmp_path):
    (tmp_path / "broken.py").write_text("def make():\n    raise ValueError('no weights here')\n")
    flags = digits.flags("model.onnx", "x86-64-v3")
    flags[0] = f"{tmp_path / 'broken.py'}:make"
    result = run_build(*flags, "--out", tmp_path / "dist")
    assert result.exit_code == 2
    assert "no weights here" in str(result.exception)


def test_a_contract_that_nothing_meets_exits_3_and_keeps_the_closest_candidate(digits, run_build, tmp_path):
    words = [*digits.flags("model.onnx", "x86-64-v3"), "--size-mb", "0.001", "--json", tmp_path / "r.json"]
    result = run_build(*words, "--out", tmp_path / "dist")
    assert result.exit_code == 3
    assert "no candidate meets the contract" in str(result.exception)
    assert "size_mb" in result.output
    assert not list((tmp_path / "dist").glob("*.edgekit"))
    assert any(path.is_file() for path in (tmp_path / "dist" / "refused").rglob("*"))
    document = json.loads((tmp_path / "r.json").read_text())
    told = result.exception.table
    assert [(row.profile, row.recipe) for row in told] == [
        (row["profile"], row["recipe"]) for row in document["candidates"]
    ]
    assert {row.status for row in told} <= {"refused", "failed", "lost"}
    refused = next(row for row in told if row.recipe == "onnxruntime/fp32")
    assert refused.size_bytes > 1000
    assert refused.drop == 0
    assert refused.latency_p95_ms > 0
    assert "size_mb" in refused.reason
    assert document["table"] == [asdict(row) for row in told]
    assert all(row.recipe in result.output for row in told)


def test_a_contract_that_int8_misses_names_the_layers_that_lose_most(outlier, digits, run_build, tmp_path):
    """A board that takes integers only, and a net that they ruin."""
    words = [*digits.flags(str(outlier), "nxp-imx93-ethos-u65"), "--recipe", "litert/static-int8"]
    result = run_build(*words, "--out", tmp_path / "dist", "--json", tmp_path / "r.json")
    assert result.exit_code == 3
    layers = result.exception.layers
    assert 1 <= len(layers) <= 5
    assert {(layer.profile, layer.recipe) for layer in layers} == {
        ("nxp-imx93-ethos-u65", "litert/static-int8")
    }
    assert [layer.snr_db for layer in layers] == sorted(layer.snr_db for layer in layers)
    assert layers[0].snr_db < 20
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["layers"] == [asdict(layer) for layer in layers]
    shown = result.output.partition("layers that lose most")[2]
    assert f"{layers[0].snr_db:.1f}" in shown
    assert "CONV" in shown


def test_a_profile_with_a_bundle_is_not_among_what_missed(digits, run_build, tmp_path):
    words = [*digits.flags("model.onnx", "raspberry-pi-5"), "--latency-p95-ms", "50", "--strict"]
    words += ["--recipe", "onnxruntime/fp32"]
    result = run_build(*words, "--out", tmp_path / "dist")
    assert result.exit_code == 3
    assert result.exception.table == result.exception.layers == ()
    assert "onnxruntime/fp32" in result.output


@pytest.mark.proof
def test_too_few_samples_exit_3_unless_uncertainty_is_accepted(digits, run_build, tmp_path):
    """An int8-only target: float candidates need no statistics, this one does."""
    words = digits.flags("model.onnx", "nxp-imx93-ethos-u65")
    words[words.index("--max-accuracy-drop") + 1] = "0.005"
    result = run_build(*words, "--out", tmp_path / "dist")
    assert result.exit_code == 3
    assert "about" in str(result.exception)
    accepted = run_build(*words, "--out", tmp_path / "dist", "--accept-uncertain")
    assert accepted.exit_code == 0, accepted.output
    assert list((tmp_path / "dist").glob("*.edgekit"))


def test_an_int8_only_target_without_calibration_says_what_is_missing(digits, run_build, tmp_path):
    words = flags_with(digits, drop=["calibration"], target="nxp-imx93-ethos-u65")
    result = run_build(*words, "--out", tmp_path / "dist")
    assert result.exit_code == 3
    assert "needs calibration data" in str(result.exception)


def test_ctrl_c_leaves_nothing_half_written(digits, tmp_path):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    words = digits.flags("model.onnx", "x86-64-v3", "raspberry-pi-5")
    process = subprocess.Popen(
        [sys.executable, "-m", "edgekit", "build", *words, "--out", str(tmp_path / "dist"), "--cache", str(tmp_path / "c")],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "converting openvino/static-int8" in line:
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.stderr.read()
    assert process.wait(timeout=60) == 130
    assert not list(temporary.rglob("edgekit-build-*"))
    assert not [path for path in tmp_path.rglob("*part*") if path.is_file()]
    assert not list(Path(tmp_path / "dist").rglob("*")) or all(
        path.suffix in (".edgekit", ".json") for path in (tmp_path / "dist").rglob("*") if path.is_file()
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            "[contract]\nmax_acuracy_drop = 0.1",
            "contract.max_acuracy_drop: unknown key; did you mean 'max_accuracy_drop'?",
        ),
        ("[outpust]\ny = 1", "outpust: unknown key; did you mean 'outputs'?"),
        ('[outputs.y]\nkind = "valuess"', "outputs, kind: unknown 'valuess'; did you mean 'values'?"),
        ('[outputs.y]\nkind = "x"', "outputs, kind: unknown 'x'; known are labels, scores, map, activations"),
        (
            "[contract]\nzzz = 1",
            "contract.zzz: unknown key; known are max_accuracy_drop, max_drop_per_slice, latency_p95_ms",
        ),
    ],
)
def test_an_unknown_key_or_word_of_a_project_file_gets_a_hint(line, says, run_build, tmp_path):
    (tmp_path / "edgekit.toml").write_text(PROJECT + line)
    result = run_build("--project", tmp_path)
    assert result.exit_code == 2
    assert says in str(result.exception)


def test_a_missing_model_is_told_before_missing_data(run_build, tmp_path):
    result = run_build(
        tmp_path / "absent.onnx", "--name", "a", "--version", "1", "--target", "x86-64-v3", "--out", tmp_path
    )
    assert result.exit_code == 2
    assert "absent.onnx: there is no such model file" in str(result.exception)


@pytest.mark.parametrize("name", ["net.keras", "net.h5", "saved"])
def test_a_keras_model_is_told_what_to_install_and_the_way_that_needs_no_tensorflow(
    name, digits, run_build, tmp_path, monkeypatch
):
    monkeypatch.delenv(tensorflow_source.PYTHON, raising=False)
    monkeypatch.setattr(tensorflow_source, "find_spec", lambda _: None)
    if name == "saved":
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").write_bytes(b"x")
    else:
        (tmp_path / name).write_bytes(b"x")
    words = digits.flags("model.onnx", "x86-64-v3")
    words[0] = str(tmp_path / name)
    result = run_build(*words, "--out", tmp_path / "dist")
    assert result.exit_code == 2
    assert "pip install 'edgekit-toolkit[tensorflow]'" in str(result.exception)
    assert "KERAS_BACKEND=torch" in str(result.exception)
    assert "torch.export.save" in str(result.exception)
    assert not (tmp_path / "dist").exists()


def test_a_factory_of_narrow_weights_says_what_to_return(digits, run_build, tmp_path):
    (tmp_path / "narrow.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).bfloat16()\n"
    )
    flags = flags_with(digits)
    flags[0] = f"{tmp_path / 'narrow.py'}:make"
    result = run_build(*flags, "--out", tmp_path / "dist")
    assert result.exit_code == 2
    assert "its weights are bfloat16: give module.float(), of the same values" in str(result.exception)
