"""What two processes that run a model at a time get done together, over what one alone does: as a build's workers run, and with
what engines do by default.

    python bench/converters/beside.py [--seconds 4] [--model orientation]

A ratio below 1 means that two processes get less done together than one of them alone.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table
from run import CASES, weights

from converters.recipes import facts
from converters.source import project as projects
from edgekit import engines
from edgekit.manifest import EngineSpec, TensorSpec

THREADS = 2


def rate(engine: str, path: Path, shape: tuple[int, ...], seconds: float, *, is_beside: bool) -> float:
    """Calls a second of this process, between which a sample's worth of Python runs."""
    known = facts.of(engine)
    options = {**known.options.always, **(known.beside if is_beside else {})}
    outputs = [TensorSpec(value.name, "float32", ()) for value in onnx.load(str(path)).graph.output]
    specs = [TensorSpec("x", "float32", shape)], outputs
    model = engines.get(engine).load(path, EngineSpec(engine, "", path.name, options, THREADS), *specs, None)
    feed = {"x": np.random.default_rng(0).random(shape, np.float32)}
    for _ in range(3):
        model.run(feed)
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        model.run(feed)
        sum(range(3000))
        calls += 1
    return calls / (time.perf_counter() - began)


def together(count: int, words: list[str]) -> float:
    command = [sys.executable, __file__, *words, "--child"]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    return sum(float(json.loads(child.communicate()[0])) for child in children)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--model", choices=("orientation", "pages"), default="orientation")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--beside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    case = CASES[chosen.model]
    source = weights(case)
    assert source is not None
    if chosen.child:
        (spec,) = projects.load(case.project, {"model": {"source": str(source)}}).file.inputs.values()
        found = rate(chosen.engine, source, tuple(spec.shape), chosen.seconds, is_beside=chosen.beside)
        sys.stdout.write(json.dumps(found))
        return
    table = Table("engine", "one alone, calls/s", "two as by default", "two as workers run")
    for engine in (each.name for each in facts.own() if each.beside):
        words = ["--engine", engine, "--model", chosen.model, "--seconds", str(chosen.seconds)]
        alone = together(1, words)
        usual, ours = (together(2, [*words, *more]) / alone for more in ((), ("--beside",)))
        table.add_row(engine, f"{alone:.0f}", f"{usual:.2f} x", f"{ours:.2f} x")
    Console().print(table)


if __name__ == "__main__":
    main()
