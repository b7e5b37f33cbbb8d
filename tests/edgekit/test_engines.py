"""One protocol over three runtimes: the same small network gives the same answers through each of them."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import toy_tflite

from edgekit import engines
from edgekit.engines import LoadedBundle
from edgekit.engines._compiled import SharedWeights
from edgekit.errors import EngineError, EngineMissingError, InputError, ManifestError
from edgekit.manifest import EngineSpec, Manifest, SelfTest, Step, TensorSpec
from edgekit.samples import Samples
from edgekit.tensors import V2_DTYPES, check_inputs, fits

LINEAR = np.arange(12, dtype=np.float32).reshape(4, 3) / 10
X = np.array([[1, -2, 3, 0.5]], np.float32)
EXPECTED = np.maximum(X @ LINEAR, 0)
# On a CPU with bf16, OpenVINO computes in it unless told otherwise: half a percent off instead of a millionth.
OPTIONS = {"openvino": {"INFERENCE_PRECISION_HINT": "f32"}}


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(LINEAR, "w")],
    )
    path = tmp_path_factory.mktemp("onnx") / "linear.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(scope="session")
def litert_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted once a session: loading the converter takes longer than all other tests here."""
    litert_torch = pytest.importorskip("litert_torch")
    import torch

    class Linear(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x @ torch.from_numpy(LINEAR))

    path = tmp_path_factory.mktemp("litert") / "linear.tflite"
    litert_torch.convert(Linear().eval(), (torch.from_numpy(X),)).export(str(path))
    return path


