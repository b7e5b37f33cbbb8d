"""Which activation quantizer of an OpenVINO model does the harm.

Every activation quantizer gets a switch: its output becomes `x + s * (quantized(x) - x)`, with all `s` in one added
input, so that the model is compiled once and not once for each quantizer. With all switches off it computes in float
with the weights it has; with one on, its outputs differ by what that quantizer does.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from openvino import opset13 as ops

from converters.backends import Prepared
from converters.backends.openvino import graph
from converters.backends.openvino.facts import FACTS
from converters.quantize.sensitivity import LayerError, divergence, snr_db
from edgekit.engines.openvino import core, read
from edgekit.errors import DataError, EngineError
from edgekit.tensors import Array

# Samples of each kind (calibration, shifted) that every quantizer is seen on, and that the worst are seen on again.
FIRST, SAMPLES = 3, 12
# How many are seen again.
AGAIN = 20
# Seconds after which no further quantizer is looked at, and between two lines of progress.
BUDGET_S = 60.0
TOLD_S = 10.0
Feeds = Sequence[Mapping[str, Array]]
Run = Callable[[Mapping[str, Array], Array], dict[str, Array]]


def ranked(path: Path, prepared: Prepared, clock: Callable[[], float]) -> list[LayerError]:
    """What each activation quantizer costs alone, the worst first: all on a few samples, then the worst on more.

    Shifted samples count as much as calibration ones. On PP-OCRv6's recogniser, calibration lines alone name layers
    that are not at fault, and leaving eight of them in float mends nothing; with worn lines beside them the four worst
    are those whose ranges worn lines exceed.

    Raises: DataError without a sample, EngineError if OpenVINO cannot run the model with its switches.
    """
    model = read(path)
    quantizers = graph.activation_quantizers(model)
    if not quantizers:
        return []
    few, more = _feeds(prepared, FIRST), _feeds(prepared, SAMPLES)
    if not few:
        raise DataError("the calibration data holds no sample")
    look = _Look(_switched(model, quantizers), quantizers, prepared.tell, clock)
    first = look.at(range(len(quantizers)), few)
    order = sorted(first, key=lambda index: -first[index].harm)
    second = look.at(order[:AGAIN], more)
    return sorted((first | second).values(), key=lambda item: -item.harm)


def _feeds(prepared: Prepared, count: int) -> Feeds:
    makers = [maker for maker in (prepared.calibration, prepared.shifted) if maker is not None]
    return [dict(feed) for maker in makers for feed in islice(maker(), count)]


class _Look:
    """Looks at one quantizer after the other until the time is up."""

    def __init__(
        self,
        run: Run,
        quantizers: Sequence[graph.Quantizer],
        tell: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._run, self._quantizers, self._tell, self._clock = run, quantizers, tell, clock
        self._began = self._told = clock()

    def at(self, indices: Sequence[int], feeds: Feeds) -> dict[int, LayerError]:
        """Errors by the quantizer's index; those that there was no time for are left out."""
        off = np.zeros(len(self._quantizers), np.float32)
        wanted = [self._run(feed, off) for feed in feeds]
        found: dict[int, LayerError] = {}
        for index in indices:
            if found and self._clock() - self._began > BUDGET_S:
                self._tell(f"the time is up: {len(found)} of {len(indices)} quantizers looked at")
                break
            if self._clock() - self._told > TOLD_S:
                self._told = self._clock()
                left = BUDGET_S - (self._told - self._began)
                self._tell(f"looked at {len(found)} of {len(indices)} quantizers; at most {left:.0f} s left")
            quantizer = self._quantizers[index]
            switches = off.copy()
            switches[index] = 1
            have = [self._run(feed, switches) for feed in feeds]
            found[index] = LayerError(
                quantizer.names[0], quantizer.op_type, snr_db(wanted, have), divergence(wanted, have)
            )
        return found


def _switched(model: Any, quantizers: Sequence[graph.Quantizer]) -> Run:
    outputs = [port.any_name for port in model.outputs]
    switches = ops.parameter([len(quantizers)], np.float32, name="edgekit_switches")
    for index, quantizer in enumerate(quantizers):
        graph.widen_recurrent(quantizer)
        node = quantizer.node
        takers = list(node.output(0).get_target_inputs())
        switch = ops.gather(switches, ops.constant(np.int64(index)), ops.constant(np.int64(0)))
        noise = ops.subtract(node.output(0), node.input_value(0))
        blended = ops.add(node.input_value(0), ops.multiply(switch, noise))
        for port in takers:
            port.replace_source_output(blended.output(0))
    model.add_parameters([switches])
    try:
        compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **FACTS.beside})
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
