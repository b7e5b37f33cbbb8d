"""`edgekit build`: flags in, one call of the build, a table and JSON out."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from converters.commands import running, tables
from converters.commands.durations import seconds
from converters.commands.screen import watched
from converters.keep.artifacts import default_root
from converters.outcome import Options, Outcome, sensible_jobs
from converters.source import project as projects
from converters.source.project import Project
from converters.work.spent import Account
from edgekit import interrupt
from edgekit.cli import boards, render
from edgekit.errors import ContractMissedError, UsageError

EPILOG = """\b
Examples:
  edgekit build                          # the edgekit.toml of this folder
  edgekit build --target raspberry-pi-5  # one of its targets
  edgekit build model.onnx --name digits --version 1.0.0 --shape x=1,1,8,8 \\
      --calibration calib.npz --evaluation eval.npz --metric top1 \\
      --target raspberry-pi-5 --target x86-64-v4-vnni --out dist --json result.json
  edgekit build --target raspberry-pi-5 --on-device lab-07   # a real board measures what is kept, and picks
  edgekit build --search 40              # 40 settings beyond the fixed recipes; Ctrl-C keeps what was tried
  edgekit build train.py:make_model --name vad --version 2 --shape input=1,576 --shape state=2,1,128 \\
      --state state=stateN --output output --output stateN --evaluation data.py:evaluation --target x86-64-v3

\b
Exit codes: 0 built, 2 usage or bad input, 3 contract not met, 4 a tool failed.
"""


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
    "--max-drop-per-slice", type=click.FloatRange(min=0), help="The same for each group that the data names."
)
@click.option("--slices", help="The groups of the evaluation samples: an .npz or file.py:function.")
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
    default=sensible_jobs(),
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
    "--measure", is_flag=True, help="Measure again even if nothing changed since a build that was kept."
)
@click.option(
    "--on-device",
    metavar="DEVICE",
    help="Let this board of a fleet measure what was kept for its profile, and pick by that.",
)
@click.option("--fleet", "place", help="State folder or client.toml of that fleet [env: EDGEKIT_FLEET].")
@click.option(
    "--keys",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Publisher's folder of 'edgekit keys'; that of a fleet on this machine unless set.",
)
@click.option("--verbose", "-v", is_flag=True, help="Show every column, reason, note and output.")
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
    on_device: str | None,
    place: str | None,
    keys: Path | None,
    verbose: bool,
    **flags: Any,
) -> None:
    """Turn a trained model into bundles, one per hardware profile.

    SOURCE is an ONNX file, TorchScript (.pt), a torch.export program (.pt2), file.py:factory, or a TFLite, Keras or
    OpenVINO (.xml) file. Without it, or with --project, edgekit.toml says what to build and flags replace what it says.
    """
    if write_lock and locked:
        raise UsageError("--lock writes edgekit.lock and --locked keeps to it; give one of the two")
    if locked and search:
        raise UsageError(
            "--locked builds what edgekit.lock says, so there is nothing to --search; use --lock to choose anew"
        )
    if (place or keys) and not on_device:
        raise UsageError("--fleet and --keys are for --on-device DEVICE")
    # Before the work: a fleet that is not known is no news for after it.
    measure_on = boards.measuring(place, on_device, keys) if on_device else None
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
    with watched() as screen:
        outcome = running.run(project, options, screen, measure=measure)
        interrupt.check()
        if measure_on is not None:
            from converters import onboard

            outcome = onboard.settled(outcome, options, measure_on, screen.tell)
            interrupt.check()
    if json_file is not None:
        render.write_text(json_file, render.as_json(outcome.document) + "\n")
    _show(outcome, verbose=verbose)
    try:
        outcome.require_met()
    except ContractMissedError as error:
        if error.layers:
            tables.show_layers(error.layers)
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
        | ({"source": projects.here(source)} if source else {})
        | ({"outputs": outputs} if outputs else {}),
        "inputs": shapes,
        "state": _pairs("--state", flags["states"]),
        "data": {
            key: projects.here(value)
            for key, value in _given(flags, "calibration", "evaluation", "slices", "metric").items()
        },
        "contract": _given(
            flags, "max_accuracy_drop", "max_drop_per_slice", "latency_p95_ms", "memory_mb", "size_mb"
        ),
        "targets": {target: {} for target in flags["targets"]},
    }
    return {key: value for key, value in table.items() if value or key in ("model", "targets")}


def _given(flags: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: flags[name] for name in names if flags[name] is not None}


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


def _show(outcome: Outcome, *, verbose: bool) -> None:
    for sheet in outcome.sheets:
        tables.show(sheet, verbose=verbose)
        click.echo()
    for entry in outcome.document["bundles"]:
        kind = "alternate" if entry["alternate"] else "bundle"
        # A terminal's line has room for the digest's head; a pipe gets it whole.
        digest = entry["digest"] if render.width() is None else entry["digest"][:19] + "…"
        click.echo(f"{kind} {entry['path']}  {render.size(entry['size_bytes'])}  {digest}")
    click.echo(f"time   {msgspec.convert(outcome.document['spent'], Account).words()}")
    click.echo(f"report {outcome.report}")
    for number, command in enumerate(_next(outcome)):
        click.echo(f"{'next:' if number == 0 else '     '} {command}")


def _next(outcome: Outcome) -> list[str]:
    """The commands that follow: does the bundle work here, and then to the fleet."""
    picked = [entry for entry in outcome.document["bundles"] if not entry["alternate"]]
    if not picked:
        return []
    measured = {sheet.profile for sheet in outcome.sheets if sheet.is_measured}
    tried = next((entry for entry in picked if entry["profile"] in measured), picked[0])
    paths = [shlex.quote(str(entry["path"])) for entry in picked]
    return [f"edgekit verify {shlex.quote(str(tried['path']))}", f"edgekit fleet publish {' '.join(paths)}"]
