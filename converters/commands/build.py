"""`edgekit build`: flags in, one call of the build, a table and JSON out."""

import os
import time
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from converters.commands.durations import seconds
from converters.emulation import setup as emulation
from converters.emulation.machine import META
from converters.keep import builds, inputs, room
from converters.keep.artifacts import Cache, default_root
from converters.keep.files import write_whole
from converters.outcome import Options, Outcome
from converters.report import page
from converters.sheet import Sheet
from converters.source import project as projects
from converters.source.project import Project
from edgekit import interrupt, profile
from edgekit.cli import render
from edgekit.errors import ContractMissedError, Tried, UsageError
from edgekit.evidence import BucketEvidence, CandidateEvidence

# How a note about corrupted inputs begins (judge/accuracy.py).
SHIFTED = "on corrupted inputs"

EPILOG = """\b
Examples:
  edgekit build                          # the edgekit.toml of this folder
  edgekit build --target raspberry-pi-5  # one of its targets
  edgekit build model.onnx --name digits --version 1.0.0 --shape x=1,1,8,8 \\
      --calibration calib.npz --evaluation eval.npz --metric top1 \\
      --target raspberry-pi-5 --target x86-64-v4-vnni --out dist --json result.json
  edgekit build --search 40              # 40 settings beyond the fixed recipes; Ctrl-C keeps what was tried
  edgekit build train.py:make_model --name vad --version 2 --shape input=1,576 --shape state=2,1,128 \\
      --state state=stateN --output output --output stateN --evaluation data.py:evaluation --target x86-64-v3

\b
Exit codes: 0 built, 2 usage or bad input, 3 contract not met, 4 a tool failed.
"""


def _sensible_jobs() -> int:
    """Two where there are cores for it: converters take gigabytes, and use several cores themselves."""
    return min(2, len(os.sched_getaffinity(0)))


