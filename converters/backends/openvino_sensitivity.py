"""Which activation quantizer of an OpenVINO model does the harm.

Every activation quantizer gets a switch: its output becomes `x + s * (quantized(x) - x)`, with all `s` in one added
input, so that the model is compiled once and not once for each quantizer. With all switches off it computes in float
with the weights it has; with one on, its outputs differ by what that quantizer does.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from converters.backends import openvino_graph as graph
from converters.quantize.sensitivity import LayerError, snr_db
from edgekit.errors import DataError, EngineError
from edgekit.tensors import Array

SAMPLES = 12


def ranked(
    path: Path, calibration: Callable[[], Iterator[Mapping[str, Array]]], samples: int = SAMPLES
) -> list[LayerError]:
    """What each activation quantizer costs alone, the worst first.

    Raises: DataError without a sample, EngineError if OpenVINO cannot run the model with its switches.
    """
    model = ov.Core().read_model(path)
    quantizers = graph.activation_quantizers(model)
    if not quantizers:
        return []
    feeds = [dict(feed) for feed in islice(calibration(), samples)]
    if not feeds:
        raise DataError("the calibration data holds no sample")
    run = _switched(model, quantizers)
    off = np.zeros(len(quantizers), np.float32)
    wanted = [run(feed, off) for feed in feeds]
    found = []
    for index, quantizer in enumerate(quantizers):
        switches = off.copy()
        switches[index] = 1
        have = [run(feed, switches) for feed in feeds]
        found.append(LayerError(quantizer.names[0], quantizer.op_type, snr_db(wanted, have)))
    return sorted(found, key=lambda item: item.snr_db)


def _switched(
    model: Any, quantizers: list[graph.Quantizer]
) -> Callable[[Mapping[str, Array], Array], dict[str, Array]]:
    outputs = [port.any_name for port in model.outputs]
    switches = ops.parameter([len(quantizers)], np.float32, name="edgekit_switches")
    for index, quantizer in enumerate(quantizers):
        node = quantizer.node
        takers = list(node.output(0).get_target_inputs())
        switch = ops.gather(switches, ops.constant(np.int64(index)), ops.constant(np.int64(0)))
        noise = ops.subtract(node.output(0), node.input_value(0))
        blended = ops.add(node.input_value(0), ops.multiply(switch, noise))
        for port in takers:
            port.replace_source_output(blended.output(0))
    model.add_parameters([switches])
    try:
        compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        request = compiled.create_infer_request()
    except RuntimeError as error:
        raise EngineError(f"openvino cannot analyse the model: {error}") from error
    ports = [set(port.get_names()) for port in compiled.inputs[:-1]]

    def run(feed: Mapping[str, Array], chosen: Array) -> dict[str, Array]:
        inputs: dict[int, Array] = {
            index: next(array for name, array in feed.items() if name in known)
            for index, known in enumerate(ports)
        }
        results = request.infer({**inputs, len(ports): chosen}, share_inputs=True)
        return {name: np.array(results[index]) for index, name in enumerate(outputs)}

    return run
