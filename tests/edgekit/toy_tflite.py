"""A small TFLite model written by hand: no converter is needed, and each operator is where it is put."""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

# Rows of weights: 3 fully connected layers with a LOGISTIC behind the second.
SHAPES = ((6, 4), (5, 6), (3, 5))


def weights() -> list[np.ndarray]:
    made = np.random.default_rng(5)
    return [made.normal(size=shape).astype(np.float32) for shape in SHAPES]


def expected(x: np.ndarray) -> np.ndarray:
    """What the model gives for x (1, 4): (1, 3)."""
    first, second, third = weights()
    hidden = np.maximum(x @ first.T, 0)
    squeezed = 1 / (1 + np.exp(-(hidden @ second.T)))
    return (squeezed @ third.T).astype(np.float32)


def mlp() -> bytes:
    """x (1, 4) → FULLY_CONNECTED with relu → FULLY_CONNECTED → LOGISTIC → FULLY_CONNECTED → y (1, 3)."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers, graph.tensors, graph.operators = 3, [schema.BufferT()], [], []

    def tensor(name: str, shape: tuple[int, ...], data: np.ndarray | None = None) -> int:
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = (
            name.encode(),
            list(shape),
            schema.TensorType.FLOAT32,
            0,
        )
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            made.buffer = len(model.buffers)
            model.buffers.append(buffer)
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    def operator(code: int, inputs: list[int], output: int, *, relu: bool = False) -> None:
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = code, inputs, [output]
        if code == 0:
            options = schema.FullyConnectedOptionsT()
            options.fusedActivationFunction = int(relu)
            made.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
            made.builtinOptions = options
        graph.operators.append(made)

    model.operatorCodes = []
    for builtin in (schema.BuiltinOperator.FULLY_CONNECTED, schema.BuiltinOperator.LOGISTIC):
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = builtin
        code.version = 1
        model.operatorCodes.append(code)
    held = [tensor(f"w{index}", data.shape, data) for index, data in enumerate(weights())]
    x, hidden, linear, squeezed, y = (
        tensor(name, (1, size))
        for name, size in (("x", 4), ("hidden", 6), ("linear", 5), ("squeezed", 5), ("y", 3))
    )
    operator(0, [x, held[0], -1], hidden, relu=True)
    operator(0, [hidden, held[1], -1], linear)
    operator(1, [linear], squeezed)
    operator(0, [squeezed, held[2], -1], y)
    graph.inputs, graph.outputs = [x], [y]
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
