"""A case through the importer: in torch, and on through litert-torch and LiteRT's interpreter."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from node_cases import Case, bound, compare

from converters.prepare import importer
from converters.prepare.quiet import first_line, quietly
from edgekit.engines.litert import LiteRtModel
from edgekit.manifest import TensorSpec


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
    traced = importer.traced(module, [torch.from_numpy(np.zeros_like(array)) for array in feeds])
    result = traced(*(torch.from_numpy(np.array(array)) for array in feeds))
    return _arrays(result)


def _run_litert(module: Any, feeds: Sequence[Any]) -> list[Any]:
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter

    zeros = tuple(torch.from_numpy(np.zeros_like(array)) for array in feeds)
    if not module.sees_data:
        # All is known at load time: nothing is left to compile.
        return _arrays(module(*zeros))
    traced = importer.traced(module, zeros)
    content = quietly(lambda: litert_torch.convert(traced, zeros).model_content())
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    wanted = module(*zeros)
    outputs = list(wanted) if isinstance(wanted, tuple) else [wanted]
    model = LiteRtModel(
        interpreter,
        [_spec(f"serving_default_args_{index}", array) for index, array in enumerate(feeds)],
        [
            _spec(f"serving_default_output_{index}_output", value.numpy())
            for index, value in enumerate(outputs)
        ],
    )
    results = model.run({f"serving_default_args_{index}": array for index, array in enumerate(feeds)})
    return list(results.values())


def _spec(name: str, array: Any) -> TensorSpec:
    return TensorSpec(name, array.dtype.name, tuple(array.shape), name)


def _arrays(result: Any) -> list[Any]:
    tensors = result if isinstance(result, tuple | list) else [result]
    return [tensor.detach().numpy() for tensor in tensors]


ENGINES: Mapping[str, Callable[[Case], str]] = {"torch": torch_case, "litert": litert_case}
