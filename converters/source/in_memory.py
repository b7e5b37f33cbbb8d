"""A model that stands in memory, written down as the file that a build opens: a module as an exported program.

Always true
 1. The same module gives the same bytes, in another process too: these bytes are its source hash.
 2. The caller's module is left as it is: a copy is put into evaluation mode and exported.
 3. What was written computes what the module does: the two are compared on the example.
"""

import copy
import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters.source.source import filled
from edgekit.errors import SourceError, UsageError
from edgekit.manifest import TensorSpec
from edgekit.tensors import Array

# One name for all: what lies in a program's file carries the file's own.
PROGRAM, SCRIPT, GRAPH = "model.pt2", "model.pt", "model.onnx"
# Relative to the largest output, what two runs of the same float32 operators may differ by.
_SAME = 1e-4


def is_model(value: Any) -> bool:
    return _kind(value) is not None


def name_of(value: Any) -> str:
    """What a bundle of it may be called: its class in lower case, or the graph's own name."""
    named = getattr(getattr(value, "graph", None), "name", "")
    return named_as(str(named) if isinstance(named, str) and named else type(value).__name__)


def named_as(text: str) -> str:
    """A name that bundles may have, as close to `text` as can be."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:64] or "model"


def write(
    value: Any, inputs: Mapping[str, Mapping[str, Any]], examples: Mapping[str, Array], folder: Path
) -> Path:
    """The file. `inputs` are tables of a project file (`shape`, `dtype`); `examples` arrays of those that have one.

    Raises: UsageError for what is no model; SourceError for a module that cannot be exported.
    """
    kind = _kind(value)
    if kind == "onnx":
        import onnx

        onnx.save(value, str(folder / GRAPH))
        return folder / GRAPH
    import torch

    if kind == "script":
        torch.jit.save(value, str(folder / SCRIPT))
        return folder / SCRIPT
    if kind == "module":
        value = _exported(value, inputs, examples)
    elif kind != "program":
        raise UsageError(
            f"a {type(value).__name__} is no model; give a torch module, an ONNX model or a path"
        )
    for node in value.graph.nodes:
        # Where the caller's code stands: in a notebook another place each time.
        node.meta.pop("stack_trace", None)
    torch.export.save(value, str(folder / PROGRAM))
    return folder / PROGRAM


def _kind(value: Any) -> str | None:
    """By modules that are loaded already: whoever holds such an object has loaded its library."""
    onnx, torch = sys.modules.get("onnx"), sys.modules.get("torch")
    if onnx is not None and isinstance(value, onnx.ModelProto):
        return "onnx"
    if torch is None:
        return None
    if isinstance(value, torch.jit.ScriptModule):
        return "script"
    if isinstance(value, torch.nn.Module):
        return "module"
    return "program" if isinstance(value, torch.export.ExportedProgram) else None


def _exported(module: Any, inputs: Mapping[str, Mapping[str, Any]], examples: Mapping[str, Array]) -> Any:
    import torch

    if not inputs:
        names = ", ".join(inspect.signature(module.forward).parameters)
        raise UsageError(
            f"{type(module).__name__} does not say the shapes of its inputs ({names}); give"
            f" inputs={{'{names.split(', ')[0]}': (1, 3, 224, 224)}}, or an example array for each"
        )
    own = copy.deepcopy(module).cpu().eval()
    tensors, sizes = {}, {}
    for name, table in inputs.items():
        largest = tuple(max(dim) if isinstance(dim, list | tuple) else dim for dim in table["shape"])
        array = examples.get(name, filled(TensorSpec(name, table.get("dtype", "float32"), largest)))
        tensors[name] = torch.from_numpy(np.array(array, order="C"))
        stepped = [axis for axis, dim in enumerate(table["shape"]) if isinstance(dim, list | tuple)]
        sizes[name] = dict.fromkeys(stepped, torch.export.Dim.DYNAMIC)
    parameters = list(inspect.signature(own.forward).parameters)
    # By name where the names are the function's own, else in their order.
    is_named = set(inputs) <= set(parameters)
    args = () if is_named else tuple(tensors.values())
    kwargs = {name: tensors[name] for name in parameters if name in tensors} if is_named else {}
    dynamic = {name: sizes[name] for name in kwargs} if is_named else tuple(sizes.values())
    try:
        with torch.no_grad():
            program = torch.export.export(
                own, args, kwargs, dynamic_shapes=dynamic if any(sizes.values()) else None
            )
            own(*args, **kwargs)  # what a module keeps shows at the second call
            _check_same(own(*args, **kwargs), program.module()(*args, **kwargs), type(module).__name__)
    except SourceError:
        raise
    except Exception as error:
        # Imported in here: it loads torch, which an ONNX model in memory does without.
        from converters.source import torch_calls

        told = str(error).strip().splitlines()
        raise SourceError(
            f"torch.export cannot write {type(module).__name__} down ({type(error).__name__}: {told[0] if told else ''})"
            f"{torch_calls.about_weights(own)};"
            " export it to ONNX yourself, or put it into a file and give 'file.py:factory', which other exporters are tried on"
        ) from error
    return program


def _check_same(before: Any, after: Any, what: str) -> None:
    """Raises: SourceError."""
    import torch

    flat = torch.utils._pytree.tree_leaves  # noqa: SLF001  # what torch.export itself flattens by
    for one, other in zip(flat(before), flat(after), strict=True):
        if not isinstance(one, torch.Tensor):
            continue
        scale = float(one.abs().max()) if one.numel() else 0.0
        gap = float((one.double() - other.double()).abs().max()) if one.numel() else 0.0
        if gap > _SAME * max(scale, 1e-6):
            raise SourceError(
                f"{what}, exported by torch.export, computes something else on the example (off by {gap:.3g} of"
                f" {scale:.3g}): the module keeps state inside, or draws random numbers; make the state an input and an output"
            )
