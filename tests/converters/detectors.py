"""A small detector with its suppression inside, and pictures for it. No weights from anywhere: kernels by hand."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE = 32
FORMS = ("rows", "selected", "apart")


def model(form: str, path: Path) -> Path:
    """(1, 2, 32, 32) to what is bright in either channel, 8 pixels wide. `form`: rows of x1, y1, x2, y2, score, class; what
    NonMaxSuppression selects; or boxes, scores and classes in outputs apart.
    """
    rng = np.random.default_rng(0)
    kernels = np.zeros((2, 2, 8, 8), np.float32)
    kernels[0, 0] = kernels[1, 1] = 12 / 64
    steps = np.arange((SIZE - 8) // 4 + 1) * 4.0
    corner = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    constants = {
        "kernels": kernels,
        "bias": np.full(2, -6, np.float32),
        "turns": rng.normal(0, 0.05, (4, 2, 8, 8)).astype(np.float32),
        "reach": np.array([4], np.float32),
        "anchors": np.concatenate([corner, corner + 8], 1)[None].astype(np.float32),
        "by_class": np.array([1, 2, -1]), "by_side": np.array([1, 4, -1]), "most": np.array([64]),
        "overlap": np.array([0.3], np.float32), "least": np.array([0.4], np.float32),
        "zero": np.array([0]), "one": np.array(1), "two": np.array(2), "last": np.array([1]),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "kernels", "bias"], ["bright"], strides=[4, 4]),
        node("Reshape", ["bright", "by_class"], ["logits"]),
        node("Sigmoid", ["logits"], ["scores"]),
        node("Conv", ["x", "turns"], ["turned"], strides=[4, 4]),
        node("Tanh", ["turned"], ["bounded"]),
        node("Mul", ["bounded", "reach"], ["moved"]),
        node("Reshape", ["moved", "by_side"], ["sides"]),
        node("Transpose", ["sides"], ["shifts"], perm=[0, 2, 1]),
        node("Add", ["shifts", "anchors"], ["boxes"]),
        node("NonMaxSuppression", ["boxes", "scores", "most", "overlap", "least"], ["selected"]),
    ]
    gathered = [
        node("Gather", ["selected", "two"], ["place"], axis=1),
        node("Gather", ["selected", "one"], ["class"], axis=1),
        node("Squeeze", ["boxes", "zero"], ["plain_boxes"]),
        node("Gather", ["plain_boxes", "place"], ["found_boxes"]),
        node("Transpose", ["scores"], ["by_place"], perm=[0, 2, 1]),
        node("Squeeze", ["by_place", "zero"], ["plain_scores"]),
        node("Unsqueeze", ["place", "last"], ["place_column"]),
        node("Unsqueeze", ["class", "last"], ["class_column"]),
        node("Concat", ["place_column", "class_column"], ["pair"], axis=1),
        node("GatherND", ["plain_scores", "pair"], ["found_scores"]),
    ]
    value = helper.make_tensor_value_info
    if form == "selected":
        outputs = [value("selected", TensorProto.INT64, ["n", 3])]
    elif form == "rows":
        nodes += [
            *gathered,
            node("Unsqueeze", ["found_scores", "last"], ["score_column"]),
            node("Cast", ["class_column"], ["class_float"], to=TensorProto.FLOAT),
            node("Concat", ["found_boxes", "score_column", "class_float"], ["detections"], axis=1),
        ]
        outputs = [value("detections", TensorProto.FLOAT, ["n", 6])]
    else:
        nodes += [*gathered, node("Identity", ["class"], ["found_classes"])]
        outputs = [
            value("found_boxes", TensorProto.FLOAT, ["n", 4]),
            value("found_scores", TensorProto.FLOAT, ["n"]),
            value("found_classes", TensorProto.INT64, ["n"]),
        ]
    used = {name for each in nodes for name in each.input}
    graph = helper.make_graph(
        nodes, "detector", [value("x", TensorProto.FLOAT, [1, 2, SIZE, SIZE])], outputs,
        [numpy_helper.from_array(array, name) for name, array in constants.items() if name in used],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    onnx.save(made, path)
    return path


def pictures(count: int, seed: int) -> np.ndarray:
    """(N, 1, 2, 32, 32) of up to four squares each."""
    rng = np.random.default_rng(seed)
    made = rng.uniform(0, 0.15, (count, 1, 2, SIZE, SIZE)).astype(np.float32)
    for picture in made:
        for _ in range(int(rng.integers(0, 5))):
            y, x = rng.integers(0, SIZE - 8, 2)
            picture[0, rng.integers(0, 2), y : y + 8, x : x + 8] += rng.uniform(0.5, 1.2)
    return made


def of_real_text(path: Path, size: int = 320) -> Path:
    """PP-OCRv6's text detector with a suppression appended: cells of 16 pixels that hold text, as rows.

    Raises: FileNotFoundError where `rapidocr` is not installed.
    """
    found = importlib.util.find_spec("rapidocr")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError("rapidocr is not installed")
    source = Path(found.submodule_search_locations[0]) / "models" / "PP-OCRv6_det_small.onnx"
    made = onnx.version_converter.convert_version(onnx.load(str(source)), 13)
    graph, count = made.graph, size // 16
    steps = np.arange(count) * 16.0
    corner = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    constants = {
        "cell_boxes": np.concatenate([corner, corner + 16], 1)[None].astype(np.float32),
        "cell_shape": np.array([1, 1, -1]), "cell_most": np.array([count * count]),
        "cell_overlap": np.array([0.5], np.float32), "cell_least": np.array([0.5], np.float32),
        "cell_column": np.array([2]), "cell_flat": np.array([-1]), "cell_rows": np.array([-1, 1]), "cell_zero": np.array([0]),
    }  # fmt: skip
    node = helper.make_node
    graph.node.extend([
        node("MaxPool", [graph.output[0].name], ["cell_peaks"], kernel_shape=[16, 16], strides=[16, 16]),
        node("Reshape", ["cell_peaks", "cell_shape"], ["cell_scores"]),
        node("NonMaxSuppression", ["cell_boxes", "cell_scores", "cell_most", "cell_overlap", "cell_least"], ["cell_found"]),
        node("Gather", ["cell_found", "cell_column"], ["cell_places"], axis=1),
        node("Reshape", ["cell_places", "cell_flat"], ["cell_place"]),
        node("Squeeze", ["cell_boxes", "cell_zero"], ["cell_plain"]),
        node("Gather", ["cell_plain", "cell_place"], ["cell_box"]),
        node("Reshape", ["cell_scores", "cell_flat"], ["cell_score"]),
        node("Gather", ["cell_score", "cell_place"], ["cell_sure"]),
        node("Reshape", ["cell_sure", "cell_rows"], ["cell_sures"]),
        node("Mul", ["cell_sures", "cell_none"], ["cell_class"]),
        node("Concat", ["cell_box", "cell_sures", "cell_class"], ["cells"], axis=1),
    ])  # fmt: skip
    constants["cell_none"] = np.array([0], np.float32)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("cells", TensorProto.FLOAT, ["n", 6]))
    onnx.save(made, path)
    return path
