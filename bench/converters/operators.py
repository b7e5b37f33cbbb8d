"""The importer against onnx2torch and onnx2pytorch: ONNX's own backend tests, in torch, in one run.

Every tool gets the same models (shapes closed, parameters bound as constants, as `tests/conformance` has them), the
same data and the same comparison, and answers in eager torch. Each runs in processes of its own: a native crash costs
one test. A peer's result counts by its values; its numbers may be of another type of the same kind.

    pip install --no-deps --target PEERS -r bench/converters/requirements.txt
    python bench/converters/operators.py [--peers PEERS] [--json FILE]
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import types
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
CONFORMANCE = ROOT / "tests/conformance"
OURS = "edgekit"
TIMEOUT_S = 600
_OF_TORCHVISION = {
    "ops": ("roi_align", "roi_pool", "deform_conv2d", "nms"),
    "io": ("decode_image", "ImageReadMode"),
}
# What a test came to. A converter that raises refuses; a model that raises fails when it runs.
PASSED, WRONG, REFUSED, FAILED, CRASHED = "passed", "wrong values", "not converted", "raised", "crashed"
STUB = (
    "torchvision is not installed: an empty module stands in for the peers' imports of it, and their NonMaxSuppression, "
    "RoiAlign and DeformConv cannot run"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--peers", type=Path, help="folder with the peers' packages, if they are not installed"
    )
    parser.add_argument("--json", type=Path, help="write all outcomes here")
    parser.add_argument("--worker", nargs=3, metavar=("TOOL", "NAMES", "FILE"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    # Behind the environment's own packages, so that torch and onnx stay the ones that the importer has.
    sys.path[:0] = [str(CONFORMANCE), str(ROOT)]
    sys.path += [str(chosen.peers)] if chosen.peers else []
    if chosen.worker:
        tool, names, file = chosen.worker
        work(tool, json.loads(Path(names).read_text()), Path(file))
        return
    from node_cases import load
    from node_scope import category

    names = [case.name for case in load() if category(case) is None]
    found = {tool: outcomes(tool, names, chosen.peers) for tool in TOOLS}
    show(found, Console(width=140))
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1))


def outcomes(tool: str, names: Sequence[str], peers: Path | None) -> dict[str, str]:
    """Test → outcome. A process that dies is started again behind the test that killed it."""
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as text:
        listed, file = Path(text) / "names.json", Path(text) / "outcomes.jsonl"
        file.touch()
        while left := [name for name in names if name not in found]:
            listed.write_text(json.dumps(left))
            command = [sys.executable, "-W", "ignore", __file__, "--worker", tool, str(listed), str(file)]
            command += ["--peers", str(peers)] if peers else []
            with contextlib.suppress(subprocess.TimeoutExpired):
                done = subprocess.run(
                    command,
                    check=False,
                    timeout=TIMEOUT_S,
                    capture_output=True,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                )
                # Killed by a signal is a result; an exception of the worker's own is not.
                if done.returncode > 0:
                    raise SystemExit(f"{tool} cannot run: {done.stderr.decode().strip()[-600:]}")
            found.update(json.loads(line) for line in file.read_text().splitlines())
            stopped = next((name for name in left if name not in found), None)
            if stopped is not None:
                found[stopped] = CRASHED
    return found


def work(tool: str, names: Sequence[str], file: Path) -> None:
    from node_cases import load

    warnings.simplefilter("ignore")
    # Imported before the first test, so that a peer that is missing is an error and not a row of refusals.
    convert = TOOLS[tool]()
    by_name = {case.name: case for case in load()}
    with file.open("a") as results:
        for name in names:
            with contextlib.redirect_stdout(io.StringIO()):
                outcome = tried(convert, by_name[name])
            results.write(json.dumps([name, outcome]) + "\n")
            results.flush()


def tried(convert: Callable[[Any], Any], case: Any) -> str:
    import torch
    from node_cases import bound, compare

    with torch.no_grad():
        for inputs, wanted in case.data:
            model, feeds = bound(case, inputs)
            try:
                module = convert(model)
            except Exception:  # noqa: BLE001  # converters raise anything
                return REFUSED
            try:
                result = module(*(torch.from_numpy(np.array(array)) for array in feeds))
                tensors = result if isinstance(result, tuple | list) else [result]
                arrays = [np.asarray(tensor.detach()) for tensor in tensors]
            except Exception:  # noqa: BLE001  # as does what they make
                return FAILED
            try:
                compare(
                    case, wanted, [_as(array, right) for array, right in zip(arrays, wanted, strict=True)]
                )
            except (AssertionError, ValueError):
                return WRONG
    return PASSED


def _as(array: Any, wanted: Any) -> Any:
    """Of the wanted type where both are floats, integers or booleans, as the importer's are at its module's edge."""
    kinds = ("f", "iu", "b")
    alike = any(array.dtype.kind in kind and np.asarray(wanted).dtype.kind in kind for kind in kinds)
    return array.astype(np.asarray(wanted).dtype) if alike else array


def ours() -> Callable[[Any], Any]:
    from converters.graph import importer

    return lambda model: importer.from_model(model).eval()


def onnx2torch() -> Callable[[Any], Any]:
    _stand_in_for_torchvision()
    import onnx2torch as peer

    return lambda model: peer.convert(model).eval()


def onnx2pytorch() -> Callable[[Any], Any]:
    _stand_in_for_torchvision()
    from onnx2pytorch import ConvertModel

    return lambda model: ConvertModel(model).eval()


def _stand_in_for_torchvision() -> None:
    """What the peers import by name, none of which can be called."""
    if importlib.util.find_spec("torchvision") is None:
        fake = types.ModuleType("torchvision")
        for part, names in _OF_TORCHVISION.items():
            inner = types.ModuleType(f"torchvision.{part}")
            vars(inner).update(dict.fromkeys(names))
            vars(fake)[part] = sys.modules[inner.__name__] = inner
        sys.modules["torchvision"] = fake


TOOLS: Mapping[str, Callable[[], Callable[[Any], Any]]] = {
    OURS: ours,
    "onnx2torch": onnx2torch,
    "onnx2pytorch": onnx2pytorch,
}


def show(found: Mapping[str, Mapping[str, str]], console: Console) -> None:
    columns = (PASSED, WRONG, REFUSED, FAILED, CRASHED)
    count = len(next(iter(found.values())))
    table = Table(title=f"ONNX's backend tests in torch, {count} in scope")
    for column in ("tool", "version", *columns, "share"):
        table.add_column(column, justify="left" if column == "tool" else "right")
    for tool, results in found.items():
        counts = Counter(results.values())
        version = "" if tool == OURS else importlib.metadata.version(tool)
        share = f"{counts[PASSED] / count:.1%}"
        table.add_row(tool, version, *(str(counts[column]) for column in columns), share)
    console.print(table)
    if importlib.util.find_spec("torchvision") is None:
        console.print(STUB)
    for tool, results in found.items():
        theirs = [
            name for name, outcome in results.items() if outcome == PASSED and found[OURS][name] != PASSED
        ]
        if theirs:
            console.print(f"passed by {tool} and not by {OURS}: {', '.join(theirs)}")


if __name__ == "__main__":
    main()
