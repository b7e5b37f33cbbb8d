"""Recurrent nets and loops as ONNX: every kind, direction and way to say where a sequence ends."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
STEPS, BATCH, WIDTH = 6, 1, 8


def value(name: str, shape: tuple[int, ...], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def whole(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def layer_constants(
    kind: str, directions: int, hidden: int, width: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """Weights `w`, recurrence `r` and bias `b` of one layer, in the operator's layout."""
    random, gates = np.random.default_rng(seed), GATES[kind]
    shapes = {
        "w": (directions, gates * hidden, width),
        "r": (directions, gates * hidden, hidden),
        "b": (directions, 2 * gates * hidden),
    }
    return {name: random.uniform(-0.3, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def net(
    kind: str,
    *,
    direction: str = "forward",
    lengths: bool = False,
    state: bool = False,
    hidden: int = 32,
    steps: int = STEPS,
    constants: dict[str, np.ndarray] | None = None,
    **attributes: Any,
) -> onnx.ModelProto:
    """One recurrent layer and a head on its last hidden state.

    Inputs: `x` of steps, batch and width, `lengths` (int32) where asked for, and the state `h` (and `c`) where it is
    carried between calls. Outputs: `y`, the states `hN` (and `cN`), and `whole`, every step's hidden state.
    """
    directions = 2 if direction == "bidirectional" else 1
    held = dict(constants or layer_constants(kind, directions, hidden, WIDTH))
    random = np.random.default_rng(1)
    held.setdefault("head", random.uniform(-0.3, 0.3, (directions * hidden, 4)).astype(np.float32))
    held["flat"] = np.array([BATCH, directions * hidden], np.int64)
    states = (["h", "c"] if kind == "LSTM" else ["h"]) if state else []
    taken = ["x", "w", "r", "b", "lengths" if lengths else "", *states]
    given = ["whole", "hN", *(["cN"] if kind == "LSTM" else [])]
    nodes = [
        helper.make_node(kind, taken, given, "layer", hidden_size=hidden, direction=direction, **attributes),
        helper.make_node("Transpose", ["hN"], ["by_row"], "by_row", perm=[1, 0, 2]),
        helper.make_node("Reshape", ["by_row", "flat"], ["last"], "last"),
        helper.make_node("MatMul", ["last", "head"], ["y"], "head"),
    ]
    size = (directions, BATCH, hidden)
    inputs = [value("x", (steps, BATCH, WIDTH)), *(value(name, size) for name in states)]
    if lengths:
        inputs.append(value("lengths", (BATCH,), TensorProto.INT32))
    outputs = [value("y", (BATCH, held["head"].shape[1])), value("whole", (steps, directions, BATCH, hidden))]
    outputs += [value(f"{name}N", size) for name in states]
    return whole(nodes, held, inputs, outputs)


def loop(turns: int = 5, *, ends_early: bool = False) -> onnx.ModelProto:
    """`y = tanh(y @ m)` so many times, or (`ends_early`) as long as the sum of its squares is above a bound."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["before", "m"], ["product"]),
        helper.make_node("Tanh", ["product"], ["after"]),
    ]
    if ends_early:
        nodes += [
            helper.make_node("ReduceSumSquare", ["after"], ["energy"], keepdims=0),
            helper.make_node("Greater", ["energy", "bound"], ["goes_on"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["condition"], ["goes_on"]))
    body = helper.make_graph(
        nodes,
        "body",
        [
            value("turn", (), TensorProto.INT64),
            value("condition", (), TensorProto.BOOL),
            value("before", (1, WIDTH)),
        ],
        [value("goes_on", (), TensorProto.BOOL), value("after", (1, WIDTH))],
    )
    constants = {
        "m": random.uniform(-0.6, 0.6, (WIDTH, WIDTH)).astype(np.float32),
        "turns": np.array(turns, np.int64),
        "yes": np.array(True),
        "bound": np.array(0.05, np.float32),
    }
    if not ends_early:
        del constants["bound"]
    node = helper.make_node("Loop", ["turns", "yes", "x"], ["y"], "loop", body=body)
    return whole([node], constants, [value("x", (1, WIDTH))], [value("y", (1, WIDTH))])


def looped_between(turns: int, enter: np.ndarray, turn: np.ndarray, head: np.ndarray) -> onnx.ModelProto:
    """`loop` behind a matrix product and before another: `pixels` (1, n) to `logits` (1, m)."""
    made = loop(turns)
    fill(made, {"m": turn, "enter": enter, "head": head})
    made.graph.node.insert(0, helper.make_node("MatMul", ["pixels", "enter"], ["x"], "enter"))
    made.graph.node.append(helper.make_node("MatMul", ["y", "head"], ["logits"], "head"))
    made.graph.input[0].CopyFrom(value("pixels", (1, len(enter))))
    made.graph.output[0].CopyFrom(value("logits", (1, head.shape[1])))
    return made


def scan(steps: int = STEPS) -> onnx.ModelProto:
    """A recurrence spelled as Scan: each step's state is `tanh(x @ w + before @ r)`."""
    random = np.random.default_rng(0)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["row", "w"], ["entered"]),
            helper.make_node("MatMul", ["before", "r"], ["kept"]),
            helper.make_node("Add", ["entered", "kept"], ["sum"]),
            helper.make_node("Tanh", ["sum"], ["after"]),
            helper.make_node("Identity", ["after"], ["told"]),
        ],
        "body",
        [value("before", (1, WIDTH)), value("row", (1, WIDTH))],
        [value("after", (1, WIDTH)), value("told", (1, WIDTH))],
    )
    constants = {
        name: random.uniform(-0.4, 0.4, (WIDTH, WIDTH)).astype(np.float32) for name in ("w", "r")
    } | {"zero": np.zeros((1, WIDTH), np.float32)}
    node = helper.make_node("Scan", ["zero", "x"], ["last", "y"], "scan", body=body, num_scan_inputs=1)
    return whole(
        [node],
        constants,
        [value("x", (steps, 1, WIDTH))],
        [value("y", (steps, 1, WIDTH)), value("last", (1, WIDTH))],
    )


def fill(model: onnx.ModelProto, constants: dict[str, np.ndarray]) -> None:
    """Constants in the place of those of the same name, or beside them."""
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in constants]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())


def feeds(
    model: onnx.ModelProto, count: int = 6, seed: int = 3, *, steps: int = STEPS
) -> list[dict[str, np.ndarray]]:
    """Random inputs; lengths vary from 2 to all steps."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        feed: dict[str, np.ndarray] = {}
        for entry in model.graph.input:
            shape = [dim.dim_value for dim in entry.type.tensor_type.shape.dim]
            if entry.type.tensor_type.elem_type == TensorProto.INT32:
                feed[entry.name] = random.integers(2, steps + 1, shape).astype(np.int32)
            else:
                feed[entry.name] = random.standard_normal(shape).astype(np.float32)
        made.append(feed)
    return made