def bindings(path: Path) -> tuple[str, str]:
    """The names that a LiteRT file gave its only input and output."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    return interpreter.get_input_details()[0]["name"], interpreter.get_output_details()[0]["name"]


def manifest(name: str, model: Path, names: tuple[str, str] = ("", ""), **changes: object) -> Manifest:
    plain = Manifest(
        format=1,
        name="linear",
        version="1",
        profile="x86-64-v3",
        engine=EngineSpec(name, ">=1", model.name, OPTIONS.get(name, {}), threads=1),
        inputs=(TensorSpec("x", "float32", (1, 4), names[0]),),
        outputs=(TensorSpec("y", "float32", (1, 3), names[1]),),
        recipe=f"{name}/fp32",
        source_sha256="0" * 64,
        files=(),
        selftest=SelfTest("i", "s", "a", 1, {}, 0.0),
    )
    return msgspec.structs.replace(plain, **changes)


@pytest.fixture(params=["onnxruntime", "openvino", "litert"])
def loaded(request: pytest.FixtureRequest, onnx_file: Path) -> Iterator[LoadedBundle]:
    names, model = ("", ""), onnx_file
    if request.param == "litert":
        model = request.getfixturevalue("litert_file")
        names = bindings(model)
    bundle = LoadedBundle(manifest(request.param, model, names), model.parent)
    yield bundle
    bundle.close()


def test_every_engine_gives_the_networks_answer_by_public_names(loaded: LoadedBundle) -> None:
    outputs = loaded.run({"x": X})
    assert list(outputs) == ["y"]
    np.testing.assert_allclose(outputs["y"], EXPECTED, rtol=1e-5, atol=1e-6)


def test_an_earlier_answer_does_not_change_with_the_next_call(loaded: LoadedBundle) -> None:
    first = loaded.run({"x": X})["y"]
    kept = first.copy()
    loaded.run({"x": X * 5})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_process_that_has_closed_its_models_still_takes_a_signal(engine: str, onnx_file: Path) -> None:
    """Two of OpenVINO's cores that ended one after the other left the next signal a stack that had been freed."""
    script = f"""
import signal
from pathlib import Path
from edgekit import engines
from edgekit.manifest import EngineSpec, TensorSpec

def load():
    spec, inputs, outputs = EngineSpec({engine!r}, "", "", threads=1), [TensorSpec("x", "float32", (1, 4))], []
    return engines.get({engine!r}).load(Path({str(onnx_file)!r}), spec, inputs, outputs, None)

first, second = load(), load()
del first
del second
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("taken")
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (0, "taken\n"), told.stderr


def test_a_bad_input_never_reaches_an_engine(loaded: LoadedBundle) -> None:
    with pytest.raises(InputError, match="has shape 4; expected x: float32 1x4"):
        loaded.run({"x": X[0]})


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "litert"])
def test_a_file_that_is_no_model_is_an_engine_error(engine: str, tmp_path: Path) -> None:
    model = tmp_path / "broken.bin"
    model.write_bytes(b"no model at all")
    with pytest.raises(EngineError, match=r"cannot load broken\.bin"):
        LoadedBundle(manifest(engine, model), tmp_path)


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"engine": EngineSpec("tensorrt", ">=1", "m")}, ManifestError, "unknown engine 'tensorrt'"),
        ({"engine": EngineSpec("onnxruntime", ">=99", "m")}, EngineMissingError, "needs onnxruntime >=99, but"),
        ({"engine": EngineSpec("onnxruntime", "new", "m")}, ManifestError, "cannot be read"),
        ({"preprocess": {"x": (Step("warp"),)}}, ManifestError, "'warp' is unknown"),
        ({"postprocess": (Step("sigmoid", {"output": "z"}),)}, ManifestError, "no output 'z'"),
    ],
)  # fmt: skip
def test_what_cannot_run_here_is_refused_before_loading(
    changes: dict, kind: type[Exception], says: str, onnx_file: Path
) -> None:
    with pytest.raises(kind, match=says):
        LoadedBundle(manifest("onnxruntime", onnx_file, **changes), onnx_file.parent)


def test_an_unknown_option_value_is_named(onnx_file: Path) -> None:
    spec = EngineSpec("onnxruntime", ">=1", onnx_file.name, {"graph_optimization_level": "most"})
    with pytest.raises(EngineError, match=r"'most' is not one of all, extended"):
        LoadedBundle(manifest("onnxruntime", onnx_file, engine=spec), onnx_file.parent)


def load_litert(path: Path, width: int, **options: str) -> engines.Model:
    (x, y) = bindings(path)
    sizes = TensorSpec("x", "float32", (1, width), x), TensorSpec("y", "float32", (1, width), y)
    spec = EngineSpec("litert", "", path.name, dict(options), threads=1)
    return engines.get("litert").load(path, spec, [sizes[0]], [sizes[1]], None)


@pytest.fixture(params=[True, False], ids=["signature", "no signature"])
def repeating_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "repeating.tflite"
    path.write_bytes(toy_tflite.again_and_again(5, 16, has_signature=request.param))
    return path


def test_litert_gives_the_same_to_the_bit_with_its_packed_weights_shared(repeating_file: Path) -> None:
    own, shared = (load_litert(repeating_file, 16, weights=how) for how in ("own", "shared"))
    assert isinstance(shared._interpreter, SharedWeights)
    for seed in range(3):
        x = np.random.default_rng(seed).normal(size=(1, 16)).astype(np.float32)
        first, kept = shared.run({"x": x})["y"], own.run({"x": x})["y"]
        np.testing.assert_array_equal(first, kept)
        shared.run({"x": -x})
        np.testing.assert_array_equal(first, kept)


def test_a_litert_that_cannot_share_packed_weights_runs_with_its_own(
    repeating_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = {"x": np.ones((1, 16), np.float32)}
    wanted = load_litert(repeating_file, 16).run(x)["y"]
    monkeypatch.setitem(sys.modules, "ai_edge_litert.compiled_model", None)
    model = load_litert(repeating_file, 16, weights="shared")
    assert not isinstance(model._interpreter, SharedWeights)
    np.testing.assert_array_equal(model.run(x)["y"], wanted)


# What a fused LSTM is given, and what it gives from zeros.
ROWS = np.random.default_rng(2).normal(size=(1, 5, 3)).astype(np.float32)
STATES = toy_tflite.lstm_expected(ROWS, 4)


def load_lstm(folder: Path, **options: str) -> engines.Model:
    path = folder / "lstm.tflite"
    path.write_bytes(toy_tflite.lstm(5, 3, 4))
    sizes = [TensorSpec("x", "float32", ROWS.shape, "x")], [TensorSpec("y", "float32", STATES.shape, "y")]
    spec = EngineSpec("litert", "", path.name, dict(options), threads=1)
    return engines.get("litert").load(path, spec, *sizes, None)


def test_what_only_the_interpreter_takes_runs_with_its_own_too(tmp_path: Path) -> None:
    """LiteRT 2.3's other interface takes no variables."""
    model = load_lstm(tmp_path, weights="shared")
    np.testing.assert_allclose(model.run({"x": ROWS})["y"], STATES, atol=1e-5)


