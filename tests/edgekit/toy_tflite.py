"""Small TFLite models written by hand: no converter is needed, and each operator is where it is put."""

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
    made = _Model()
    held = [made.tensor(f"w{index}", data.shape, data) for index, data in enumerate(weights())]
    x, hidden, linear, squeezed, y = (
        made.tensor(name, (1, size))
        for name, size in (("x", 4), ("hidden", 6), ("linear", 5), ("squeezed", 5), ("y", 3))
    )
    made.operator(0, [x, held[0], -1], hidden, relu=True)
    made.operator(0, [hidden, held[1], -1], linear)
    made.operator(1, [linear], squeezed)
    made.operator(0, [squeezed, held[2], -1], y)
    return made.written(x, y)


def again_and_again(times: int, width: int, *, has_signature: bool = True) -> bytes:
    """x (1, width) → FULLY_CONNECTED and LOGISTIC, so many times with the same weights → y (1, width)."""
    made = _Model()
    square = np.random.default_rng(5).normal(size=(width, width)).astype(np.float32)
    held = made.tensor("w", square.shape, square)
    x = value = made.tensor("x", (1, width))
    for step in range(times):
        linear, squeezed = made.tensor(f"linear{step}", (1, width)), made.tensor(f"y{step}", (1, width))
        made.operator(0, [value, held, -1], linear)
        made.operator(1, [linear], squeezed)
        value = squeezed
    return made.written(x, value, has_signature=has_signature)


def lstm_weights(width: int, units: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For the input, the state and the bias, each with its gates in TFLite's order: input, forget, cell, output."""
    made = np.random.default_rng(7)
    shapes = ((4, units, width), (4, units, units), (4, units))
    return tuple(made.normal(size=shape).astype(np.float32) / 2 for shape in shapes)


def lstm(steps: int, width: int, units: int) -> bytes:
    """x (1, steps, width) → UNIDIRECTIONAL_SEQUENCE_LSTM, whose state is two variables → y (1, steps, units)."""
    made = _Model()
    entering, turning, bias = lstm_weights(width, units)

    def held(name: str, parts: np.ndarray) -> list[int]:
        return [made.tensor(f"{name}{gate}", part.shape, part) for gate, part in enumerate(parts)]

    x, y = made.tensor("x", (1, steps, width)), made.tensor("y", (1, steps, units))
    states = [made.tensor(name, (1, units), is_variable=True) for name in ("hidden", "cell")]
    peepholes, projection, norms = [-1] * 3, [-1] * 2, [-1] * 4
    matrices = [*held("entering", entering), *held("turning", turning)]
    made.operator(2, [x, *matrices, *peepholes, *held("bias", bias), *projection, *states, *norms], y)
    return made.written(x, y, has_signature=True)


def lstm_expected(x: np.ndarray, units: int) -> np.ndarray:
    """What the LSTM gives for x (1, steps, width) from zeros: (1, steps, units)."""
    entering, turning, bias = lstm_weights(x.shape[2], units)
    hidden, cell, rows = np.zeros(units, np.float32), np.zeros(units, np.float32), []
    for row in x[0]:
        entry, forget, fresh, leave = entering @ row + turning @ hidden + bias
        cell = cell / (1 + np.exp(-forget)) + np.tanh(fresh) / (1 + np.exp(-entry))
        hidden = np.tanh(cell) / (1 + np.exp(-leave))
        rows.append(hidden)
    return np.stack(rows)[None].astype(np.float32)


class Tables:
    """A model's tables, while it is written."""

    def __init__(self) -> None:
        self.model, self.graph = schema.ModelT(), schema.SubGraphT()
        self.model.version, self.model.buffers, self.model.subgraphs = 3, [schema.BufferT()], [self.graph]
        self.graph.tensors, self.graph.operators = [], []

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        data: np.ndarray | None = None,
        kind: int = schema.TensorType.FLOAT32,
        *,
        is_variable: bool = False,
    ) -> int:
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name.encode(), list(shape), kind, 0
        made.isVariable = is_variable
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            made.buffer = len(self.model.buffers)
            self.model.buffers.append(buffer)
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def packed(self) -> bytes:
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


class _Model(Tables):
    """Operators are 0, FULLY_CONNECTED, 1, LOGISTIC, and 2, UNIDIRECTIONAL_SEQUENCE_LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.model.operatorCodes = []
        known = schema.BuiltinOperator
        for builtin in (known.FULLY_CONNECTED, known.LOGISTIC, known.UNIDIRECTIONAL_SEQUENCE_LSTM):
            code = schema.OperatorCodeT()
            code.builtinCode = code.deprecatedBuiltinCode = builtin
            code.version = 1
            self.model.operatorCodes.append(code)

    def operator(self, code: int, inputs: list[int], output: int, *, relu: bool = False) -> None:
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = code, inputs, [output]
        if code == 0:
            options = schema.FullyConnectedOptionsT()
            options.fusedActivationFunction = int(relu)
            made.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
            made.builtinOptions = options
        if code == 2:
            made.builtinOptionsType = schema.BuiltinOptions.UnidirectionalSequenceLSTMOptions
            made.builtinOptions = schema.UnidirectionalSequenceLSTMOptionsT()
            made.builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.TANH
        self.graph.operators.append(made)

    def written(self, x: int, y: int, *, has_signature: bool = False) -> bytes:
        self.graph.inputs, self.graph.outputs = [x], [y]
        if has_signature:
            signature = schema.SignatureDefT()
            signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
            signature.inputs, signature.outputs = [_named("in", x)], [_named("out", y)]
            self.model.signatureDefs = [signature]
        return self.packed()


def _named(name: str, tensor: int) -> schema.TensorMapT:
    made = schema.TensorMapT()
    made.name, made.tensorIndex = name.encode(), tensor
    return made
