"""What each quantized layer of a QDQ model costs by itself, without converting anything again.

The float graph gets every Q/DQ pair of the int8 one behind a switch (`Where(switch, dequantized, float)`), one boolean
input a tensor. So one session answers for all layers: a layer is quantized alone by switching on the tensors at its
edges.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from converters.backends.onnxruntime.facts import FACTS
from converters.quantize.sensitivity import LayerError, snr_db
from edgekit.tensors import Array

# Seconds for all layers together; fewer samples are looked at where a model is slow.
BUDGET_S = 60.0
MIN_SAMPLES = 2


@dataclass
class _Switched:
    """The float graph under surgery. `layers` maps a layer's name to the switches at its edges."""

    model: onnx.ModelProto
    switches: dict[str, str] = field(default_factory=dict)
    layers: dict[str, list[str]] = field(default_factory=dict)


def sensitivity(
    exact: onnx.ModelProto,
    int8: onnx.ModelProto,
    kinds: Collection[str],
    samples: Sequence[Mapping[str, Array]],
) -> list[LayerError]:
    """Layers of the given operator types, worst first.

    `exact` is the graph that `int8` was made from, `samples` engine-ready inputs.
    """
    switched = _switched(exact, int8, kinds)
    types = {node.name: node.op_type for node in exact.graph.node}
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # Any optimization would fold the constants behind a switch or fuse across it.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Other processes convert beside this one.
    for key, value in FACTS.beside.items():
        options.add_session_config_entry(key, str(value))
    session = ort.InferenceSession(
        switched.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in exact.graph.output]
    outputs = [value.name for value in switched.model.graph.output]

    def run(sample: Mapping[str, Array], on: Sequence[str]) -> dict[str, Array]:
        flags = {switch: np.array(switch in on) for switch in switched.switches.values()}
        return dict(zip(names, session.run(outputs, {**sample, **flags}), strict=True))

    began = time.perf_counter()
    run(samples[0], [])
    once = time.perf_counter() - began
    affordable = int(BUDGET_S / max(once * len(switched.layers), 1e-9))
    looked = samples[: max(MIN_SAMPLES, affordable)]
    wanted = [run(sample, []) for sample in looked]
    found = [
        LayerError(name, types[name], snr_db(wanted, [run(sample, on) for sample in looked]))
        for name, on in switched.layers.items()
    ]
    return sorted(found, key=lambda layer: layer.snr_db)


def _switched(exact: onnx.ModelProto, int8: onnx.ModelProto, kinds: Collection[str]) -> _Switched:
    model = onnx.ModelProto()
    model.CopyFrom(exact)
    made = _Switched(model)
    constants = {tensor.name: tensor for tensor in int8.graph.initializer}
    producers = {name: node for node in int8.graph.node for name in node.output}
    quantizers = {node.input[0]: node for node in int8.graph.node if node.op_type == "QuantizeLinear"}
    followers = {node.input[0]: node for node in int8.graph.node if node.op_type == "DequantizeLinear"}
    float_nodes = {node.name: node for node in exact.graph.node}
    added: list[onnx.NodeProto] = []
    for node in int8.graph.node:
        plain = float_nodes.get(node.name)
        if node.op_type not in kinds or plain is None:
            continue
        edges: list[str] = []
        for name, tensor in zip(node.input, plain.input, strict=True):
            last = producers.get(name)
            if last is not None and last.op_type == "DequantizeLinear":
                first = producers.get(last.input[0])
                edges.append(_switch(made, added, tensor, [first, last], constants))
        for name, tensor in zip(node.output, plain.output, strict=True):
            first = quantizers.get(name)
            if first is not None and first.output[0] in followers:
                edges.append(_switch(made, added, tensor, [first, followers[first.output[0]]], constants))
        if edges:
            made.layers[node.name] = edges
    _connect(made, added)
    return made


def _switch(
    made: _Switched,
    added: list[onnx.NodeProto],
    tensor: str,
    pair: Sequence[onnx.NodeProto | None],
    constants: Mapping[str, onnx.TensorProto],
) -> str:
    """The switch of a tensor, entered with its Q/DQ nodes when first asked for."""
    if tensor in made.switches:
        return made.switches[tensor]
    switch = made.switches[tensor] = f"switch {len(made.switches)}"
    current = tensor
    for node in pair:
        if node is None:  # weights are stored quantized: there is a DequantizeLinear only
            current = ""
            continue
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{switch} {node.op_type}"
        if current:
            copy.input[0] = current
        for position, name in enumerate(copy.input):
            if name in constants:
                own = onnx.TensorProto()
                own.CopyFrom(constants[name])
                own.name = copy.input[position] = f"{switch} {node.op_type} {position}"
                made.model.graph.initializer.append(own)
        current = copy.output[0] = f"{switch} {node.op_type} output"
        added.append(copy)
    added.append(helper.make_node("Where", [switch, current, tensor], [_after(tensor)], name=switch))
    made.model.graph.input.append(helper.make_tensor_value_info(switch, onnx.TensorProto.BOOL, []))
    return switch


def _connect(made: _Switched, added: Sequence[onnx.NodeProto]) -> None:
    """Whoever read a switched tensor reads what the switch lets through, the graph's outputs too."""
    graph = made.model.graph
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in made.switches:
                node.input[position] = _after(name)
    for value in graph.output:
        if value.name in made.switches:
            value.name = _after(value.name)
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    ordered = _in_order([*graph.node, *added], known)
    del graph.node[:]
    graph.node.extend(ordered)
    del graph.value_info[:]


def _after(tensor: str) -> str:
    return f"{tensor} switched"


def _in_order(nodes: Sequence[onnx.NodeProto], known: set[str]) -> list[onnx.NodeProto]:
    """Each node after those that it reads from."""
    ready = set(known) | {""}
    ordered: list[onnx.NodeProto] = []
    waiting = list(nodes)
    while waiting:
        later: list[onnx.NodeProto] = []
        for node in waiting:
            if all(name in ready for name in node.input):
                ordered.append(node)
                ready.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise AssertionError(f"a cycle at {later[0].name}")
        waiting = later
    return ordered
