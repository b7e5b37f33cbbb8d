"""A case through the importer: in torch, and on through litert-torch and LiteRT's interpreter."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from node_cases import Case, bound, compare

from converters.backends.litert import program
from converters.graph import importer
from converters.graph.importer.types import at_edge
from edgekit.engines.litert import LiteRtModel
from edgekit.manifest import TensorSpec
from edgekit.quiet import first_line, quietly


def torch_case(case: Case) -> str:
    """Empty if it passes, else why not."""
    return _tried(case, _run_torch)


def litert_case(case: Case) -> str:
    """Empty if it passes, else why not."""
    return _tried(case, _run_litert)


def _tried(case: Case, run: Callable[[Any, Sequence[Any]], list[Any]]) -> str:
    try:
        with torch.no_grad():
            for inputs, wanted in case.data:
                model, feeds = bound(case, inputs)
                module = importer.from_model(model)
                have = run(module, feeds)
                compare(case, [np.asarray(array) for array in wanted], have)
    except Exception as error:  # noqa: BLE001  # the outcome of a case is whatever is raised
        return _short(error)
    return ""


def _short(error: Exception) -> str:
    """One line that does not change from run to run."""
    if isinstance(error, AssertionError):
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return "wrong values" if len(lines) > 1 else (lines[0] if lines else "wrong values")
    # The converter's message starts with a page of locations.
    if illegal := re.search(r"failed to legalize operation '([^']+)'", str(error)):
        return f"litert-torch has no legal {illegal[1]} for these types"
    return first_line(error)


def _run_torch(module: Any, feeds: Sequence[Any]) -> list[Any]:
    """Traced on zeros as a build does, run on the case's data."""
    traced = importer.traced(module, _zeros(module, feeds))
    return _arrays(module, traced(*_at_edge(module, feeds)))


def _run_litert(module: Any, feeds: Sequence[Any]) -> list[Any]:
    from ai_edge_litert.interpreter import Interpreter

    zeros = _zeros(module, feeds)
    if not module.sees_data:
        # All is known at load time: nothing is left to compile.
        return _arrays(module, module(*zeros))
    traced = importer.traced(module, zeros)
    content = quietly(lambda: program.convert(traced, zeros).model_content())
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    inputs, outputs = _signature(Interpreter(model_content=content))
    model = LiteRtModel(
        interpreter,
        [
            _spec(f"args_{index}", inputs, array.dtype.name, array.shape)
            for index, array in enumerate(feeds)
            if f"args_{index}" in inputs
        ],
        [
            _spec(f"output_{index}", outputs, np.dtype(_name(kind)).name, ())
            for index, kind in enumerate(module.output_kinds)
        ],
    )
    return list(model.run({f"args_{index}": array for index, array in enumerate(feeds)}).values())


def _signature(interpreter: Any) -> tuple[Any, Any]:
    """Details of inputs and outputs by their keys; the runner holds on to its interpreter's tensors."""
    runner = interpreter.get_signature_runner()
    return runner.get_input_details(), runner.get_output_details()


def _spec(key: str, details: Any, dtype: str, shape: tuple[int, ...]) -> TensorSpec:
    """Bound by the signature: an output that is an input has the input's tensor."""
    return TensorSpec(key, dtype, tuple(shape), details[key]["name"])


def _zeros(module: Any, feeds: Sequence[Any]) -> tuple[Any, ...]:
    return _at_edge(module, [np.zeros_like(array) for array in feeds])


def _at_edge(module: Any, feeds: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(
        torch.from_numpy(np.array(array)).to(at_edge(kind))
        for array, kind in zip(feeds, module.input_kinds, strict=True)
    )


def _arrays(module: Any, result: Any) -> list[Any]:
    """In the model's own types, as an engine adapter gives them."""
    tensors = result if isinstance(result, tuple | list) else [result]
    return [
        tensor.detach().to(kind).numpy() for tensor, kind in zip(tensors, module.output_kinds, strict=True)
    ]


def _name(kind: Any) -> str:
    return str(kind).removeprefix("torch.")


ENGINES: Mapping[str, Callable[[Case], str]] = {"torch": torch_case, "litert": litert_case}
