"""The benchmark's peers, each by its tool's documented defaults: a float ONNX model and calibration feeds in, a
runnable model with its size and build time, or the reason of its failure, out.

Nothing is tuned for the model: no excluded layers, no preset, no other opset. That is what a person gets who follows
the tool's own page.

    python bench/converters/peers.py MODEL.onnx CALIBRATION.npz    (arrays by input name, samples along the first axis)
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Feed = Mapping[str, np.ndarray]
Run = Callable[[Feed], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Peer:
    """What a tool made; without `run`, `failure` says why. `build_s` counts conversion, not loading the tool."""

    name: str
    run: Run | None = None
    size_bytes: int = 0
    build_s: float = 0.0
    failure: str = ""


def onnxruntime_float(model: Path, _: Sequence[Feed], __: Path) -> tuple[Path, Run]:
    return model, _session(model)


def onnxruntime_static(model: Path, feeds: Sequence[Feed], folder: Path) -> tuple[Path, Run]:
    """`quant_pre_process`, then `quantize_static` with a data reader, as ONNX Runtime's page has it."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
        def __init__(self) -> None:
            self.left: Iterator[Feed] = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self.left, None)

    quant_pre_process(str(model), str(folder / "prepared.onnx"))
    target = folder / "static.onnx"
    quantize_static(str(folder / "prepared.onnx"), str(target), Reader())
    return target, _session(target)


def openvino_default(model: Path, _: Sequence[Feed], folder: Path) -> tuple[Path, Run]:
    """No precision hint: bf16 where the CPU has it."""
    import openvino as ov

    return _saved(ov.Core().read_model(model), folder / "default.xml")


def openvino_nncf(model: Path, feeds: Sequence[Feed], folder: Path) -> tuple[Path, Run]:
    """`nncf.quantize` with a dataset and nothing else."""
    os.environ.setdefault("NNCF_CI", "1")
    import nncf
    import openvino as ov

    return _saved(nncf.quantize(ov.Core().read_model(model), nncf.Dataset(list(feeds))), folder / "int8.xml")


PEERS: Mapping[str, Callable[[Path, Sequence[Feed], Path], tuple[Path, Run]]] = {
    "onnxruntime float": onnxruntime_float,
    "onnxruntime static int8": onnxruntime_static,
    "openvino default": openvino_default,
    "openvino nncf int8": openvino_nncf,
}


def build(name: str, model: Path, feeds: Sequence[Feed], folder: Path) -> Peer:
    """One peer; whatever its tool raises is its failure. A first run shows that the result works."""
    folder.mkdir(parents=True)
    began = time.perf_counter()
    try:
        made, run = PEERS[name](model, feeds, folder)
        build_s = time.perf_counter() - began
        run(feeds[0])
    except Exception as error:  # noqa: BLE001  # tools raise anything, and their failures are what is counted
        took = time.perf_counter() - began
        return Peer(name, build_s=took, failure=f"{type(error).__name__}: {str(error).strip()[:200]}")
    files = [made, made.with_suffix(".bin")]
    return Peer(name, run, sum(file.stat().st_size for file in files if file.is_file()), build_s)


def _session(path: Path) -> Run:
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True))


def _saved(model: Any, target: Path) -> tuple[Path, Run]:
    import openvino as ov

    ov.save_model(model, target)
    compiled = ov.Core().compile_model(target, "CPU")

    def run(feed: Feed) -> dict[str, np.ndarray]:
        results = compiled(dict(feed))
        return {port.get_any_name(): np.array(results[port]) for port in compiled.outputs}

    return target, run


def main(arguments: Sequence[str]) -> None:
    model, data = Path(arguments[0]), np.load(arguments[1], allow_pickle=False)
    count = len(data[data.files[0]])
    feeds = [{name: data[name][index] for name in data.files} for index in range(count)]
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-") as folder:
        for name in PEERS:
            peer = build(name, model, feeds, Path(folder) / name.replace(" ", "-"))
            told = peer.failure or f"{peer.size_bytes} bytes"
            print(f"{name:26} built in {peer.build_s:6.2f} s  {told}")


if __name__ == "__main__":
    main(sys.argv[1:])
