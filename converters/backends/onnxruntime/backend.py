"""ONNX Runtime: the canonical model in float, or int8 by ONNX Runtime's own quantizer, calibrated or dynamic."""

from itertools import islice
from pathlib import Path

import onnx

from converters.backends import Backend, Prepared, Unsupported
from converters.backends.artifact import Artifact
from converters.backends.onnxruntime import dynamic, files, graph, layers, qdq
from converters.backends.parity import smallest_gap
from converters.backends.sharing import Store
from converters.graph import canonical
from converters.quantize.sensitivity import LayerError
from converters.recipes.knobs import Knob
from converters.recipes.recipe import AS_IS
from converters.recipes.recipes import Plan
from converters.source import linking, onnx_source, onnx_weights

MODEL = "model.onnx"
# Calibration samples that a layer's cost is seen on.
LOOKED_AT = 12


class OnnxRuntimeBackend(Backend):
    def convert(self, prepared: Prepared, plan: Plan, folder: Path) -> Artifact:
        target = folder / MODEL
        if plan.recipe.scheme == AS_IS:
            source = prepared.source
            assert source.onnx_path is not None
            onnx_source.written_as_it_came(source.onnx_path, target, is_apart=source.is_apart)
            return Artifact(folder, MODEL, {}, source.notes)
        if plan.recipe.scheme == "float":
            return Artifact(folder, MODEL, {}, _float_model(prepared, target))
        notes: tuple[str, ...] = ()
        if plan.recipe.scheme == "dynamic":
            model = dynamic.quantized(prepared, plan, folder)
        elif prepared.canonical.weights is not None:
            raise Unsupported(
                "not tried: weights of this size are quantized one after the other, for ONNX Runtime by its dynamic int8; its"
                " calibrated int8 is made of the whole model in memory"
            )
        else:
            model, notes = qdq.quantized(prepared, plan)
        for field in ("producer_name", "producer_version", "doc_string"):
            model.ClearField(field)
        del model.metadata_props[:]
        target.write_bytes(model.SerializeToString(deterministic=True))
        return Artifact(folder, MODEL, {}, notes)

    def sensitivity(self, prepared: Prepared, plan: Plan, artifact: Artifact) -> list[LayerError]:
        if not plan.recipe.needs_calibration or prepared.calibration is None:
            raise Unsupported(f"{plan.name} has no calibrated layers to tell apart")
        int8 = onnx.load(str(artifact.folder / artifact.model))
        samples = list(islice(prepared.calibration(), LOOKED_AT))
        kinds = set(qdq.choices(plan).ops) - qdq.MOVES
        return layers.sensitivity(qdq.folded(prepared), int8, kinds, samples)

    def knobs(self, plan: Plan) -> tuple[Knob, ...]:
        if plan.recipe.scheme == AS_IS:
            return ()
        knobs = qdq.knobs if plan.recipe.needs_calibration else dynamic.knobs
        return knobs(plan)

    def open_shapes(self, model: Path) -> tuple[str, ...]:
        return files.open_shapes(model)

    def move_weights(self, model: Path, store: Store) -> None:
        files.move_weights(model, store)


def _float_model(prepared: Prepared, target: Path) -> tuple[str, ...]:
    """The canonical model with its activation functions recognised, if it then still computes the same."""
    as_it_is = prepared.canonical.path.read_bytes()
    target.write_bytes(as_it_is)
    if prepared.canonical.weights is not None:
        linking.put(prepared.canonical.weights, target.with_name(onnx_weights.WEIGHTS))
    model = onnx.ModelProto.FromString(as_it_is)
    made = graph.for_float(model)
    if made is model:
        return ()
    canonical.name_nodes(made.graph)
    target.write_bytes(made.SerializeToString(deterministic=True))
    gap = _gap(prepared, target)
    if gap <= canonical.PARITY:
        return ()
    target.write_bytes(as_it_is)
    return (f"patterns left as they were: the model would differ by {gap:.2g} of its largest output",)


def _gap(prepared: Prepared, path: Path) -> float:
    """How far a model is from the source, in parts of the largest output."""
    source = prepared.source
    names = tuple(spec.name for spec in source.outputs)
    model = onnx_source.load_reference(path, source.inputs, names, is_apart=source.is_apart)
    try:
        return smallest_gap(prepared, model)
    finally:
        model.close()


BACKEND = OnnxRuntimeBackend()
