"""The sources' matrix: one network in every form that models come in, built for one profile by all recipes.

    python bench/converters/sources.py --json matrix.json

The network (three convolutions on scikit-learn's digits, about a minute to train) is the same in all forms but the detector,
which is `tests/converters/detectors.py`'s. A cell holds each recipe of an engine with what it keeps: the share of right
digits, or of a detector F1 against the source. In brackets stands what the contract refuses; what failed has its reason in
the JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from ai_edge_quantizer import quantizer, recipe
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from sklearn.datasets import load_digits
from torch import nn

from edgekit.quiet import quietly

ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "litert": "LiteRT"}
# What a candidate may lose; beyond it stands in brackets.
LIMIT = 0.03
_HERE = Path(__file__).resolve().parents[2]


def network(images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
    steps = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(150):
        steps.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        steps.step()
    return net.eval()


class Reader(CalibrationDataReader):
    def __init__(self, rows: np.ndarray) -> None:
        self._rows = iter({"x": row[None]} for row in rows)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rows, None)


def forms(folder: Path, net: nn.Module, calibration: np.ndarray) -> Iterator[tuple[str, Path, str]]:
    """What each is called, its file, and the name of its input."""
    import litert_torch

    example = torch.zeros(1, 1, 8, 8)
    source = folder / "float.onnx"
    torch.onnx.export(
        net, (example,), str(folder / "exported.onnx"), dynamo=False, opset_version=17, input_names=["x"],
        output_names=["logits"],
    )  # fmt: skip
    quant_pre_process(str(folder / "exported.onnx"), str(source))
    yield "ONNX, float", source, "x"
    torch.jit.trace(net, example).save(str(folder / "traced.pt"))
    yield "TorchScript", folder / "traced.pt", "x"
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "open.pt2")
    yield "`torch.export`, open batch", folder / "open.pt2", "input"
    for what, form in (("Q/DQ pairs", QuantFormat.QDQ), ("integer operators", QuantFormat.QOperator)):
        quantize_static(
            str(source), str(folder / f"{form.name}.onnx"), Reader(calibration), quant_format=form
        )
        yield f"ONNX, {what}", folder / f"{form.name}.onnx", "x"
    quantize_dynamic(str(source), str(folder / "dynamic.onnx"))
    yield "ONNX, ranges at run time", folder / "dynamic.onnx", "x"
    quietly(lambda: litert_torch.convert(net, (example,)).export(str(folder / "float.tflite")))
    yield "TFLite, float", folder / "float.tflite", "args_0"
    tool = quantizer.Quantizer(str(folder / "float.tflite"), recipe.static_wi8_ai8())
    ranges = tool.calibrate({"serving_default": [{"args_0": row[None]} for row in calibration]})
    (folder / "int8.tflite").write_bytes(quietly(lambda: tool.quantize(ranges).quantized_model))
    yield "TFLite, int8", folder / "int8.tflite", "args_0"
    model = ov.Core().read_model(source)
    ov.save_model(model, folder / "ir.xml", compress_to_fp16=False)
    yield "OpenVINO IR", folder / "ir.xml", "x"


def built(source: Path, folder: Path, *words: str) -> list[dict[str, Any]]:
    """Every candidate; none, and why on standard error, where the build itself fails."""
    told = folder / f"{source.name}.json"
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", "build", str(source), "--name", "m", "--version", "1", "--target",
         "x86-64-v3", "--out", str(folder / "dist"), "--json", str(told), "--accept-uncertain",
         "--max-accuracy-drop", str(LIMIT), *words],
        cwd=_HERE, check=False, capture_output=True, text=True,
    )  # fmt: skip
    if not told.is_file():
        print(done.stdout[-500:], done.stderr[-500:], file=sys.stderr)
        return []
    found: list[dict[str, Any]] = json.loads(told.read_text())["candidates"]
    return found


def cell(candidates: list[dict[str, Any]], engine: str) -> str:
    parts = []
    for one in candidates:
        name = one["recipe"].partition("/")[2]
        if not one["recipe"].startswith(engine) or one["status"] == "failed" or not one.get("accuracy"):
            continue
        score = one["accuracy"].get("shipped")
        if score is None or "+" in name:
            continue
        text = f"{name} {score:.3f}".replace(" 0.", " .")
        parts.append(f"({text})" if one["status"] == "refused" else text)
    return ", ".join(parts) or "none"


def row(what: str, candidates: list[dict[str, Any]]) -> str:
    picked = next((one["recipe"] for one in candidates if one["status"] == "picked"), "none")
    cells = [cell(candidates, engine) for engine in ENGINES]
    return f"| {what} | {' | '.join(cells)} | `{picked}` |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write every candidate of every form there")
    parser.add_argument(
        "--only", action="append", default=[], help="forms with this in their name; may be repeated"
    )
    arguments = parser.parse_args()
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = (data.images[order] / 16).astype(np.float32)[:, None, None]
    labels = data.target[order].astype(np.int64)
    everything: dict[str, list[dict[str, Any]]] = {}
    print(f"| form | {' | '.join(ENGINES.values())} | picked |\n|---|---|---|---|---|")

    def show(what: str, make: Callable[[], list[dict[str, Any]]]) -> None:
        if not arguments.only or any(only in what for only in arguments.only):
            everything[what] = make()
            print(row(what, everything[what]), flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        net = network(torch.from_numpy(images[:900, 0]), torch.from_numpy(labels[:900]))
        for what, source, fed in forms(folder, net, images[900:1000, 0]):
            files = data_files(folder, fed, {"calib": images[900:1000], "eval": images[1000:]}, labels[1000:])
            words = [*files, "--shape", f"{fed}=1,1,8,8"]
            show(what, lambda source=source, words=words: built(source, folder, *words))  # type: ignore[misc]
        sys.path.insert(0, str(_HERE / "tests" / "converters"))
        import detectors

        pictures = {"calib": detectors.pictures(64, 1), "eval": detectors.pictures(400, 2)}
        source = detectors.model("rows", folder / "detector.onnx")
        show(
            "ONNX detector, NMS inside",
            lambda: built(source, folder, *data_files(folder, "x", pictures, None)),
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(everything, indent=1))


def data_files(
    folder: Path, fed: str, arrays: Mapping[str, np.ndarray], labels: np.ndarray | None
) -> list[str]:
    words = []
    for name, flag in (("calib", "--calibration"), ("eval", "--evaluation")):
        more = {"labels": labels} if labels is not None and name == "eval" else {}
        np.savez(folder / f"{name}.npz", **{fed: arrays[name]}, **more)
        words += [flag, str(folder / f"{name}.npz")]
    return words


if __name__ == "__main__":
    main()
