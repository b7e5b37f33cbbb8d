"""Every backend test of ONNX through the importer; writes `docs/operators.md` and the list of expected failures.

    python tests/conformance/run.py [--engine torch] [--engine litert] [--jobs 2] [--state FILE] [--report]

Batches run in worker processes, so that a crash of native code costs one case. What a state file holds already is
not run again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]
EXPECTED = HERE / "expected_failures.json"
PAGE = ROOT / "docs" / "operators.md"
# Cases in one process: generating them takes seconds, and native crashes are rare.
BATCH = {"torch": 900, "litert": 150}
TIMEOUT_S = 900


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", action="append", choices=["torch", "litert"])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--state", type=Path, help="outcomes so far; the run goes on from there")
    parser.add_argument("--report", action="store_true", help="run nothing; write what the state file holds")
    parser.add_argument("--worker", nargs=2, metavar=("ENGINE", "NAMES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker[0], json.loads(Path(options.worker[1]).read_text()), options.state)
        return
    from node_cases import load
    from node_scope import category
    from operators_page import page

    cases = load()
    names = [case.name for case in cases if category(case) is None]
    with tempfile.TemporaryDirectory() as folder:
        state = options.state or Path(folder) / "outcomes.jsonl"
        outcomes = {
            engine: run(engine, [] if options.report else names, state, options.jobs)
            for engine in options.engine or ["torch", "litert"]
        }
    outcomes = {
        engine: {name: found[name] for name in names if name in found} for engine, found in outcomes.items()
    }
    expected = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    for engine, found in outcomes.items():
        # A list of a part would not be exact.
        expected.pop(engine, None)
        if len(found) == len(names):
            expected[engine] = {name: found[name] for name in sorted(found) if found[name]}
        print(f"{engine}: {sum(not reason for reason in found.values())} of {len(found)}")
    EXPECTED.write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(cases, outcomes))


def run(engine: str, names: list[str], state: Path, jobs: int) -> dict[str, str]:
    """Outcomes of all cases in the state file; those of `names` that it lacks are run first, in batches."""
    found = read(state, engine)
    waiting = [name for name in names if name not in found]
    batches = [waiting[start : start + BATCH[engine]] for start in range(0, len(waiting), BATCH[engine])]
    with ThreadPoolExecutor(jobs) as pool:
        for index, _ in enumerate(pool.map(lambda batch: process(engine, batch, state), batches), 1):
            print(f"{engine}: batch {index} of {len(batches)}", flush=True)
    return read(state, engine)


def process(engine: str, batch: list[str], state: Path) -> None:
    """Run a batch in processes of its own; one that dies is started again behind the case that killed it."""
    while batch:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as listed:
            json.dump(batch, listed)
            listed.flush()
            command = [
                sys.executable,
                "-W",
                "ignore",
                __file__,
                "--worker",
                engine,
                listed.name,
                "--state",
                str(state),
            ]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            try:
                subprocess.run(
                    command, check=False, timeout=TIMEOUT_S, env=environment, stderr=subprocess.DEVNULL
                )
                death = "native code crashed"
            except subprocess.TimeoutExpired:
                death = "took too long"
        found = read(state, engine)
        left = [name for name in batch if name not in found]
        if left:
            record(state, engine, left[0], death)
        batch = left[1:]


def work(engine: str, names: list[str], state: Path) -> None:
    from node_cases import load
    from node_engines import ENGINES

    by_name = {case.name: case for case in load()}
    for name in names:
        record(state, engine, name, ENGINES[engine](by_name[name]))


def record(state: Path, engine: str, name: str, reason: str) -> None:
    with state.open("a") as file:
        file.write(json.dumps([engine, name, reason]) + "\n")


def read(state: Path, engine: str) -> dict[str, str]:
    if not state.exists():
        return {}
    rows = (json.loads(line) for line in state.read_text().splitlines())
    return {name: reason for of, name, reason in rows if of == engine}


if __name__ == "__main__":
    main()
