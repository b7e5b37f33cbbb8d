"""The benchmark's peers, each by its tool's documented defaults: a float model and calibration feeds in, a runnable
file with its size and build time, or the reason of its failure, out.

Nothing is tuned for the model: no excluded layers, no preset, no other opset. That is what a person gets who follows
the tool's own page. Each conversion runs in a process of its own, so that a crash or a hang costs that peer only.

    python bench/converters/peers.py PEER MODEL CALIBRATION.npz FOLDER    (arrays by input name, samples first)
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Feed = Mapping[str, np.ndarray]
Run = Callable[[Feed], dict[str, np.ndarray]]
TOLD = "told.json"
TFLITE = ".tflite"
TIMEOUT_S = 900


@dataclass(frozen=True)
class Peer:
    """What a tool made; without `path`, `failure` says why. `build_s` counts conversion, not loading the tool;
    `whole_s` is what its process took, with loading and a first run.
    """

    name: str
    path: Path | None = None
    size_bytes: int = 0
    build_s: float = 0.0
    whole_s: float = 0.0
    failure: str = ""


def onnxruntime_float(model: Path, _: Sequence[Feed], __: Path) -> Path:
    _refuse_tflite(model)
    return model


def onnxruntime_static(model: Path, feeds: Sequence[Feed], folder: Path) -> Path:
    """`quant_pre_process`, then `quantize_static` with a data reader, as ONNX Runtime's page has it."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
        def __init__(self) -> None:
            self.left: Iterator[Feed] = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self.left, None)

    _refuse_tflite(model)
    quant_pre_process(str(model), str(folder / "prepared.onnx"))
    target = folder / "static.onnx"
    quantize_static(str(folder / "prepared.onnx"), str(target), Reader())
    return target


def openvino_default(model: Path, _: Sequence[Feed], folder: Path) -> Path:
    """No precision hint: bf16 where the CPU has it."""
    import openvino as ov

    ov.save_model(ov.Core().read_model(model), folder / "default.xml")
    return folder / "default.xml"


def openvino_nncf(model: Path, feeds: Sequence[Feed], folder: Path) -> Path:
    """`nncf.quantize` with a dataset and nothing else."""
    os.environ.setdefault("NNCF_CI", "1")
    import nncf
    import openvino as ov

    made = nncf.quantize(ov.Core().read_model(model), nncf.Dataset(list(feeds)))
    ov.save_model(made, folder / "int8.xml")
    return folder / "int8.xml"


def litert_float(model: Path, feeds: Sequence[Feed], folder: Path) -> Path:
    """litert-torch of the torch program, which for an ONNX file is what onnx2torch makes of it; a TFLite file as it is."""
    if model.suffix == TFLITE:
        return model
    import litert_torch
    import torch

    target = folder / "float.tflite"
    arguments = tuple(torch.from_numpy(np.array(array)) for array in feeds[0].values())
    if model.with_suffix(".pt2").is_file():
        module = torch.export.load(str(model.with_suffix(".pt2"))).module()
    else:
        module = _onnx2torch(model)
    litert_torch.convert(module, arguments).export(str(target))
    return target


def litert_static(model: Path, feeds: Sequence[Feed], folder: Path) -> Path:
    """ai-edge-quantizer's `static_wi8_ai8` with its own calibration, of what `litert_float` gives."""
    from ai_edge_quantizer import quantizer, recipe

    source, target = litert_float(model, feeds, folder), folder / "static.tflite"
    tool = quantizer.Quantizer(str(source))
    tool.load_quantization_recipe(recipe.static_wi8_ai8())
    # litert-torch makes 64-bit integers 32-bit ones, and the calibration takes what the model takes.
    named = [
        {
            key if model.suffix == TFLITE else f"args_{index}": array.astype(np.int32)
            if array.dtype == np.int64
            else array
            for index, (key, array) in enumerate(feed.items())
        }
        for feed in feeds
    ]
    signatures = _interpreter(source).get_signature_list()
    ranges = tool.calibrate({next(iter(signatures), None): named})
    target.write_bytes(bytes(tool.quantize(ranges).quantized_model))
    return target


def _refuse_tflite(model: Path) -> None:
    if model.suffix == TFLITE:
        raise ValueError("ONNX Runtime reads no TFLite file")


def _onnx2torch(model: Path) -> Any:
    # onnx2torch 1.5.15 imports torchvision for NonMaxSuppression and RoiAlign, which none of these models has; there
    # is no CPU build of it for this torch.
    try:
        import torchvision  # noqa: F401
    except ImportError:
        fake = types.ModuleType("torchvision")
        ops = types.ModuleType("torchvision.ops")
        vars(ops)["roi_align"] = vars(fake)["ops"] = ops
        sys.modules.update({"torchvision": fake, "torchvision.ops": ops})
    import onnx2torch

    return onnx2torch.convert(str(model)).eval()


@dataclass(frozen=True)
class Tool:
    """`engine` runs what it makes; `float_of` is the peer that counts where this one loses too much accuracy."""

    engine: str
    convert: Callable[[Path, Sequence[Feed], Path], Path]
    float_of: str = ""


PEERS: Mapping[str, Tool] = {
    "onnxruntime float": Tool("onnxruntime", onnxruntime_float),
    "onnxruntime static int8": Tool("onnxruntime", onnxruntime_static, "onnxruntime float"),
    "openvino default": Tool("openvino", openvino_default),
    "openvino nncf int8": Tool("openvino", openvino_nncf, "openvino default"),
    "litert-torch float": Tool("litert", litert_float),
    "litert-torch aeq int8": Tool("litert", litert_static, "litert-torch float"),
}


