"""ONNX files whose weights lie beside them, and what memory a process tree takes."""

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

WEIGHTS = "weights.data"


def outside(
    name: str, shape: Sequence[int], offset: int, *, location: str = WEIGHTS, length: int | None = None
):
    """A float tensor at a place in a file."""
    tensor = TensorProto(
        name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL
    )
    size = 4 * int(np.prod(shape)) if length is None else length
    for key, value in (("location", location), ("offset", offset), ("length", size)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def perceptron(folder: Path, layers: int, width: int, *, location: str = WEIGHTS) -> Path:
    """A stack of matrix products, its weights written one by one: rows that repeat, each time further along."""
    random = np.random.default_rng(0)
    tensors, nodes, last = [], [], "x"
    with (folder / WEIGHTS).open("wb") as file:
        for layer in range(layers):
            rows = random.standard_normal((100, width), dtype=np.float32) / np.float32(np.sqrt(width))
            tensors.append(outside(f"w{layer}", (width, width), file.tell(), location=location))
            for start in range(0, width, len(rows)):
                file.write(np.roll(rows, start // 3 + layer, axis=1)[: width - start].tobytes())
            nodes += [
                helper.make_node("MatMul", [last, f"w{layer}"], [f"m{layer}"], f"product{layer}"),
                helper.make_node("Tanh", [f"m{layer}"], [f"h{layer}"], f"tanh{layer}"),
            ]
            last = f"h{layer}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    edges = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", edges[:1], edges[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    samples = random.standard_normal((120, width)).astype(np.float32)
    np.savez(folder / "calib.npz", x=samples[:20])
    np.savez(folder / "eval.npz", x=samples[20:])
    return path


def peak(command: Sequence[str], **options: object) -> tuple[int, int]:
    """Run it; gives the most that its process tree took at once, looked at five times a second: proportional set size (each
    mapped page counted once, shared among those that map it), and what of it is no file's.
    """
    process = subprocess.Popen(command, **options)  # type: ignore[call-overload]
    most = anonymous = 0
    while process.poll() is None:
        found = [_sizes(pid) for pid in _tree(process.pid)]
        most = max(most, sum(pss for pss, _ in found))
        anonymous = max(anonymous, sum(own for _, own in found))
        time.sleep(0.2)
    assert process.returncode == 0, command
    return most, anonymous


def _tree(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            told = (path / "stat").read_text()
        except OSError:
            continue
        children.setdefault(int(told.rpartition(")")[2].split()[1]), []).append(int(path.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


def _sizes(pid: int) -> tuple[int, int]:
    try:
        lines = Path("/proc", str(pid), "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0, 0
    told = {line.partition(":")[0]: 1024 * int(line.split()[1]) for line in lines[1:]}
    return told.get("Pss", 0), told.get("Pss_Anon", 0) + told.get("Pss_Shmem", 0)


def read(path: Path) -> onnx.ModelProto:
    """The graph as it is stored."""
    return onnx.load(str(path), load_external_data=False)
