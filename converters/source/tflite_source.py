"""TFLite files as sources: taken as they are, for LiteRT."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ai_edge_litert.interpreter import Interpreter

from converters.source import tflite
from converters.source.native import Native
from converters.source.project import Project
from converters.source.source import Source, check_declared, observed_outputs, state_pairs
from converters.source.tflite import NPU_OPERATOR, Graph
from converters.source.work import Work
from edgekit import engines
from edgekit.bundle import sha256_file
from edgekit.errors import EngineError, SourceError
from edgekit.manifest import EngineSpec, TensorSpec
from edgekit.profile import Precision
from edgekit.quiet import quietly

# Operators whose integer types say that the model computes in integers, not only stores them.
_COMPUTING = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL")
_RESET_NOTE = (
    "layers of the file keep their state from call to call; it is set to zero before each. A model that is to go on from call to"
    " call takes its state as an input and gives it as an output ([state])"
)
_STATEFUL = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE")


def open_file(project: Project, path: Path) -> Source:
    """Raises: SourceError; ProjectError if a declared shape contradicts the model's."""
    graph = quietly(lambda: tflite.read(path))
    _refuse(path, graph)
    names = _public_names(path, graph)
    interpreter = quietly(lambda: Interpreter(model_path=str(path)))
    kinds = {detail["name"]: detail for detail in interpreter.get_input_details()}
    given = {detail["name"]: detail for detail in interpreter.get_output_details()}
    inputs = tuple(
        # The engine converts quantized inputs with the model's own scale: the public tensor is float.
        TensorSpec(
            name,
            "float32" if kinds[tensor]["quantization"][0] else kinds[tensor]["dtype"].__name__,
            tuple(int(dim) for dim in kinds[tensor]["shape"]),
            tensor,
        )
        for name, tensor in names["inputs"].items()
    )
    for spec in inputs:
        check_declared(project, spec)
    outputs = tuple(TensorSpec(name, "float32", (), tensor) for name, tensor in names["outputs"].items())
    options = tflite.RESET if graph.keeps_state else {}
    try:
        load = engines.get("litert").load
        reference = quietly(
            lambda: load(
                path, EngineSpec("litert", "", path.name, dict(options)), list(inputs), list(outputs), None
            )
        )
    except EngineError as error:
        raise SourceError(f"{path}: {error}") from error
    bare = tuple(TensorSpec(spec.name, spec.dtype, spec.shape) for spec in inputs)
    return Source(
        inputs=bare,
        outputs=observed_outputs(reference, bare, project.model.source),
        state=state_pairs(project),
        sha256=sha256_file(path),
        reference=reference,
        native=Native(
            engine="litert",
            what="a TFLite file",
            files=(path,),
            names={**names["inputs"], **names["outputs"]},
            precision=precision(graph),
            work=work(graph),
            options=options,
            note=_RESET_NOTE if graph.keeps_state else "",
            stored=stored(graph),
            scales={
                name: found[tensor]["quantization"]
                for found, side in ((kinds, "inputs"), (given, "outputs"))
                for name, tensor in names[side].items()
                if found[tensor]["quantization"][0]
            },
        ),
    )


def precision(graph: Graph) -> Precision:
    """int8 if a layer with weights takes integers; weights stored in integers alone still compute in float."""
    taken = {graph.tensors[step.inputs[0]].kind for step in graph.steps if step.name in _COMPUTING}
    return "int8" if taken & {"INT8", "UINT8", "INT16"} else "fp32"


def stored(graph: Graph) -> Precision | None:
    """fp16 if the graph widens weights from float16."""
    return (
        "fp16" if any(tensor.is_constant and tensor.kind == "FLOAT16" for tensor in graph.tensors) else None
    )


def work(graph: Graph) -> Work:
    """Of one inference."""
    macs = sum(
        _MACS[step.name]([graph.tensors[index].shape for index in (*step.inputs[:3], step.outputs[0])])
        for step in graph.steps
        if step.name in _MACS
    )
    weights = sum(math.prod(tensor.shape) for tensor in graph.tensors if tensor.is_constant)
    made = {index for step in graph.steps for index in step.outputs}
    activations = sum(math.prod(graph.tensors[index].shape) for index in made)
    return Work(macs, weights, activations, len(graph.steps))


Shapes = Sequence[tuple[int, ...]]
# Shapes of input, weights, a third input, …, and output last. Filters: OHWI; depthwise 1HWC; TRANSPOSE_CONV gives its
# output's shape first, then the filter, then its input.
_MACS: Mapping[str, Callable[[Shapes], int]] = {
    "CONV_2D": lambda shapes: math.prod(shapes[-1]) * math.prod(shapes[1][1:]),
    "DEPTHWISE_CONV_2D": lambda shapes: math.prod(shapes[-1]) * math.prod(shapes[1][1:3]),
    "FULLY_CONNECTED": lambda shapes: math.prod(shapes[-1]) * shapes[1][-1],
    "TRANSPOSE_CONV": lambda shapes: math.prod(shapes[2]) * math.prod(shapes[1][:3]),
    "BATCH_MATMUL": lambda shapes: math.prod(shapes[-1]) * shapes[0][-1],
}


def _refuse(path: Path, graph: Graph) -> None:
    if NPU_OPERATOR in graph.operators:
        raise SourceError(
            f"{path}: already compiled by Vela, and only an Ethos-U runs that; give the int8 model that went into it"
        )
    stateful = sorted({name for name in graph.operators if name in _STATEFUL})
    if stateful:
        raise SourceError(
            f"{path}: keeps its state inside ({', '.join(stateful)}), which cannot be set back to zero between"
            " sequences, so neither accuracy nor a self-test would repeat; export it with the state as an input and an"
            " output, and pair them under [state], or build from the Keras file or SavedModel that it was made of"
        )
    loose = [
        graph.tensors[index].name
        for index in (*graph.inputs, *graph.outputs)
        if min(graph.tensors[index].shape, default=1) < 0
    ]
    if loose:
        raise SourceError(
            f"{path}: shapes of {', '.join(loose)} are open, and a file that is taken as it is keeps its shapes;"
            " convert it again with fixed ones"
        )


def _public_names(path: Path, graph: Graph) -> dict[str, dict[str, str]]:
    """The signature's names → tensor names, or the tensors' own names. Raises: SourceError where two are the same."""
    found: dict[str, dict[str, str]] = {}
    for side, indices in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        signature = graph.signature.get(side, {})
        public = {index: name for name, index in signature.items()}
        names = {public.get(index, graph.tensors[index].name): graph.tensors[index].name for index in indices}
        if len(names) != len(indices) or len(set(names.values())) != len(indices) or "" in names:
            raise SourceError(f"{path}: two of its {side} have one name, or none; name them apart")
        found[side] = names
    return found
