"""Runs here and under emulation: pre- and post-processing of made-up images; prints the digests of what comes out."""

import hashlib
import json

import numpy as np

from edgekit.manifest import Step, TensorSpec
from edgekit.transforms import prepare

STEPS = {
    "enlarged": [
        {"op": "resize", "height": 96, "width": 160},
        {"op": "normalize", "mean": [127.5], "std": [63.75]},
    ],
    "reduced": [{"op": "resize", "height": 17, "width": 23}, {"op": "scale", "factor": 1 / 255}],
    "for a network": [
        {"op": "resize", "height": 48, "width": 192},
        {"op": "normalize", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]},
        {"op": "transpose", "axes": [2, 0, 1]},
        {"op": "expand_dims", "axis": 0},
    ],
}
SHAPES = ((31, 57, 3), (240, 320, 3), (48, 48, 3), (1, 9, 3), (481, 641, 3))


def digests() -> dict[str, str]:
    random = np.random.default_rng(7)
    images = [random.integers(0, 256, shape, dtype=np.uint8) for shape in SHAPES]
    spec = TensorSpec("x", "float32", (1,))
    found = {}
    for name, tables in STEPS.items():
        steps = [
            Step(str(table["op"]), {key: table[key] for key in table if key != "op"}) for table in tables
        ]
        for image in images:
            made = prepare((spec,), {"x": steps}, {"x": image})["x"]
            found[f"{name} {image.shape}"] = hashlib.sha256(np.ascontiguousarray(made).tobytes()).hexdigest()
    return found


if __name__ == "__main__":
    print(json.dumps(digests()))
