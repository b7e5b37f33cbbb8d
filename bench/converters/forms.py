"""The forms that models come in, each a small trained net in a file, with what it is fed: the rows of `sources.py`.

All but the detector tell scikit-learn's digits, 900 to train, 100 to calibrate, 797 to evaluate. Where a maker of
`tests/converters` has the graph, it is that one, with trained weights in it.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import torch
from ai_edge_quantizer import quantizer, recipe
from nets import ONE, Looped, Recurrent, Tokens, convolutions, trained
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from edgekit.quiet import quietly

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "converters"))
import detectors
import quantized_models
import recurrent_models
import tree_models

Arrays = Mapping[str, np.ndarray]
# The Python that has TensorFlow, where this one has not.
PYTHON = "EDGEKIT_TENSORFLOW"


def levels(images: np.ndarray) -> np.ndarray:
    """Whole numbers from 0 to 16."""
    found: np.ndarray = np.round(images * 16).astype(np.int64)
    return found


class LeftOut(Exception):  # noqa: N818  # a sentence for the table, no fault
    """Why a form is not made here."""


@dataclass(frozen=True)
class Form:
    """A model's file and its samples, (N, 1, …) an input; without labels it is judged against itself."""

    source: Path
    calibration: Arrays
    evaluation: Arrays
    labels: np.ndarray | None


class Workshop:
    """What several forms are made of, made once, and the folder they lie in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Nets this small lose more by a second thread, most of all on a busy machine.
        torch.set_num_threads(1)
        data = load_digits()
        order = np.random.default_rng(0).permutation(len(data.target))
        self.images = (data.images[order] / 16).astype(np.float32)
        self.labels = data.target[order].astype(np.int64)

    def train(self, net: torch.nn.Module, steps: int, *inputs: torch.Tensor, rate: float = 0.01) -> None:
        """On images, or on what is given in their place."""
        fed = inputs or (torch.from_numpy(self.images[:900]),)
        trained(net, steps, rate, fed, torch.from_numpy(self.labels[:900]))

    @cached_property
    def net(self) -> torch.nn.Module:
        """(batch, 1, 8, 8) to ten scores."""
        made = convolutions()
        self.train(made, 150, torch.from_numpy(self.images[:900, None]), rate=0.001)
        return made

    @cached_property
    def float_onnx(self) -> Path:
        exported = self.exported(self.net, (ONE[:, None],), "exported", ["x"])
        quant_pre_process(str(exported), str(self.folder / "float.onnx"))
        return self.folder / "float.onnx"

    @cached_property
    def float_tflite(self) -> Path:
        return self.tflite(self.net, ONE[:, None], "float")

    @cached_property
    def gru(self) -> Recurrent:
        made = Recurrent("GRU", 64)
        self.train(made, 120)
        return made

    @cached_property
    def tokens(self) -> Tokens:
        made = Tokens()
        self.train(made.scores, 120, torch.from_numpy(levels(self.images[:900])))
        return made

    def exported(
        self, net: torch.nn.Module, example: tuple[torch.Tensor, ...], name: str, inputs: list[str]
    ) -> Path:
        path = self.folder / f"{name}.onnx"
        quietly(lambda: torch.onnx.export(
            net, example, str(path), dynamo=False, opset_version=17, input_names=inputs, output_names=["logits"],
        ))  # fmt: skip
        return path

    def tflite(self, net: torch.nn.Module, example: torch.Tensor, name: str) -> Path:
        import litert_torch

        path = self.folder / f"{name}.tflite"
        quietly(lambda: litert_torch.convert(net, (example,)).export(str(path)))
        return path

    def save(self, model: onnx.ModelProto, name: str) -> Path:
        path = self.folder / f"{name}.onnx"
        onnx.save(model, path)
        return path

    def form(self, source: Path, feed: Callable[[np.ndarray], Arrays]) -> Form:
        """`feed` turns images (N, 8, 8) into the model's inputs."""
        return Form(source, feed(self.images[900:1000]), feed(self.images[1000:]), self.labels[1000:])

    def pictures(self, source: Path, name: str = "x") -> Form:
        return self.form(source, lambda images: {name: images[:, None, None]})

    def rows(self, source: Path, name: str = "x") -> Form:
        """Row by row: steps, batch, width."""
        return self.form(source, lambda images: {name: images[:, :, None]})


