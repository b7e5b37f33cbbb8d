"""Declarative pre- and post-processing, run the same way in the build and on the device.

A step names an operation of one of two tables (`pre.PRE`, `post.POST`); its arguments are the fields of that
operation's class. An unknown operation or argument is refused when a bundle is made or loaded, not when the first
request comes. What pre-processing promises about equal tensors stands in `pre`.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from edgekit.errors import ManifestError
from edgekit.manifest import Step, TensorSpec
from edgekit.tensors import Array, fits
from edgekit.transforms.base import JSON, Operation
from edgekit.transforms.post import POST, PostOperation, as_json
from edgekit.transforms.pre import PRE, PreOperation

__all__ = [
    "JSON",
    "POST",
    "PRE",
    "check_post_steps",
    "check_steps",
    "postprocess",
    "prepare",
    "preprocess",
]

Kind = TypeVar("Kind", bound=Operation)


def check_steps(steps: Sequence[Step]) -> None:
    """Raises: ManifestError naming the operation and argument that is wrong, and what would be right."""
    for step in steps:
        _operation(step, PRE, "pre-processing")


def check_post_steps(steps: Sequence[Step], outputs: Sequence[TensorSpec] | None = None) -> None:
    """As `check_steps`, for post-processing; with `outputs`, steps must name one of them and labels must match."""
    specs = {spec.name: spec for spec in outputs or ()}
    for step in steps:
        operation = _operation(step, POST, "post-processing")
        if outputs is None:
            continue
        spec = specs.get(operation.output)
        if spec is None:
            raise ManifestError(
                f"post-processing step {step.op!r}: there is no output {operation.output!r};"
                f" the model has {', '.join(specs)}"
            )
        if problem := operation.misfit(spec.shape[-1] if spec.shape else None):
            raise ManifestError(f"post-processing step {step.op!r}: {problem}")


def preprocess(steps: Sequence[Step], value: Array) -> Array:
    """One raw sample through the steps.

    Raises: InputError if the value does not suit a step; ManifestError for a step that `check_steps` refuses.
    """
    for step in steps:
        operation: PreOperation = _operation(step, PRE, "pre-processing")
        value = operation.apply(value)
    return value


def prepare(
    inputs: Sequence[TensorSpec], steps: Mapping[str, Sequence[Step]], raw: Mapping[str, Array]
) -> dict[str, Array]:
    """Raw inputs as the model takes them: steps applied by input name, a missing leading axis of one added.

    Inputs that no spec names pass through, for the engine's own check to refuse. Raises: as `preprocess`.
    """
    specs = {spec.name: spec for spec in inputs}
    ready: dict[str, Array] = {}
    for name, given in raw.items():
        value = preprocess(steps.get(name, ()), given)
        spec = specs.get(name)
        if spec is not None and not fits(spec, value.shape) and fits(spec, (1, *value.shape)):
            value = value[None]
        ready[name] = value
    return ready


def postprocess(steps: Sequence[Step], outputs: Mapping[str, Array]) -> dict[str, JSON]:
    """What the caller is told, by output name: of the outputs that steps name, or of all, raw, without steps.

    Steps of one output run in order, each on what the one before computed; the last one words the answer.
    Raises: ManifestError for a step that `check_post_steps` refuses, or an output that is not there.
    """
    if not steps:
        return {name: as_json(value) for name, value in outputs.items()}
    values = dict(outputs)
    answers: dict[str, JSON] = {}
    for step in steps:
        operation: PostOperation = _operation(step, POST, "post-processing")
        name = operation.output
        if name not in values:
            raise ManifestError(f"post-processing step {step.op!r}: there is no output {name!r}")
        values[name] = operation.apply(values[name])
        answers[name] = operation.answer(values[name])
    return answers


def _operation(step: Step, table: Mapping[str, type[Kind]], what: str) -> Kind:
    kind = table.get(step.op)
    if kind is None:
        close = difflib.get_close_matches(step.op, table, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(table)}"
        raise ManifestError(f"{what} step {step.op!r} is unknown; {hint}")
    where = f"{what} step {step.op!r}"
    known = kind.__struct_fields__
    for name, value in step.args.items():
        if name not in known:
            raise ManifestError(f"{where}: unknown argument {name!r}; it takes e.g. {kind.example}")
        if not _is_finite(value):
            raise ManifestError(f"{where}: argument {name!r} is not finite; it takes e.g. {kind.example}")
    try:
        operation = msgspec.convert(step.args, kind)
    except msgspec.ValidationError as error:
        raise ManifestError(f"{where}: {_told(error)}; it takes e.g. {kind.example}") from error
    if problem := operation.problem():
        raise ManifestError(f"{where}: {problem}")
    return operation


def _is_finite(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_finite(entry) for entry in value)
    return not isinstance(value, float) or math.isfinite(value)


def _told(error: msgspec.ValidationError) -> str:
    """The message of msgspec with its JSON path as an argument name."""
    message, _, path = str(error).partition(" - at `$.")
    if path:
        return f"argument {path.rstrip('`')}: {message[0].lower()}{message[1:]}"
    return message.replace("Object missing required field", "missing argument")
