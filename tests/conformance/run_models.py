"""Convert every architecture of `models.py` for every engine, and write `docs/models.md` from what happened.

    python tests/conformance/run_models.py [NAME ...] [--again] [--results FOLDER]

Each model runs in a process of its own, so that a crash or a hang costs one row; its result is kept in a JSON file, and
only what is missing runs (`--again`: what is named, or all).
"""

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
DOCUMENT = HERE.parent.parent / "docs" / "models.md"
TIMEOUT_S = 400
# Cell → engine recipe, and what is special about it.
FLOAT = {"ONNX Runtime": "onnxruntime/fp32", "OpenVINO": "openvino/f32"}
INT8 = {
    "ONNX Runtime int8": "onnxruntime/static-int8",
    "OpenVINO int8": "openvino/static-int8",
    "LiteRT int8": "litert/static-int8",
}
COLUMNS = ("export: dynamo", "export: TorchScript", "ONNX Runtime", "OpenVINO", "LiteRT from torch",
           "LiteRT via importer", *INT8)  # fmt: skip
VOCABULARY = 200
SAMPLES = 8


def main():
    sys.path.insert(0, str(HERE))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--results", type=Path, default=HERE / ".results" / "models")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(cells(given.one)))
        return
    import models

    given.results.mkdir(parents=True, exist_ok=True)
    for name in given.names or models.INPUTS:
        file = given.results / f"{name}.json"
        if given.again or not file.exists():
            file.write_text(json.dumps(apart(name), indent=1))
            print(
                name, *(f"{cell}: {text}" for cell, text in json.loads(file.read_text()).items()), sep="\n  "
            )
    rows = {
        name: json.loads((given.results / f"{name}.json").read_text())
        for name in models.INPUTS
        if (given.results / f"{name}.json").exists()
    }
    DOCUMENT.write_text(document(rows))


def apart(name):
    """The model's cells, from a process of its own."""
    began = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--one", name],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {TIMEOUT_S} s"}
    print(f"{name}: {time.perf_counter() - began:.0f} s")
    if done.returncode:
        return {
            "failed": done.stderr.strip().splitlines()[-1][:300] if done.stderr else f"exit {done.returncode}"
        }
    return json.loads(done.stdout.splitlines()[-1])


def cells(name, columns=COLUMNS):
    """Column → 'ok DIFFERENCE' or 'fails: REASON'."""
    import models
    import numpy as np

    from converters.backends import Prepared
    from converters.graph import canonical
    from converters.source.code import CodeGate
    from converters.source.opening import open_source
    from converters.source.project import from_flags

    declared = {key: {"shape": shape, "dtype": dtype} for key, (shape, dtype) in models.INPUTS[name].items()}
    project = from_flags({
        "model": {"name": "m", "version": "1", "source": f"{HERE / 'models.py'}:{name}"}, "inputs": declared,
        "targets": {"x86-64-v4-vnni": {}}, "data": {"evaluation": "unused"},
    })  # fmt: skip
    source = open_source(project, CodeGate(allowed=True, tell=lambda _: None))
    feeds = [
        {spec.name: drawn(spec, np.random.default_rng(seed)) for spec in source.inputs}
        for seed in range(SAMPLES)
    ]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "canonical").mkdir()
        form = canonical.canonicalize(source, feeds, root / "canonical")
        prepared = Prepared(source, form, lambda: iter(feeds))
        through = Prepared(replace(source, module=None), form, lambda: iter(feeds))
        ways = {
            column: partial(canonical_parity, source, feeds, exporters=[exporter])
            for column, exporter in zip(COLUMNS, canonical.EXPORTERS, strict=False)
        }
        for column, recipe in FLOAT.items():
            ways[column] = partial(difference, prepared, recipe, feeds)
        ways["LiteRT from torch"] = partial(straight, prepared, feeds)
        ways["LiteRT via importer"] = partial(difference, through, "litert/fp32", feeds)
        for column, recipe in INT8.items():
            ways[column] = partial(difference, prepared, recipe, feeds, limit=float("inf"))
        return {column: tried(partial(ways[column], folder=root / column)) for column in columns}