@click.command(epilog=EPILOG)
@click.argument("source", required=False)
@click.option(
    "--project", "project_file", type=click.Path(path_type=Path), help="Project file or its folder."
)
@click.option("--name", help="Model name.")
@click.option("--version", help="Model version.")
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="INPUT=1,3,48,160|320",
    help="An input's shape; sizes between | are buckets.",
)
@click.option("--dtype", "dtypes", multiple=True, metavar="INPUT=int64", help="An input's type (float32).")
@click.option("--output", "outputs", multiple=True, help="Name of a torch program's output, in order.")
@click.option(
    "--state", "states", multiple=True, metavar="INPUT=OUTPUT", help="An output fed back next time."
)
@click.option("--calibration", help="An .npz, a folder of them, or file.py:function.")
@click.option("--evaluation", help="Likewise, with labels where there are any.")
@click.option("--metric", help="top1, topK, f1, cosine, rmse, map, cer, wer, agreement, or file.py:function.")
@click.option("--max-accuracy-drop", type=click.FloatRange(min=0), help="Absolute, in the harmful direction.")
@click.option(
    "--latency-p95-ms", type=click.FloatRange(min=0, min_open=True), help="Budget for every target."
)
@click.option("--memory-mb", type=click.FloatRange(min=0, min_open=True), help="Budget for every target.")
@click.option("--size-mb", type=click.FloatRange(min=0, min_open=True), help="Budget for every target.")
@click.option("--target", "targets", multiple=True, help="Profile name or .toml file; repeatable.")
@click.option(
    "--recipe", "recipes", multiple=True, metavar="PATTERN", help="Try only these, e.g. 'litert/*'."
)
@click.option(
    "--lock", "write_lock", is_flag=True, help="Try everything and write the choice to edgekit.lock."
)
@click.option("--locked", is_flag=True, help="Build what edgekit.lock says, or fail if anything changed.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("dist"), show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write result.json here.")
@click.option("--accept-uncertain", is_flag=True, help="Ship where too few samples could show the accuracy.")
@click.option("--strict", is_flag=True, help="Exit 3 if a budget cannot be verified on this machine.")
@click.option("--no-code", is_flag=True, help="Refuse to run any Python that comes with model or data.")
@click.option("--cache", type=click.Path(path_type=Path), help="Cache folder (the user's cache by default).")
@click.option("--no-cache", is_flag=True, help="Convert everything anew.")
@click.option(
    "--jobs",
    type=click.IntRange(min=0),
    default=_sensible_jobs(),
    show_default=True,
    help="Processes that make candidates side by side; 0: in this one. Measuring is always alone.",
)
@click.option(
    "--time-budget",
    default="10m",
    show_default=True,
    metavar="TIME",
    callback=lambda _ctx, _param, text: seconds(text, "--time-budget"),
    help="Limit for making one candidate, for looking into its layers, and for one trial: 90s, 20m, 1h.",
)
@click.option(
    "--search",
    type=click.IntRange(min=1),
    metavar="N",
    help="Try N more settings of the int8 recipes for each target; a stopped search goes on.",
)
@click.option(
    "--measure", is_flag=True, help="Measure again even if nothing changed since a build that was builds."
)
def build(
    source: str | None,
    project_file: Path | None,
    out: Path,
    json_file: Path | None,
    recipes: tuple[str, ...],
    *,
    accept_uncertain: bool,
    strict: bool,
    no_code: bool,
    cache: Path | None,
    no_cache: bool,
    jobs: int,
    time_budget: float,
    search: int | None,
    measure: bool,
    write_lock: bool,
    locked: bool,
    **flags: Any,
) -> None:
    """Turn a trained model into bundles, one per hardware profile.

    SOURCE is an ONNX file, TorchScript (.pt), a torch.export program (.pt2) or file.py:factory. Without it, or with
    --project, edgekit.toml says what to build and flags replace what it says.
    """
    if write_lock and locked:
        raise UsageError("--lock writes edgekit.lock and --locked keeps to it; give one of the two")
    if locked and search:
        raise UsageError(
            "--locked builds what edgekit.lock says, so there is nothing to --search; use --lock to choose anew"
        )
    project = _project(source, project_file, flags)
    options = Options(
        out=out,
        accept_uncertain=accept_uncertain,
        strict=strict,
        allow_code=not no_code,
        cache=None if no_cache else cache or default_root(),
        recipes=recipes,
        jobs=jobs,
        search=search or 0,
        time_budget_s=time_budget,
        lock="write" if write_lock else "require" if locked else "use",
    )
    with render.progress() as progress:
        task = progress.add_task("reading the project", total=None)

        began = time.monotonic()

        def tell(message: str) -> None:
            # Where native code swallowed a Ctrl-C, the build ends at its next step.
            interrupt.check()
            progress.update(task, description=message)
            told = f"{time.monotonic() - began:6.1f} s  {message}"
            progress.console.print(told, style="dim", highlight=False, markup=False, soft_wrap=True)

        outcome = _build(project, options, tell, measure=measure)
        interrupt.check()
    if json_file is not None:
        render.write_text(json_file, render.as_json(outcome.document) + "\n")
    _show(outcome)
    try:
        outcome.require_met()
    except ContractMissedError as error:
        _show_missed(error)
        raise


def _project(source: str | None, project_file: Path | None, flags: Mapping[str, Any]) -> Project:
    """The project file with flags laid over it, or flags alone."""
    alone = source is not None and project_file is None
    over = _table(source, flags)
    if not alone:
        return projects.load(project_file or Path(), over)
    for key, flag in (("name", "--name"), ("version", "--version")):
        if key not in over["model"]:
            raise UsageError(f"{flag} is missing; a build without a project file needs it")
    return projects.from_flags(over)


