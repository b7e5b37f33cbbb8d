"""Files that people have: LSTMs under branches, open dimensions, state inside, weights outside, a newer file format."""

import importlib.util
import json
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest

from converters.graph import canonical
from converters.source import onnx_source
from converters.source.project import from_flags
from edgekit.errors import EdgeKitError

VOICE = {"input": ([1, 576], "float32"), "state": ([2, 1, 128], "float32"), "sr": ([], "int64")}


def file_of(package, *parts):
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed")
    return Path(found.origin).parent.joinpath(*parts)


def opened(path, inputs=None):
    declared = {name: {"shape": shape, "dtype": dtype} for name, (shape, dtype) in (inputs or {}).items()}
    project = from_flags({
        "model": {"name": "m", "version": "1", "source": str(path)}, "inputs": declared,
        "targets": {"x86-64-v4-vnni": {}}, "data": {"evaluation": "unused"},
    })  # fmt: skip
    return onnx_source.open_file(project, path)


@pytest.mark.parametrize("name", ["silero_vad_16k_op15.onnx", "silero_vad_op18_ifless.onnx"])
def test_a_voice_detector_becomes_canonical(name, tmp_path):
    source = opened(file_of("silero_vad", "data", name), VOICE)
    random = np.random.default_rng(0)
    feeds = [
        {"input": random.standard_normal((1, 576)).astype(np.float32), "state": np.zeros((2, 1, 128), np.float32),
         "sr": np.array(16000)}
        for _ in range(2)
    ]  # fmt: skip
    assert canonical.canonicalize(source, feeds, tmp_path).parity < 1e-4


def test_open_dimensions_are_refused_with_what_to_give():
    path = file_of("rapidocr", "models", "ch_ppocr_mobile_v2.0_cls_mobile.onnx")
    with pytest.raises(EdgeKitError, match="shape"):
        opened(path)


def test_open_dimensions_that_are_given_are_fixed(tmp_path):
    path = file_of("rapidocr", "models", "ch_ppocr_mobile_v2.0_cls_mobile.onnx")
    source = opened(path, {"x": ([1, 3, 48, 192], "float32")})
    feeds = [{"x": np.random.default_rng(0).random((1, 3, 48, 192)).astype(np.float32)}]
    form = canonical.canonicalize(source, feeds, tmp_path)
    (given,) = onnx.load(str(form.path)).graph.input
    assert [item.dim_value for item in given.type.tensor_type.shape.dim] == [1, 3, 48, 192]


def test_a_file_format_newer_than_the_engine_is_refused(tmp_path):
    path = file_of("rapidocr", "models", "ch_ppocr_mobile_v2.0_cls_mobile.onnx")
    model = onnx.load(str(path))
    model.ir_version = 99
    newer = tmp_path / "newer.onnx"
    newer.write_bytes(model.SerializeToString())
    with pytest.raises(EdgeKitError, match=r"(?i)ir.version"):
        opened(newer, {"x": ([1, 3, 48, 192], "float32")})


STATE = {"state": ("stateN", [2, 1, 128])}
VOICES = {
    # File → states with their outputs and shapes, and whether the sampling rate is an input.
    "silero_vad_16k_op15.onnx": (STATE, True),
    "silero_vad_op18_ifless.onnx": (STATE, True),
    "silero_vad_16k_sequence.onnx": ({"h": ("hn", [1, 1, 128]), "c": ("cn", [1, 1, 128])}, False),
    "voice.py:make": (STATE, False),
}
VOICE_FILE = """
    import torch

    class Voice(torch.nn.Module):
        def __init__(self, program):
            super().__init__()
            self.program = program

        def forward(self, input, state):
            return self.program(input, state)

    class WithState(torch.nn.Module):
        def __init__(self, program):
            super().__init__()
            self.program = program

        def forward(self, x):
            return self.program(x, 16000)

    def make():
        return Voice(torch.jit.load({path!r})._model)

    def with_state():
        return WithState(torch.jit.load({path!r}))
"""


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """Noise in sequences, as .npz with and without the sampling rate, and a file with two torch factories."""
    folder = tmp_path_factory.mktemp("voices")
    random = np.random.default_rng(0)
    frames = random.standard_normal((96, 1, 576)).astype(np.float32) * random.uniform(0, 1, (96, 1, 1))
    arrays = {"input": frames.astype(np.float32), "sequence": np.repeat(np.arange(8), 12)}
    np.savez(folder / "data.npz", **arrays)
    np.savez(folder / "data-sr.npz", **arrays, sr=np.full(96, 16000))
    path = str(file_of("silero_vad", "data", "silero_vad.jit"))
    (folder / "voice.py").write_text(textwrap.dedent(VOICE_FILE).format(path=path))
    return folder


