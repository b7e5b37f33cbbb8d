"""Open a source by its kind: an ONNX file, a torch program, or a file that is already in an engine's own format."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from converters.recipes import facts
from converters.recipes.recipe import EngineFacts
from converters.source import code, tensorflow_source
from converters.source.project import Project
from converters.source.source import Source, observed_outputs
from edgekit.engines._bucketed import BucketedModel
from edgekit.errors import ProjectError, SourceError
from edgekit.manifest import Buckets, TensorSpec


def open_source(project: Project, gate: code.CodeGate) -> Source:
    """Open the project's source.

    Raises: SourceError (no such file, no model, open shapes, `--no-code`); ProjectError (state or pre-processing of
    an input that is not there).
    """
    text = project.model.source
    if code.is_reference(text):
        from converters.source import torch_source

        source = torch_source.from_factory(project, gate)
    else:
        path = project.folder / text
        opener = _open_tensorflow if tensorflow_source.is_one(path) else _opener(path.suffix.lower())
        if opener is None:
            raise SourceError(
                f"{text}: give an ONNX file (.onnx), TorchScript (.pt, .jit), a torch.export program (.pt2), file.py:factory,"
                " a Keras file (.keras, .h5) or SavedModel folder, or what is already converted: TFLite (.tflite) or an OpenVINO"
                " IR (.xml)"
            )
        if not path.exists():
            raise SourceError(f"{path}: there is no such model file")
        source = opener(project, path, gate)
    _check_names(project, source)
    return source if project.buckets is None else _in_buckets(project, source, project.buckets)


def _in_buckets(project: Project, source: Source, buckets: Buckets) -> Source:
    """The source at every size. Raises: SourceError where it does not run at one; ProjectError for fixed shapes."""
    if source.native is not None:
        raise ProjectError(
            f"{project.where}: inputs.{next(iter(buckets.axes))}.shape has buckets, and {source.native.what} has the one shape"
            " that it was converted with; build from the ONNX or torch model that it was made of"
        )
    if source.is_apart:
        raise ProjectError(
            f"{project.where}: inputs.{next(iter(buckets.axes))}.shape has buckets, and the weights of a model as large as this"
            " are kept apart from it, which is not done for several sizes of one model yet; give that input one size"
        )
    by_size = []
    for size in buckets.sizes:
        inputs = buckets.at(source.inputs, size)
        outputs = observed_outputs(source.reference, inputs, f"{project.model.source}, bucket {size}")
        by_size.append(replace(source, inputs=inputs, outputs=outputs))
    return replace(
        source,
        outputs=tuple(map(_common, *(each.outputs for each in by_size))),
        reference=BucketedModel(buckets, dict.fromkeys(buckets.sizes, source.reference)),
        buckets=buckets,
        by_size=tuple(by_size),
    )


def _common(*specs: TensorSpec) -> TensorSpec:
    """One output at every size: open where its shape follows the input's. Raises: SourceError."""
    last = specs[-1]
    if len({len(spec.shape) for spec in specs}) > 1:
        raise SourceError(f"output {last.name!r} has more axes in one bucket than in another")
    dims = zip(*(spec.shape for spec in specs), strict=True)
    return TensorSpec(last.name, last.dtype, tuple(each[0] if len(set(each)) == 1 else None for each in dims))


def _open_onnx(project: Project, path: Path, gate: code.CodeGate) -> Source:  # noqa: ARG001  # an opener's signature
    from converters.source import onnx_source

    return onnx_source.open_file(project, path)


def _open_torchscript(project: Project, path: Path, gate: code.CodeGate) -> Source:
    from converters.source import torch_source

    return torch_source.from_torchscript(project, path, gate)


def _open_exported(project: Project, path: Path, gate: code.CodeGate) -> Source:
    from converters.source import torch_source

    return torch_source.from_exported(project, path, gate)


def _open_tensorflow(project: Project, path: Path, gate: code.CodeGate) -> Source:
    return tensorflow_source.open_file(project, path, gate)


Opener = Callable[[Project, Path, code.CodeGate], Source]
_OPENERS: Mapping[str, Opener] = {
    ".onnx": _open_onnx,
    ".pt": _open_torchscript,
    ".pth": _open_torchscript,
    ".jit": _open_torchscript,
    ".pt2": _open_exported,
}


def _opener(suffix: str) -> Opener | None:
    """Of a general format, or of an engine's own."""
    if suffix in _OPENERS:
        return _OPENERS[suffix]
    found = next((known for known in map(facts.of, facts.names()) if suffix == known.suffix), None)
    return _native_opener(found) if found and found.source else None


def _native_opener(engine: EngineFacts) -> Opener:
    def opened(project: Project, path: Path, gate: code.CodeGate) -> Source:  # noqa: ARG001  # an opener's signature
        source: Source = import_module(engine.source).open_file(project, path)
        return source

    return opened


def _check_names(project: Project, source: Source) -> None:
    inputs = {spec.name: spec for spec in source.inputs}
    outputs = {spec.name: spec for spec in source.outputs}
    have = f"inputs are {', '.join(inputs)}; outputs are {', '.join(outputs)}"
    for pair in source.state:
        if pair.input not in inputs or pair.output not in outputs:
            raise ProjectError(f"{project.where}: state.{pair.input} = {pair.output!r}: no such pair; {have}")
        if inputs[pair.input].shape != outputs[pair.output].shape:
            raise ProjectError(
                f"{project.where}: state.{pair.input}: {inputs[pair.input].describe()} is not of the shape of"
                f" {outputs[pair.output].describe()}"
            )
    for name in (*project.file.preprocess, *project.file.inputs):
        if name not in inputs:
            raise ProjectError(f"{project.where}: input {name!r}: the model has no such input; {have}")
