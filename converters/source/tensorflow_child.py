"""Keras or SavedModel to TFLite in float: run by `tensorflow_source`, in a process where TensorFlow is installed.

Stands alone, since that Python may have nothing else of EdgeKit: `python tensorflow_child.py MODEL TARGET SHAPES`, SHAPES
being JSON, input name → shape. An open batch axis becomes 1. What is wrong with the model ends it with status 3 and a
line of JSON, {"error": "…"}.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

# Which input of an operator on lists is the shape of an element.
_LISTS = {"TensorListReserve": 0, "TensorListStack": 1, "TensorListFromTensor": 1, "TensorListGetItem": 2}
# What rounding in another order may come to.
_TOLERANCE = 1e-3


class _Refused(Exception):  # noqa: N818  # leaves this file as a line of text
    """What is wrong, for whoever builds."""


def main(path: Path, target: Path, shapes: dict[str, list[int]]) -> None:
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    # The first is held, since its variables live as long as it does.
    _loaded, call, specs = (_saved if path.is_dir() else _keras)(tf, path)
    unknown = sorted(set(shapes) - set(specs))
    if unknown:
        raise _Refused(f"it has no input {', '.join(unknown)}; there are {', '.join(specs)}")
    signature = [
        tf.TensorSpec(_closed(name, spec, shapes.get(name)), spec.dtype, name) for name, spec in specs.items()
    ]
    traced = tf.function(lambda *tensors: call(dict(zip(specs, tensors, strict=True)))).get_concrete_function(
        *signature
    )
    # Variables of a Keras model come out of TensorFlow 2.21's converter without their values: they become constants first.
    constant = convert_variables_to_constants_v2(traced)
    frozen = _with_sized_lists(tf, constant, signature)
    # As TensorFlow flattens a dictionary.
    names = sorted(traced.structured_outputs)
    holder = tf.Module()
    holder.call = tf.function(lambda *tensors: dict(zip(names, frozen(*tensors), strict=True)))
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(
            holder, folder, signatures={"serving_default": holder.call.get_concrete_function(*signature)}
        )
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["serving_default"])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        made = converter.convert()
    if frozen is not constant:
        _compare(tf, made, traced, signature)
    target.write_bytes(made)


def _with_sized_lists(tf: Any, frozen: Any, signature: list[Any]) -> Any:
    """The function with the batch written into the lists that its loops keep.

    A SavedModel's own function was traced with an open batch, and a recurrent layer's list says so for good ([-1, units]),
    whatever shapes it is called with; TFLite takes lists of known sizes alone.
    """
    graph = frozen.graph.as_graph_def()
    batches = {spec.shape[0] for spec in signature if spec.shape.rank}
    sized = [
        _sized(tf, nodes, batches)
        for nodes in (graph.node, *(function.node_def for function in graph.library.function))
    ]
    if not any(sized):
        return frozen
    taken, given = ([one.name for one in side] for side in (frozen.inputs, frozen.outputs))

    def call(*tensors: Any) -> Any:
        return tf.graph_util.import_graph_def(graph, dict(zip(taken, tensors, strict=True)), given, name="")

    return tf.compat.v1.wrap_function(call, signature)


def _sized(tf: Any, nodes: Any, batches: set[int]) -> int:
    """Of how many lists in a graph the open first axis became the batch."""
    shapes = {node.input[_LISTS[node.op]].partition(":")[0] for node in nodes if node.op in _LISTS}
    count = 0
    for node in nodes:
        if node.name not in shapes or node.op != "Const":
            continue
        shape = tf.make_ndarray(node.attr["value"].tensor)
        if shape.ndim == 1 and shape.size and shape[0] == -1 and len(batches) == 1:
            closed = [*batches, *shape[1:]]
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(closed, dtype=shape.dtype))
            count += 1
    return count


def _compare(tf: Any, made: bytes, traced: Any, signature: list[Any]) -> None:
    """Raises: _Refused if the file does not give what the model gives, of random numbers and of zeros for whole ones."""
    random = tf.random.Generator.from_seed(0)
    feed = [
        random.normal(spec.shape, dtype=spec.dtype)
        if spec.dtype.is_floating
        else tf.zeros(spec.shape, spec.dtype)
        for spec in signature
    ]
    run = tf.lite.Interpreter(model_content=made).get_signature_runner()
    found = run(**{spec.name: tensor for spec, tensor in zip(signature, feed, strict=True)})
    for name, wanted in traced(*feed).items():
        gap = abs(found[name].astype(float) - wanted.numpy().astype(float))
        if gap.size and not gap.max() <= _TOLERANCE * (1 + abs(wanted.numpy()).max()):
            raise _Refused(f"with closed lists its loops give another {name!r}, by up to {gap.max():.3g}")


def _keras(tf: Any, path: Path) -> tuple[Any, Any, dict[str, Any]]:
    """The model, what gives named outputs of named inputs, and the inputs' specs. Code inside of the file (Lambda) is
    refused.
    """
    model = tf.keras.models.load_model(path, compile=False, safe_mode=True)
    specs = {
        tensor.name.partition(":")[0]: tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in model.inputs
    }

    def call(inputs: dict[str, Any]) -> dict[str, Any]:
        tensors = list(inputs.values())
        return _named(model(tensors if len(tensors) > 1 else tensors[0], training=False), model)

    return model, call, specs


def _named(result: Any, model: Any) -> dict[str, Any]:
    if isinstance(result, dict):
        return result
    results = list(result) if isinstance(result, (list, tuple)) else [result]
    names = getattr(model, "output_names", None) or []
    if len(set(names)) != len(results):
        names = [f"output_{index}" for index in range(len(results))]
    return dict(zip(names, results, strict=True))


def _saved(tf: Any, path: Path) -> tuple[Any, Any, dict[str, Any]]:
    loaded = tf.saved_model.load(str(path))
    signatures = loaded.signatures
    key = "serving_default" if "serving_default" in signatures else next(iter(signatures), None)
    if key is None:
        raise _Refused("the SavedModel has no signature; save it with signatures={'serving_default': …}")
    function = signatures[key]
    return loaded, lambda inputs: function(**inputs), dict(function.structured_input_signature[1])


def _closed(name: str, spec: Any, given: list[int] | None) -> list[int]:
    if spec.shape.rank is None and given is None:
        raise _Refused(f"input {name!r} has no known number of axes; give its shape with --shape {name}=…")
    known = [None] * len(given or []) if spec.shape.rank is None else spec.shape.as_list()
    if given is not None:
        if len(given) != len(known) or any(
            have not in (None, want) for have, want in zip(known, given, strict=True)
        ):
            raise _Refused(f"input {name!r} is {known}, and --shape gives {given}")
        return given
    if any(size is None for size in known[1:]):
        raise _Refused(f"the shape of input {name!r} is open, {known}; give it with --shape {name}=…")
    return [1 if size is None else size for size in known]


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
    except Exception as error:  # noqa: BLE001  # Keras and TensorFlow raise anything; the parent tells it
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        told = str(error) if isinstance(error, _Refused) else f"{type(error).__name__}: {lines[0]}"
        sys.stdout.write("\n" + json.dumps({"error": told[:600]}) + "\n")
        sys.exit(3)
