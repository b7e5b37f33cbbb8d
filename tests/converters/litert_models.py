"""Small ONNX models through the LiteRT backend, for tests that look at the flatbuffer it makes."""

import textwrap
from collections import Counter
from dataclasses import replace

import onnx
from onnx import helper, numpy_helper

from converters.backends import Prepared, get
from converters.backends.litert import graph as litert_graph
from converters.graph import canonical
from converters.recipes.recipes import Tuning, plans
from converters.source import onnx_source
from converters.source.code import CodeGate
from converters.source.opening import open_source
from converters.source.project import from_flags
from edgekit import engines, profile
from edgekit.manifest import EngineSpec


def model(nodes, constants, inputs, outputs, opset=17):
    """An ONNX model of float tensors; `inputs` and `outputs` map names to shapes, `constants` to arrays."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, 1, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, 1, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    )


def prepared(made, folder, feeds):
    """The model as backends get it, with `feeds` as its calibration data."""
    path = folder / "model.onnx"
    onnx.save(made, path)
    project = from_flags({
        "model": {"name": "m", "version": "1", "source": str(path)},
        "inputs": {
            name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in feeds[0].items()
        },
        "targets": {"x86-64-v4-vnni": {}}, "data": {"evaluation": "unused"},
    })  # fmt: skip
    source = onnx_source.open_file(project, path)
    return Prepared(source, canonical.canonicalize(source, feeds, folder), lambda: iter(feeds))


def converted(ready, folder, recipe="litert/fp32", target="x86-64-v4-vnni", tuning=None):
    """The artifact of one recipe for one profile."""
    (plan,) = plans(profile.load(target), [recipe])
    made = folder / recipe.replace("/", "-")
    made.mkdir(exist_ok=True)
    return get("litert").convert(ready, replace(plan, tuning=tuning or Tuning()), made)


def operators(artifact):
    """How many of each operator the flatbuffer holds."""
    return Counter(layer.op_type for layer in litert_graph.layers(artifact.folder / artifact.model))


def outputs(artifact, ready, feed):
    """The artifact's outputs by their public names."""
    source = ready.source
    loaded = engines.get("litert").load(
        artifact.folder / artifact.model,
        EngineSpec("litert", "", artifact.model, threads=1, options=artifact.options),
        artifact.bound(source.inputs), artifact.bound(source.outputs, are_outputs=True), None,
    )  # fmt: skip
    found = {name: array.copy() for name, array in loaded.run(feed).items()}
    loaded.close()
    return found


def prepared_program(text, folder, feeds):
    """A torch program, the `make()` of a file with this text, as backends get it."""
    (folder / "net.py").write_text(textwrap.dedent(text))
    project = from_flags({
        "model": {"name": "m", "version": "1", "source": f"{folder / 'net.py'}:make"},
        "inputs": {
            name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in feeds[0].items()
        },
        "targets": {"x86-64-v4-vnni": {}}, "data": {"evaluation": "unused"},
    })  # fmt: skip
    source = open_source(project, CodeGate(allowed=True, tell=lambda _: None))
    return Prepared(source, canonical.canonicalize(source, feeds, folder), lambda: iter(feeds))