def _table(source: str | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that were given, as a project file's tables."""
    shapes: dict[str, dict[str, Any]] = {
        name: {"shape": _dims(name, text)} for name, text in _pairs("--shape", flags["shapes"]).items()
    }
    for name, dtype in _pairs("--dtype", flags["dtypes"]).items():
        if name not in shapes:
            raise UsageError(f"--dtype {name}={dtype}: give --shape {name}=... too")
        shapes[name]["dtype"] = dtype
    outputs = list(flags["outputs"])
    # A project file's relative paths start at its folder, a flag's at the current one.
    table: dict[str, Any] = {
        "model": _given(flags, "name", "version")
        | ({"source": _here(source)} if source else {})
        | ({"outputs": outputs} if outputs else {}),
        "inputs": shapes,
        "state": _pairs("--state", flags["states"]),
        "data": {
            key: _here(value) for key, value in _given(flags, "calibration", "evaluation", "metric").items()
        },
        "contract": _given(flags, "max_accuracy_drop", "latency_p95_ms", "memory_mb", "size_mb"),
        "targets": {target: {} for target in flags["targets"]},
    }
    return {key: value for key, value in table.items() if value or key in ("model", "targets")}


def _given(flags: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: flags[name] for name in names if flags[name] is not None}


def _here(text: str) -> str:
    """A path from a flag, made independent of the project's folder; metric names stay."""
    path, colon, attribute = text.rpartition(":")
    if colon and path.endswith(".py"):
        return f"{Path(path).resolve()}:{attribute}"
    is_name = os.sep not in text and not Path(text).exists() and "." not in text
    return text if is_name else str(Path(text).resolve())


def _pairs(flag: str, values: tuple[str, ...]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals or not name or not rest:
            raise UsageError(f"{flag} {value!r}: expected NAME=VALUE")
        pairs[name] = rest
    return pairs


def _dims(name: str, text: str) -> list[int | list[int]]:
    try:
        return [
            [int(size) for size in part.split("|")] if "|" in part else int(part) for part in text.split(",")
        ]
    except ValueError as error:
        raise UsageError(
            f"--shape {name}={text}: expected numbers, e.g. --shape {name}=1,3,224,224 (or 160|320 for buckets)"
        ) from error


def _build(project: Project, options: Options, tell: Callable[[str], None], *, measure: bool) -> Outcome:
    """The kept build of the same inputs, or a new one."""
    profiles = [profile.load(project.profile(target)) for target in project.file.targets]
    emulator = emulation.home() / META
    name = builds.fingerprint(project, profiles, options, emulator)
    room.limit_bytes()  # read before the work, not after
    cache = Cache(options.cache, tell=tell)
    found = None if name is None or measure else builds.find(name, options, cache)
    if found is not None:
        tell(
            "nothing changed since the last build of this: its bundles and figures are used again (--measure)"
        )
        write_whole(found.report, page.render(found.sheets).encode())
        return found
    # Loads every engine and converter.
    from converters.build import build as run_build

    outcome = run_build(project, options, tell)
    # A file that changed meanwhile may have been read before or after.
    if name is not None and name == builds.fingerprint(project, profiles, options, emulator):
        builds.keep(name, outcome, options, cache)
    elif inputs.has_code(project) and not project.file.code.reads:
        tell(inputs.HINT)
    return outcome


def _show(outcome: Outcome) -> None:
    for sheet in outcome.sheets:
        _show_sheet(sheet)
    for entry in outcome.document["bundles"]:
        kind = "alternate" if entry["alternate"] else "bundle"
        click.echo(f"{kind} {entry['path']}  {entry['digest']}")
    click.echo(f"report {outcome.report}")


def _show_sheet(sheet: Sheet) -> None:
    # What was tried for a profile without a bundle is the error's to tell.
    if sheet.picked:
        how = "measured here" if sheet.is_measured else "latency estimated, not measured"
        how = "times of this CPU, which only rank" if sheet.ranks_only else how
        render.table(
            f"{sheet.name} {sheet.version} for {sheet.profile} ({how})",
            [
                "recipe",
                "status",
                "size",
                "accuracy",
                "source",
                "drop (95 %)",
                "p50 ms",
                "p95 ms",
                "memory",
                "why",
            ],
            [_row(sheet, item) for item in sheet.candidates],
            numeric=("size", "accuracy", "source", "drop (95 %)", "p50 ms", "p95 ms", "memory"),
        )
        _show_buckets(sheet)
    for note in sheet.notes:
        render.note(f"  {sheet.profile}: {note}")
    for item in sheet.candidates:
        for note in item.notes:
            render.stderr().print(
                f"  {item.recipe}: {note}",
                style="red" if note.startswith(SHIFTED) else "yellow",
                markup=False,
                soft_wrap=True,
            )


def _show_missed(error: ContractMissedError) -> None:
    """What was tried for the profiles without a bundle, and the layers at fault."""
    for profile_name, rows in groupby(error.table, key=lambda row: row.profile):
        render.table(
            f"no candidate meets the contract of {profile_name}",
            ["recipe", "status", "size", "accuracy", "drop (95 %)", "p95 ms", "memory", "why"],
            [_tried_row(row) for row in rows],
            numeric=("size", "accuracy", "drop (95 %)", "p95 ms", "memory"),
        )
    if error.layers:
        render.table(
            "layers that lose most, each quantized alone",
            ["profile", "recipe", "layer", "kind", "SNR dB", "KL nats"],
            [
                [
                    layer.profile,
                    layer.recipe,
                    layer.name,
                    layer.op_type,
                    f"{layer.snr_db:.1f}",
                    "" if layer.divergence is None else f"{layer.divergence:.4f}",
                ]
                for layer in error.layers
            ],
            numeric=("SNR dB", "KL nats"),
        )


def _tried_row(row: Tried) -> list[str]:
    return [
        row.recipe,
        row.status,
        render.size(row.size_bytes) if row.size_bytes is not None else "",
        f"{row.accuracy:.4f}" if row.accuracy is not None else "",
        f"{row.drop:+.4f} ({row.drop_bound_95:+.4f})"
        if row.drop is not None and row.drop_bound_95 is not None
        else "",
        f"{row.latency_p95_ms:.3f}" if row.latency_p95_ms is not None else "",
        f"{row.memory_mb:.0f} MB" if row.memory_mb is not None else "",
        row.reason,
    ]


def _show_buckets(sheet: Sheet) -> None:
    """The pick's figures in each bucket, of a model that has some."""
    if sheet.pick is None or not sheet.pick.buckets:
        return
    columns = ["bucket", "share", "judged", "accuracy", "source", "p50 ms", "p95 ms"]
    render.table(f"{sheet.picked} by bucket", columns, map(_bucket_row, sheet.pick.buckets), numeric=columns)


def _bucket_row(each: BucketEvidence) -> list[str]:
    times = (each.latency_p50_ms, each.latency_p95_ms)
    return [
        str(each.size),
        f"{each.share:.0%}",
        str(each.samples),
        f"{each.accuracy.value:.4f}",
        f"{each.source_accuracy.value:.4f}",
        *(f"{figure.value:.3f}" if figure else "" for figure in times),
    ]


def _row(sheet: Sheet, item: CandidateEvidence) -> list[str]:
    accuracy, drop, source = item.accuracy, item.accuracy_drop, sheet.source_accuracy
    p50, p95 = item.latency_p50_ms, item.latency_p95_ms
    latency = ["", ""]
    if p50 is not None and p95 is not None and p50.how == "measured":
        latency = [f"{p50.value:.3f}", f"{p95.value:.3f}"]
    elif p50 is not None and p50.high is not None:
        latency = [f"{p50.value:.3f} to {p50.high:.3f}", ""]
    return [
        item.recipe,
        item.status,
        render.size(item.size_bytes) if item.size_bytes is not None else "",
        f"{accuracy.value:.4f}" if accuracy else "",
        f"{source.value:.4f}" if accuracy and source else "",
        f"{drop.value:+.4f} ({drop.high:+.4f})" if drop and drop.high is not None else "",
        *latency,
        f"{item.memory_mb.value:.0f} MB" if item.memory_mb else "",
        item.reason,
    ]
