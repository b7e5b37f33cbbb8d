"""What dynamic batching could gain: one call of N samples against N calls of one, on small models, one thread.

An upper bound: no time is spent on waiting for others, which `max_delay_ms` would add to each request. Prints
milliseconds a sample; the blocks of each size alternate.

Run:  python bench/agent/batching.py
"""

import itertools
import statistics
import time
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

SIZES = (1, 2, 4, 8, 16)
BLOCKS, SECONDS = 15, 0.05
Call = Callable[[np.ndarray], object]


def weights(name: str, *shape: int) -> onnx.TensorProto:
    scale = np.sqrt(2 / np.prod(shape[1:]))
    return numpy_helper.from_array(
        np.random.default_rng(0).normal(size=shape).astype(np.float32) * np.float32(scale), name
    )


def mlp() -> tuple[onnx.ModelProto, tuple[int, ...]]:
    """784-256-128-10."""
    sizes, nodes, made, last = (784, 256, 128, 10), [], [], "x"
    for index, (take, give) in enumerate(itertools.pairwise(sizes)):
        made.append(weights(f"w{index}", take, give))
        nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [f"m{index}"]))
        nodes.append(helper.make_node("Relu", [f"m{index}"], [f"r{index}"]))
        last = f"r{index}"
    return model(nodes, made, last, (784,)), (784,)


def conv() -> tuple[onnx.ModelProto, tuple[int, ...]]:
    """Four 3x3 convolutions of 16 to 64 channels on 3x96x96, each halving the picture."""
    channels, nodes, made, last = (3, 16, 32, 64, 64), [], [], "x"
    for index, (take, give) in enumerate(itertools.pairwise(channels)):
        made.append(weights(f"w{index}", give, take, 3, 3))
        nodes.append(
            helper.make_node("Conv", [last, f"w{index}"], [f"c{index}"], strides=[2, 2], pads=[1, 1, 1, 1])
        )
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        last = f"r{index}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["y"]))
    return model(nodes, made, "y", (3, 96, 96)), (3, 96, 96)


def model(nodes: list, made: list, last: str, shape: tuple[int, ...]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)], made,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def by_onnxruntime(proto: onnx.ModelProto, _shape: tuple[int, ...], _size: int) -> Call:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return lambda batch: session.run(None, {"x": batch})


def by_openvino(proto: onnx.ModelProto, shape: tuple[int, ...], size: int) -> Call:
    """A model compiled for each size, which is what a static shape would be."""
    core = openvino.Core()
    read = core.read_model(proto.SerializeToString())
    read.reshape([size, *shape])
    request = core.compile_model(read, "CPU", {"INFERENCE_NUM_THREADS": 1}).create_infer_request()
    return lambda batch: request.infer({0: batch}, share_inputs=True)


def measure(call: Call, batch: np.ndarray) -> float:
    """Milliseconds a sample over one block."""
    count, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < SECONDS:
        call(batch)
        count += 1
    return elapsed * 1000 / count / len(batch)


def main() -> None:
    print("ms a sample".ljust(24), *(f"N={size}".rjust(8) for size in SIZES))
    for title, (proto, shape) in {"mlp": mlp(), "conv": conv()}.items():
        for engine in (by_onnxruntime, by_openvino):
            calls = {size: engine(proto, shape, size) for size in SIZES}
            batches = {size: np.zeros((size, *shape), np.float32) for size in SIZES}
            blocks: dict[int, list[float]] = {size: [] for size in SIZES}
            for _ in range(BLOCKS):
                for size in SIZES:
                    blocks[size].append(measure(calls[size], batches[size]))
            medians = [statistics.median(blocks[size]) for size in SIZES]
            print(f"{title}, {engine.__name__[3:]}".ljust(24), *(f"{value:8.4f}" for value in medians))


if __name__ == "__main__":
    main()