def voice_project(folder, name):
    """A project file of one of the `VOICES`."""
    states, with_rate = VOICES[name]
    source = name if ".py" in name else str(file_of("silero_vad", "data", name))
    data = "data-sr.npz" if with_rate else "data.npz"
    shapes = {"input": [1, 576], **{state: shape for state, (_, shape) in states.items()}}
    lines = ["[model]", 'name = "voice"', 'version = "1"', f"source = {json.dumps(source)}"]
    if ".py" in name:
        lines.append('outputs = ["output", "stateN"]')
    for key, shape in shapes.items():
        lines += [f"[inputs.{key}]", f"shape = {shape}"]
    if with_rate:
        lines += ["[inputs.sr]", "shape = []", 'dtype = "int64"']
    lines += ["[state]", *(f'{state} = "{output}"' for state, (output, _) in states.items())]
    lines += [
        "[data]",
        f'calibration = "{data}"',
        f'evaluation = "{data}"',
        'metric = "agreement"',
        "[targets.x86-64-v3]",
    ]
    path = folder / f"{name.replace(':', '-')}.toml"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("name", VOICES)
def test_every_form_of_a_voice_detector_is_built(name, voices, tmp_path, run_build):
    words = ["--project", voice_project(voices, name), "--recipe", "onnxruntime/fp32", "--accept-uncertain"]
    result = run_build(*words, "--out", tmp_path / "dist", "--json", tmp_path / "result.json")
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "result.json").read_text())
    assert [item["recipe"] for item in document["bundles"]] == ["onnxruntime/fp32"]
    assert document["candidates"][0]["parity"] < 1e-4


def test_int8_of_a_model_whose_layers_are_all_in_branches_is_not_tried(voices, tmp_path, run_build):
    words = ["--project", voice_project(voices, "silero_vad_op18_ifless.onnx"), "--recipe", "onnxruntime/*"]
    result = run_build(*words, "--accept-uncertain", "--out", tmp_path, "--json", tmp_path / "result.json")
    assert result.exit_code == 0, result.output
    found = {
        item["recipe"]: item for item in json.loads((tmp_path / "result.json").read_text())["candidates"]
    }
    assert found["onnxruntime/fp32"]["status"] == "picked"
    assert "stands outside of branches" in found["onnxruntime/static-int8"]["reason"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("silero_vad_16k_op15.onnx", ["input: float32 ?x?", "--shape input=N,N --shape state=2,N,128"]),
        ("silero_vad_16k_sequence.onnx", ["input: float32 ?x576", "--shape input=N,576"]),
        ("silero_vad.jit", ["sr (int)", "give file.py:factory"]),
        ("voice.py:with_state", ["differs when the same input comes a second time", "[state]"]),
    ],
)
def test_what_is_open_or_wrong_with_a_source_is_named(source, words, voices, tmp_path, run_build):
    path = voices / source if ".py" in source else file_of("silero_vad", "data", source)
    shape = [] if source.endswith(".onnx") else ["--shape", "x=1,512"]
    data = str(voices / "data.npz")
    result = run_build(
        path, "--name", "voice", "--version", "1", "--target", "x86-64-v3", "--calibration", data,
        "--evaluation", data, *shape, "--out", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 2
    assert [word for word in words if word not in result.stderr] == []


@pytest.mark.proof
def test_weights_in_a_second_file_are_read_and_belong_to_the_source(digits, tmp_path, run_build):
    inside, outside = digits.folder / "model.onnx", tmp_path / "model.onnx"
    onnx.save(
        onnx.load(str(inside)),
        str(outside),
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    assert outside.stat().st_size < 0.5 * inside.stat().st_size
    words = digits.flags(str(outside), "x86-64-v3")
    result = run_build(
        *words, "--recipe", "onnxruntime/fp32", "--out", tmp_path / "dist", "--json", tmp_path / "r.json"
    )
    assert result.exit_code == 0, result.output
    before = json.loads((tmp_path / "r.json").read_text())
    assert before["candidates"][0]["parity"] < 1e-5
    weights = tmp_path / "weights.bin"
    changed = np.frombuffer(weights.read_bytes(), np.float32) * np.float32(1.5)
    weights.write_bytes(changed.tobytes())
    result = run_build(*words, "--recipe", "onnxruntime/fp32", "--accept-uncertain", "--out", tmp_path / "dist",
                       "--json", tmp_path / "r.json")  # fmt: skip
    assert result.exit_code == 0, result.output
    after = json.loads((tmp_path / "r.json").read_text())
    assert after["source_sha256"] != before["source_sha256"]
    assert after["bundles"][0]["digest"] != before["bundles"][0]["digest"]
    weights.unlink()
    result = run_build(*words, "--out", tmp_path / "dist")
    assert result.exit_code == 2
    assert "weights.bin" in result.stderr