def build(name: str, model: Path, calibration: Path, folder: Path) -> Peer:
    """Convert in a child, which also shows by a first run that the result works."""
    folder.mkdir(parents=True)
    words = [sys.executable, __file__, name, str(model), str(calibration), str(folder)]
    began = time.perf_counter()
    try:
        # ONNX Runtime's shape inference leaves files where it runs.
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd=folder
        )
    except subprocess.TimeoutExpired:
        return Peer(name, build_s=TIMEOUT_S, whole_s=TIMEOUT_S, failure=f"did not end within {TIMEOUT_S} s")
    took = time.perf_counter() - began
    if done.returncode:
        how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit {done.returncode}"
        return Peer(
            name, build_s=took, whole_s=took, failure=f"its process died: {how} {done.stderr.strip()[-150:]}"
        )
    told = json.loads((folder / TOLD).read_text())
    if told["failure"]:
        return Peer(name, build_s=told["build_s"], whole_s=took, failure=told["failure"])
    made = Path(told["path"])
    files = [made, made.with_suffix(".bin")] if made.suffix == ".xml" else [made]
    return Peer(name, made, sum(file.stat().st_size for file in files), told["build_s"], took)


def load(path: Path, inputs: Sequence[str], outputs: Sequence[str], threads: int | None = None) -> Run:
    """A peer's file in its engine with default options; names are the source's."""
    return _LOADERS[path.suffix](path, inputs, outputs, threads)


def _onnx(path: Path, _: Sequence[str], outputs: Sequence[str], threads: int | None) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feed: dict(zip(outputs, session.run(list(outputs), dict(feed)), strict=True))


def _xml(path: Path, inputs: Sequence[str], outputs: Sequence[str], threads: int | None) -> Run:
    import openvino as ov

    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": threads} if threads else {})
    ports = {name: compiled.output(name) for name in outputs}

    def run(feed: Feed) -> dict[str, np.ndarray]:
        # Copies already, since OpenVINO does not share its outputs unless told.
        results = compiled({name: feed[name] for name in inputs})
        return {name: results[port] for name, port in ports.items()}

    return run


def _interpreter(path: Path, threads: int | None = None) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    return interpreter


def _tflite(path: Path, inputs: Sequence[str], outputs: Sequence[str], threads: int | None) -> Run:
    interpreter = _interpreter(path, threads)
    if not interpreter.get_signature_list():
        return _by_tensors(interpreter, inputs, outputs)
    runner = interpreter.get_signature_runner()
    takes, gives = runner.get_input_details(), runner.get_output_details()

    def run(feed: Feed) -> dict[str, np.ndarray]:
        keys = {f"args_{index}": feed[name] for index, name in enumerate(inputs)}
        made = runner(**{key: _quantized(array, takes[key]) for key, array in keys.items()})
        named = {name: f"output_{index}" for index, name in enumerate(outputs)}
        return {name: _real(made[key], gives[key]) for name, key in named.items()}

    return run


def _by_tensors(interpreter: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Run:
    """Of a file without a signature, by the names of its tensors."""
    takes = {detail["name"]: detail for detail in interpreter.get_input_details()}
    gives = {detail["name"]: detail for detail in interpreter.get_output_details()}

    def run(feed: Feed) -> dict[str, np.ndarray]:
        for name in inputs:
            interpreter.set_tensor(takes[name]["index"], _quantized(feed[name], takes[name]))
        interpreter.invoke()
        return {name: _real(interpreter.get_tensor(gives[name]["index"]), gives[name]) for name in outputs}

    return run


def _quantized(array: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    """What a tensor takes: ai-edge-quantizer's static recipe makes inputs and outputs int8 too, litert-torch 64-bit
    integers 32-bit ones.
    """
    scale, zero = detail["quantization"]
    if detail["dtype"] != np.int8 or not scale:
        return array.astype(detail["dtype"])
    return np.clip(np.rint(array / scale) + zero, -128, 127).astype(np.int8)


def _real(array: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    scale, zero = detail["quantization"]
    if detail["dtype"] != np.int8 or not scale:
        return array
    return ((array.astype(np.float32) - zero) * scale).astype(np.float32)


_LOADERS: Mapping[str, Callable[[Path, Sequence[str], Sequence[str], int | None], Run]] = {
    ".onnx": _onnx,
    ".xml": _xml,
    ".tflite": _tflite,
}


def _outputs(model: Path) -> list[str]:
    if model.suffix == TFLITE:
        return [detail["name"] for detail in _interpreter(model).get_output_details()]
    import onnx

    return [value.name for value in onnx.load(str(model), load_external_data=False).graph.output]


def main(arguments: Sequence[str]) -> None:
    """The child: one peer; whatever its tool raises is its failure."""
    name, (model, calibration, folder) = arguments[0], map(Path, arguments[1:])
    data = np.load(calibration, allow_pickle=False)
    arrays = {key: data[key] for key in data.files}
    feeds = [
        {key: array[index] for key, array in arrays.items()} for index in range(len(data[data.files[0]]))
    ]
    path, failure, began = "", "", time.perf_counter()
    try:
        made = PEERS[name].convert(model, feeds, folder)
        took = time.perf_counter() - began
        load(made, list(feeds[0]), _outputs(model))(feeds[0])
        path = str(made)
    except Exception as error:  # noqa: BLE001  # tools raise anything, and their failures are what is counted
        took = time.perf_counter() - began
        # An assertion says nothing by itself, so the place is told with it.
        place = traceback.extract_tb(error.__traceback__)[-1]
        failure = f"{type(error).__name__} in {place.name}: {' '.join(str(error).split())[:300]}"
    (folder / TOLD).write_text(json.dumps({"path": path, "build_s": took, "failure": failure}))


if __name__ == "__main__":
    main(sys.argv[1:])
