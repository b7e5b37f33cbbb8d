"""What is in an ONNX file beside its graph: weights that may lie elsewhere, shapes that only a run tells."""

from pathlib import Path

import onnx
from onnx.external_data_helper import set_external_data

from converters.backends.sharing import LEAST_BYTES, Store
from edgekit.buckets import SHARED_WEIGHTS


def move_weights(path: Path, store: Store) -> None:
    """The large initializers, into the shared file."""
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) < LEAST_BYTES:
            continue
        content = tensor.raw_data
        set_external_data(tensor, SHARED_WEIGHTS, store.place(content), len(content))
        tensor.ClearField("raw_data")
    path.write_bytes(model.SerializeToString(deterministic=True))


def open_shapes(path: Path) -> tuple[str, ...]:
    """Tensors of open shape, as far as ONNX's own shape inference can tell."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(str(path), load_external_data=False)).graph
    return tuple(
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
        and not all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
    )
