"""A tiny real classifier of images, and bundles of it with true golden data."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit import bundle, engines, selftest
from edgekit.bundle import file_entry
from edgekit.manifest import EngineSpec, Manifest, Option, SelfTest, StatePair, Step, TensorSpec
from edgekit.samples import Samples, dump_arrays, dump_npz
from edgekit.selftest import record
from edgekit.tensors import Array

# importlib mode does not look beside a test.
sys.path.insert(0, str(Path(__file__).parent))

SIDE = 8
CLASSES = 3
INPUT = TensorSpec("image", "float32", (1, 3, SIDE, SIDE))
OUTPUT = TensorSpec("logits", "float32", (1, CLASSES))
STEPS = (
    Step("normalize", {"mean": [120.0, 110.0, 100.0], "std": [60.0, 55.0, 50.0], "axis": -1}),
    Step("transpose", {"axes": [2, 0, 1]}),
)
POST = (
    Step("softmax", {"output": "logits"}),
    Step("top_k", {"output": "logits", "k": 2, "labels": ["a", "b", "c"]}),
)


def classifier(changes: Callable[[dict[str, NDArray[np.generic]]], None] = lambda weights: None) -> bytes:
    """An ONNX network: convolution, an activation in uint8 with a scale, ReLU, pooling, a linear layer."""
    chance = np.random.default_rng(0)
    weights: dict[str, NDArray[np.generic]] = {
        "kernel": chance.normal(size=(6, 3, 3, 3)).astype(np.float32),
        "scale": np.float32(0.08),
        "zero": np.uint8(128),
        "linear": chance.normal(size=(6, CLASSES)).astype(np.float32),
        "bias": chance.normal(size=(CLASSES,)).astype(np.float32),
    }
    changes(weights)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "kernel"], ["c"]),
            helper.make_node("QuantizeLinear", ["c", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
            helper.make_node("Relu", ["d"], ["r"]),
            helper.make_node("ReduceMean", ["r"], ["p"], axes=[2, 3], keepdims=0),
            helper.make_node("Gemm", ["p", "linear", "bias"], ["logits"]),
        ],
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return serialized(graph)


def accumulator() -> bytes:
    """A stateful ONNX network: y = x + state, and the sum is the next state."""
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "state"], ["next"]),
            helper.make_node("Identity", ["next"], ["y"]),
        ],
        "accumulator",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("x", "state")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("y", "next")],
    )
    return serialized(graph)


def serialized(graph: onnx.GraphProto) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def images(count: int = 32) -> Samples:
    """Random pictures with a tint each, H x W x C uint8."""
    chance = np.random.default_rng(1)
    tint = chance.integers(0, 160, size=(count, 1, 1, 3))
    return Samples({"image": (chance.integers(0, 96, size=(count, SIDE, SIDE, 3)) + tint).astype(np.uint8)})


@dataclass
class BundleMaker:
    """Writes bundles whose golden data come from the untouched model and steps, whatever is changed in the bundle."""

    folder: Path
    golden: Samples = field(default_factory=images)

    def outputs(self, model: bytes, manifest: Manifest) -> dict[str, Array]:
        (self.folder / "model").mkdir(parents=True, exist_ok=True)
        (self.folder / manifest.engine.model).write_bytes(model)
        loaded = engines.LoadedBundle(manifest, self.folder)
        pieces = (manifest.inputs, manifest.state, manifest.preprocess)
        return selftest.run_samples(loaded.run, *pieces, self.golden)[0]

    def manifest(
        self,
        files: Mapping[str, bytes],
        *,
        inputs: Sequence[TensorSpec] = (INPUT,),
        outputs: Sequence[TensorSpec] = (OUTPUT,),
        state: Sequence[StatePair] = (),
        preprocess: Mapping[str, tuple[Step, ...]] | None = None,
        postprocess: tuple[Step, ...] = POST,
        engine: str = "onnxruntime",
        options: Mapping[str, Option] | None = None,
        version: str = "1.0.0",
    ) -> Manifest:
        return Manifest(
            format=1,
            name="tints",
            version=version,
            profile="x86-64-v3",
            engine=EngineSpec(engine, ">=1", "model/model.onnx", dict(options or {}), threads=1),
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            recipe=f"{engine}/fp32",
            source_sha256="0" * 64,
            files=tuple(file_entry(path, data) for path, data in sorted(files.items())),
            selftest=SelfTest(
                "selftest/inputs.npz",
                "selftest/source.npz",
                "selftest/artifact.npz",
                len(self.golden),
                {spec.name: 1e-3 for spec in outputs},
                0.95,
            ),
            state=tuple(state),
            preprocess={"image": STEPS} if preprocess is None else dict(preprocess),
            postprocess=postprocess,
        )

    def write(
        self,
        name: str = "good.edgekit",
        *,
        true_model: bytes | None = None,
        model: bytes | None = None,
        steps: Mapping[str, tuple[Step, ...]] | None = None,
        **shape: object,
    ) -> Path:
        """A bundle of `model` and `steps`, judged by golden data of `true_model` and the right steps."""
        true_model = classifier() if true_model is None else true_model
        members = {"model/model.onnx": true_model, **dict.fromkeys(GOLDEN, b"")}
        golden = dump_arrays(record(self.outputs(true_model, self.manifest(members, **shape))))
        members = {
            "model/model.onnx": true_model if model is None else model,
            "selftest/inputs.npz": dump_npz(self.golden),
            "selftest/source.npz": golden,
            "selftest/artifact.npz": golden,
        }
        if steps is not None:
            shape["preprocess"] = steps
        bundle.write(self.folder / name, self.manifest(members, **shape), members)
        return self.folder / name


GOLDEN = ("selftest/inputs.npz", "selftest/source.npz", "selftest/artifact.npz")


@pytest.fixture
def maker(tmp_path: Path) -> BundleMaker:
    return BundleMaker(tmp_path)


@pytest.fixture
def tiny_classifier() -> Callable[..., bytes]:
    return classifier


@pytest.fixture
def tiny_accumulator() -> bytes:
    return accumulator()