def test_a_fused_lstm_answers_each_call_from_zeros_where_its_variables_are_reset(tmp_path: Path) -> None:
    second = {}
    for how in ("kept", "reset"):
        model = load_lstm(tmp_path, variables=how)
        np.testing.assert_allclose(model.run({"x": ROWS})["y"], STATES, atol=1e-5)
        second[how] = model.run({"x": ROWS})["y"]
    np.testing.assert_allclose(second["reset"], STATES, atol=1e-5)
    assert np.abs(second["kept"] - STATES).max() > 0.01


def test_litert_names_the_values_of_its_options(repeating_file: Path) -> None:
    with pytest.raises(EngineError, match="; weights, own or shared; variables, kept or reset"):
        load_litert(repeating_file, 16, weights="lent")


def test_what_is_installed_is_told_with_versions() -> None:
    assert set(engines.installed()) == set(engines.ADAPTERS.names())
    assert all(version[0].isdigit() for version in engines.installed().values())


SPEC = TensorSpec("x", "float32", (1, 4))


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, "input 'x' is missing; expected x: float32 1x4"),
        ({"x": X, "y": X}, "unknown input 'y'; this model takes x"),
        ({"x": X.astype(np.int32)}, "dtype int32"),
        ({"x": np.float32(1)}, "shape scalar"),
        ({"x": np.zeros((2, 4), np.float32)}, "shape 2x4"),
    ],
)
def test_inputs_are_refused_with_what_came_and_what_is_expected(inputs: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_inputs([SPEC], {name: np.asarray(value) for name, value in inputs.items()})


def test_float_widths_are_converted_and_memory_made_contiguous() -> None:
    strided = np.zeros((4, 1), np.float64).T
    checked = check_inputs([SPEC], {"x": strided})["x"]
    assert checked.dtype == np.float32
    assert checked.flags.c_contiguous


def test_an_input_that_fits_is_taken_as_it_is() -> None:
    array = np.zeros((1, 4), np.float32)
    assert check_inputs([SPEC], {"x": array})["x"] is array
    # What only looks like it is not.
    for other in (array.astype(">f4"), np.asfortranarray(np.zeros((4, 4), np.float32))[:1]):
        checked = check_inputs([SPEC], {"x": other})["x"]
        assert checked.dtype == np.float32
        assert checked.flags.c_contiguous


def test_an_output_is_the_callers_own_however_large_it_is(
    onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO writes large ones straight into an array that the next call must not touch."""
    adapter = pytest.importorskip("edgekit.engines.openvino")
    for least in (1, 10**9):
        monkeypatch.setattr(adapter, "LARGE", least)
        bundle = LoadedBundle(manifest("openvino", onnx_file), onnx_file.parent)
        first = bundle.run({"x": X})["y"]
        np.testing.assert_allclose(first, EXPECTED, atol=1e-4)
        second = bundle.run({"x": 2 * X})["y"]
        bundle.close()
        np.testing.assert_allclose(first, EXPECTED, atol=1e-4)
        np.testing.assert_allclose(second, 2 * EXPECTED, atol=1e-4)
        assert first.flags.writeable


def test_an_open_dimension_fits_any_size_but_no_other_rank() -> None:
    spec = TensorSpec("x", "float32", (None, 4))
    assert fits(spec, (7, 4))
    assert not fits(spec, (7, 5))
    assert not fits(spec, (7, 4, 1))


def test_every_protocol_type_is_one_of_numpys() -> None:
    assert all(np.dtype(name) for name in V2_DTYPES)


@pytest.mark.parametrize(("command", "weights"), [("verify", "own"), ("run", "own"), ("run", "shared")])
def test_the_commands_show_nothing_of_what_a_litert_bundles_delegate_announces(
    command: str, weights: str, litert_file: Path, maker, tmp_path: Path
) -> None:
    maker.golden = Samples({"x": X * np.linspace(0.5, 2, 32, dtype=np.float32)[:, None]})
    names = bindings(litert_file)
    path = maker.write(
        true_model=litert_file.read_bytes(),
        inputs=(TensorSpec("x", "float32", (1, 4), names[0]),),
        outputs=(TensorSpec("y", "float32", (1, 3), names[1]),),
        preprocess={},
        postprocess=(),
        engine="litert",
        options={"weights": weights},
    )
    np.savez(tmp_path / "x.npz", x=X)
    words = [path, tmp_path / "x.npz"] if command == "run" else [path]
    program = [sys.executable, "-m", "edgekit", command, *map(str, words)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")