def drawn(spec, random):
    """Token ids, a mask of ones whose tail is zero, or normal values."""
    shape = tuple(spec.shape)
    if spec.name == "attention_mask":
        return (shape[-1] - np_arange(shape) > random.integers(0, shape[-1] // 2)).astype(spec.dtype)
    if spec.dtype.startswith("int"):
        return random.integers(0, VOCABULARY, shape).astype(spec.dtype)
    return random.standard_normal(shape).astype(spec.dtype)


def np_arange(shape):
    import numpy as np

    return np.broadcast_to(np.arange(1, shape[-1] + 1), shape)


def tried(call):
    from edgekit.quiet import first_line

    try:
        return f"ok {call():.1g}"
    except Exception as error:  # noqa: BLE001  # whatever a tool raises is the reason in the cell
        return f"fails: {first_line(error)}"


def canonical_parity(source, feeds, exporters, folder):
    from converters.graph import canonical

    folder.mkdir()
    return canonical.canonicalize(source, feeds, folder, exporters=exporters).parity


def straight(prepared, feeds, folder):
    """LiteRT from torch alone: what the backend says when it had to go through ONNX is the reason."""
    value, notes = converted(prepared, "litert/fp32", feeds, folder)
    detour = [note for note in notes if "litert-torch failed" in note]
    if detour:
        raise RuntimeError(detour[0])
    return value


def difference(prepared, recipe, feeds, folder, limit=1e-3):
    value, _ = converted(prepared, recipe, feeds, folder)
    if value > limit:
        raise RuntimeError(f"differs from the source by {value:.2g} of its largest output")
    return value


def converted(prepared, recipe, feeds, folder):
    """Largest difference to the source, in parts of its largest output, and the artifact's notes."""
    from converters import backends
    from converters.graph import canonical
    from converters.recipes.recipes import plans
    from edgekit import engines, profile
    from edgekit.manifest import EngineSpec
    from edgekit.quiet import quietly

    (plan,) = plans(profile.load("x86-64-v4-vnni"), [recipe])
    folder.mkdir()
    artifact = backends.get(plan.recipe.engine).convert(prepared, plan, folder)
    source = prepared.source
    spec = EngineSpec(plan.recipe.engine, "", artifact.model, plan.judged_options, 2)
    bound = artifact.bound(source.inputs), artifact.bound(source.outputs, are_outputs=True)
    model = quietly(lambda: engines.get(plan.recipe.engine).load(folder / artifact.model, spec, *bound, None))
    gap = canonical.parity(
        [source.reference.run(feed) for feed in feeds], [model.run(feed) for feed in feeds]
    )
    return gap, artifact.notes


def document(rows):
    tools = ("torch", "transformers", "onnxruntime", "openvino", "litert-torch", "ai-edge-litert")
    versions = ", ".join(f"{tool} {importlib.metadata.version(tool)}" for tool in tools)
    lines = [
        "# Torch architectures",
        "",
        "Written by `python tests/conformance/run_models.py`; do not edit. Small models built from their configuration",
        "with random weights. A number is the largest difference to the torch program over 8 random inputs, in parts of",
        "its largest output; a float conversion that differs by more than 0.001 counts as failed. For int8 it is shown",
        "and not judged: random weights are no measure of what quantization costs.",
        "",
        f"With {versions}.",
        "",
        "| model | " + " | ".join(COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    reasons = []
    for name, row in rows.items():
        shown = []
        for column in COLUMNS:
            text = row.get(column, f"fails: {row.get('failed', 'not run')}")
            if text.startswith("ok"):
                shown.append(text.removeprefix("ok "))
            else:
                reasons.append(f"{len(reasons) + 1}. {name}, {column}: {text.removeprefix('fails: ')}")
                shown.append(f"— ({len(reasons)})")
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    passed = sum(cell.startswith("ok") for row in rows.values() for cell in row.values())
    lines += ["", f"{passed} of {len(rows) * len(COLUMNS)} work.", ""]
    if reasons:
        lines += ["## Why the others do not", "", *reasons, ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
