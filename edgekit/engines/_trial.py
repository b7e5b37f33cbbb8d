"""The smallest real work of an engine: load y = relu(x) of four numbers, run it, compare.

An import proves little: tflite-runtime 2.14 beside numpy 2 imports, and fails when it makes its first interpreter.
"""

import base64
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgekit.engines import get
from edgekit.errors import EngineError
from edgekit.manifest import EngineSpec, TensorSpec

_X = np.array([[-1, 2, 3, -4]], np.float32)
_Y = np.array([[0, 2, 3, 0]], np.float32)

# An ONNX graph of one Relu (opset 13, IR 8).
_ONNX = base64.b64decode(
    "CAgSADo7CgwKAXgSAXkiBFJlbHUSAWdaEwoBeBIOCgwIARIICgIIAQoCCARiEwoBeRIOCgwIARIICgIIAQoCCARCBAoAEA0="
)
# A TFLite flatbuffer (schema 3) of one RELU.
_TFLITE = base64.b64decode(
    "GAAAAFRGTDMAAA4AGAAUABAADAAIAAQADgAAABQAAAAgAAAAJAAAAOAAAAADAAAAAQAAAAgAAAAEAAQABAAAAAAAAAAAAAAAAQAAABAAAAAM"
    "ABQAEAAMAAgABAAMAAAAEAAAADwAAABAAAAARAAAAAEAAAAQAAAAAAAKAAwAAAAIAAQACgAAAAgAAAAMAAAAAQAAAAEAAAABAAAAAAAAAAEA"
    "AAABAAAAAQAAAAAAAAACAAAANAAAAAQAAADg////CAAAAAwAAAABAAAAeQAAAAIAAAABAAAABAAAAAwADAAIAAAAAAAEAAwAAAAIAAAADAAA"
    "AAEAAAB4AAAAAgAAAAEAAAAEAAAAAQAAABAAAAAMAAwACwAAAAAABAAMAAAAEwAAAAAAABM="
)
_PORT = "<dim>1</dim><dim>4</dim></port>"
_IR = f"""<?xml version="1.0"?>
<net name="relu" version="11"><layers>
<layer id="0" name="x" type="Parameter" version="opset1"><data shape="1,4" element_type="f32"/>
<output><port id="0" precision="FP32" names="x">{_PORT}</output></layer>
<layer id="1" name="relu" type="ReLU" version="opset1">
<input><port id="0" precision="FP32">{_PORT}</input>
<output><port id="1" precision="FP32" names="y">{_PORT}</output></layer>
<layer id="2" name="y" type="Result" version="opset1"><input><port id="0" precision="FP32">{_PORT}</input></layer>
</layers><edges>
<edge from-layer="0" from-port="0" to-layer="1" to-port="0"/>
<edge from-layer="1" from-port="1" to-layer="2" to-port="0"/>
</edges></net>
""".encode()

# Engine → the files of its model, the one to load first.
MODELS: Mapping[str, Mapping[str, bytes]] = {
    "onnxruntime": {"relu.onnx": _ONNX},
    "openvino": {"relu.xml": _IR, "relu.bin": b""},
    "litert": {"relu.tflite": _TFLITE},
}


def attempt(name: str) -> str:
    """The version of the engine called `name`, after it has loaded and run a model right.

    Raises: EngineMissingError if it is not installed or does not import; EngineError if it fails on the model,
    whatever it raised. An engine that crashes takes the process along: call this in a child.
    """
    engine = get(name)
    files = MODELS.get(name)
    if files is None:  # another distribution's, whose format is not known here
        return engine.version()
    first = next(iter(files))
    inputs, outputs = (TensorSpec("x", "float32", (1, 4), "x"),), (TensorSpec("y", "float32", (1, 4), "y"),)
    with tempfile.TemporaryDirectory(prefix="edgekit-trial-") as folder:
        for file, content in files.items():
            (Path(folder) / file).write_bytes(content)
        try:
            model = engine.load(
                Path(folder) / first, EngineSpec(name, "", first, threads=1), inputs, outputs, None
            )
            answer = model.run({"x": _X})["y"]
            model.close()
        except EngineError:
            raise
        except (
            Exception
        ) as error:  # a broken installation fails in ways of its own (SystemError, AttributeError)
            cause = error.__cause__ or error
            raise EngineError(f"{name} fails on a model of one operator: {cause!r}") from error
    if not np.allclose(answer, _Y, atol=0.05):
        raise EngineError(f"{name} computes wrong: relu of {_X.tolist()} came out as {answer.tolist()}")
    return engine.version()