class Reader(CalibrationDataReader):
    def __init__(self, shop: Workshop) -> None:
        self._rows = iter({"x": row[None, None]} for row in shop.images[900:1000])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rows, None)


def float_onnx(shop: Workshop) -> Form:
    return shop.pictures(shop.float_onnx)


def half_onnx(shop: Workshop) -> Form:
    half = convert_float_to_float16(onnx.load(str(shop.float_onnx)), keep_io_types=True)
    return shop.pictures(shop.save(half, "half"))


def odd_outputs(shop: Workshop) -> Form:
    """Beside the scores: the input, the scores again, a single number, nothing."""
    model = onnx.load(str(shop.float_onnx))
    node = helper.make_node
    model.graph.node.extend([
        node("Identity", ["logits"], ["again"]), node("ReduceMax", ["logits"], ["top"], keepdims=0),
        node("Slice", ["logits", "start", "start", "axis"], ["nothing"]),
    ])  # fmt: skip
    for name, value in (("start", 0), ("axis", 1)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    for name, shape in (("x", [1, 1, 8, 8]), ("again", [1, 10]), ("top", []), ("nothing", [1, 0])):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return shop.pictures(shop.save(model, "odd"))


def torchscript(shop: Workshop) -> Form:
    path = shop.folder / "traced.pt"
    torch.jit.trace(shop.net, ONE[:, None]).save(str(path))
    return shop.pictures(path)


def program(shop: Workshop) -> Form:
    path = shop.folder / "open.pt2"
    batch = torch.export.Dim("batch", min=1, max=64)
    example = torch.zeros(2, 1, 8, 8)
    torch.export.save(torch.export.export(shop.net, (example,), dynamic_shapes=({0: batch},)), path)
    return shop.pictures(path, "input")


def program_of_integers(shop: Workshop) -> Form:
    """Whole numbers in, a dict out, the batch open."""
    path = shop.folder / "tokens.pt2"
    batch = torch.export.Dim("batch", min=1, max=64)
    example = torch.zeros(2, 8, 8, dtype=torch.int64)
    torch.export.save(torch.export.export(shop.tokens, (example,), dynamic_shapes=({0: batch},)), path)
    return shop.form(path, lambda images: {"pixels": levels(images)[:, None]})


def quantized(form: QuantFormat) -> Callable[[Workshop], Form]:
    def make(shop: Workshop) -> Form:
        path = shop.folder / f"{form.name}.onnx"
        quantize_static(str(shop.float_onnx), str(path), Reader(shop), quant_format=form)
        return shop.pictures(path)

    return make


def ranged_at_run_time(shop: Workshop) -> Form:
    quantize_dynamic(str(shop.float_onnx), str(shop.folder / "dynamic.onnx"))
    return shop.pictures(shop.folder / "dynamic.onnx")


def few_bits(shop: Workshop) -> Form:
    return shop.pictures(
        shop.save(quantized_models.with_small_weights(onnx.load(str(shop.float_onnx))), "few_bits")
    )


def four_bits(shop: Workshop) -> Form:
    source = shop.exported(
        shop.tokens.scores, (torch.zeros(1, 8, 8, dtype=torch.int64),), "tokens", ["pixels"]
    )
    tool = MatMulNBitsQuantizer(onnx.load(str(source)), block_size=32, is_symmetric=True)
    quietly(tool.process)
    path = shop.save(tool.model.model, "four_bits")
    return shop.form(path, lambda images: {"pixels": levels(images)[:, None]})


def float_tflite(shop: Workshop) -> Form:
    return shop.pictures(shop.float_tflite, "args_0")


def int8_tflite(shop: Workshop) -> Form:
    tool = quantizer.Quantizer(str(shop.float_tflite), recipe.static_wi8_ai8())
    samples = [{"args_0": row[None, None]} for row in shop.images[900:1000]]
    ranges = tool.calibrate({"serving_default": samples})
    path = shop.folder / "int8.tflite"
    path.write_bytes(quietly(lambda: tool.quantize(ranges).quantized_model))
    return shop.pictures(path, "args_0")


def recurrent_tflite(shop: Workshop) -> Form:
    path = shop.tflite(shop.gru, ONE, "gru")
    return shop.form(path, lambda images: {"args_0": images[:, None]})


def ir(shop: Workshop) -> Form:
    path = shop.folder / "ir.xml"
    ov.save_model(ov.Core().read_model(shop.float_onnx), path, compress_to_fp16=False)
    return shop.pictures(path)


def gru_onnx(shop: Workshop) -> Form:
    made = recurrent_models.net(
        "GRU", steps=8, hidden=64, constants=shop.gru.constants(), linear_before_reset=1
    )
    return shop.rows(shop.save(made, "gru"))


def _lengths(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(5, 9, (count, 1)).astype(np.int32)


def lstm_with_lengths(shop: Workshop) -> Form:
    """Both ways over the first five to eight rows."""
    lengths = torch.from_numpy(_lengths(900)[:, 0]).long()
    net = Recurrent("LSTM", 48, both_ways=True)
    shop.train(net, 150, torch.from_numpy(shop.images[:900]), lengths)
    made = recurrent_models.net(
        "LSTM", direction="bidirectional", lengths=True, steps=8, hidden=48, constants=net.constants()
    )
    return shop.form(
        shop.save(made, "lstm"), lambda images: {"x": images[:, :, None], "lengths": _lengths(len(images))}
    )


def lstm_int8(shop: Workshop) -> Form:
    """Weights of the layer in int8: com.microsoft's DynamicQuantizeLSTM."""
    net = Recurrent("LSTM", 64)
    shop.train(net, 150)
    made = recurrent_models.net("LSTM", steps=8, hidden=64, constants=net.constants())
    path = shop.folder / "lstm_int8.onnx"
    quantize_dynamic(made, str(path), op_types_to_quantize=["LSTM", "MatMul"])
    return shop.rows(path)


def loop(shop: Workshop) -> Form:
    """Five turns over eight numbers that 64 pixels make."""
    net = Looped(5)
    shop.train(net, 200)
    made = recurrent_models.loop(5)
    recurrent_models.fill(
        made, {"m": net.array("turn"), "enter": net.array("enter"), "head": net.array("head")}
    )
    made.graph.node.insert(0, helper.make_node("MatMul", ["pixels", "enter"], ["x"]))
    made.graph.node.append(helper.make_node("MatMul", ["y", "head"], ["logits"]))
    made.graph.input[0].CopyFrom(recurrent_models.value("pixels", (1, 64)))
    made.graph.output[0].CopyFrom(recurrent_models.value("logits", (1, 10)))
    return shop.form(shop.save(made, "loop"), lambda images: {"pixels": images.reshape(-1, 1, 64)})


def scan(shop: Workshop) -> Form:
    """A recurrence over the rows; its outputs are the scores, each step's state and the last."""
    net = Looped(8, by_row=True)
    shop.train(net, 300)
    made = recurrent_models.scan(8)
    recurrent_models.fill(made, {"w": net.array("enter"), "r": net.array("turn"), "head": net.array("head")})
    made.graph.node.append(helper.make_node("MatMul", ["last", "head"], ["logits"]))
    made.graph.output.insert(0, recurrent_models.value("logits", (1, 10)))
    return shop.rows(shop.save(made, "scan"))


def linear_of_scikit_learn(shop: Workshop) -> Form:
    pixels = shop.images[:900].reshape(-1, 64)
    scaler = StandardScaler().fit(pixels)
    fitted = LogisticRegression(max_iter=500).fit(scaler.transform(pixels), shop.labels[:900])
    path = shop.save(tree_models.linear(fitted, scaler), "linear")
    return shop.form(path, lambda images: {"x": images.reshape(-1, 1, 64)})


def forest_of_scikit_learn(shop: Workshop) -> Form:
    fitted = RandomForestClassifier(30, max_depth=9, random_state=0)
    fitted.fit(shop.images[:900].reshape(-1, 64), shop.labels[:900])
    path = shop.save(tree_models.forest(fitted), "forest")
    return shop.form(path, lambda images: {"x": images.reshape(-1, 1, 64)})


def keras(name: str, fed: str) -> Callable[[Workshop], Form]:
    """The same weights in Keras' own order, saved by TensorFlow in a process of its own."""

    def make(shop: Workshop) -> Form:
        python = os.environ.get(PYTHON) or (sys.executable if find_spec("tensorflow") else None)
        if python is None:
            raise LeftOut(f"TensorFlow is not installed, and {PYTHON} names no Python that has it")
        if not (shop.folder / name).exists():
            arrays = {key: tensor.numpy() for key, tensor in shop.net.state_dict().items()}
            np.savez(shop.folder / "weights.npz", **arrays)
            images = {"images": shop.images[:900], "labels": shop.labels[:900]}
            np.savez(shop.folder / "train.npz", **images)  # type: ignore[arg-type]
            subprocess.run(
                [python, str(Path(__file__).with_name("keras_files.py"))], cwd=shop.folder, check=True,
                env={**os.environ, "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"},
                capture_output=True,
            )  # fmt: skip
        if name == "lstm.keras":
            return shop.form(shop.folder / name, lambda images: {fed: images[:, None]})
        return shop.form(shop.folder / name, lambda images: {fed: images[:, None, :, :, None]})

    return make


def detector(shop: Workshop) -> Form:
    source = detectors.model("rows", shop.folder / "detector.onnx")
    return Form(source, {"x": detectors.pictures(64, 1)}, {"x": detectors.pictures(400, 2)}, None)


FORMS: Mapping[str, Callable[[Workshop], Form]] = {
    "ONNX, float": float_onnx,
    "ONNX, float16": half_onnx,
    "ONNX, an input, a scalar and nothing among its outputs": odd_outputs,
    "TorchScript": torchscript,
    "`torch.export`, open batch": program,
    "`torch.export`, whole numbers in, a dict out": program_of_integers,
    "ONNX, Q/DQ pairs": quantized(QuantFormat.QDQ),
    "ONNX, integer operators": quantized(QuantFormat.QOperator),
    "ONNX, ranges at run time": ranged_at_run_time,
    "ONNX, weights alone in 8 bits": few_bits,
    "ONNX, weights alone in 4 bits (`MatMulNBits`)": four_bits,
    "ONNX, GRU": gru_onnx,
    "ONNX, LSTM both ways, with lengths": lstm_with_lengths,
    "ONNX, LSTM in int8 (`DynamicQuantizeLSTM`)": lstm_int8,
    "ONNX, `Loop`": loop,
    "ONNX, `Scan`": scan,
    "scikit-learn, linear (ai.onnx.ml)": linear_of_scikit_learn,
    "scikit-learn, trees (ai.onnx.ml)": forest_of_scikit_learn,
    "ONNX detector, NMS inside": detector,
    "TFLite, float": float_tflite,
    "TFLite, int8": int8_tflite,
    "TFLite, GRU unrolled": recurrent_tflite,
    "Keras, `.keras`": keras("net.keras", "x"),
    "SavedModel": keras("saved", "x"),
    "Keras, LSTM": keras("lstm.keras", "x"),
    "OpenVINO IR": ir,
}
