"""`edgekit inspect`, `verify`, `run` and `diff`: what a bundle holds, whether it works here, and what it answers."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import msgspec

from edgekit import bundle as bundles
from edgekit import local
from edgekit.bundle import Bundle
from edgekit.cli import render
from edgekit.compare import difference
from edgekit.errors import DataError, SelfTestFailedError, UsageError
from edgekit.evidence import BucketEvidence, Figure, Statement
from edgekit.inputs import input_files
from edgekit.manifest import Floor, Manifest, Step
from edgekit.predict import answers
from edgekit.rowset import described
from edgekit.selftest import SelfTestResult

BUNDLE = click.Path(dir_okay=False, path_type=Path)
INPUT = click.Path(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")


@click.command(epilog="Example:  edgekit inspect dist/digits-1.0.0-raspberry-pi-5.edgekit")
@click.argument("bundle", type=BUNDLE)
@json_option
def inspect(bundle: Path, *, as_json: bool) -> None:
    """Show what is in a bundle, and the evidence that lies beside it."""
    found = bundles.read(bundle)
    evidence = local.evidence_of(found)
    if as_json:
        render.print_json(
            {
                "path": str(bundle),
                "sha256": found.sha256,
                "size_bytes": found.size_bytes,
                "manifest": found.manifest,
                "evidence": evidence,
            }
        )
        return
    render.pairs(found.manifest.title, [*bundle_rows(found), *evidence_rows(evidence)])
    render.table(
        "Files",
        ["file", "size", "sha256"],
        [(entry.path, render.size(entry.size), entry.sha256[:16]) for entry in found.manifest.files],
        numeric=["size"],
    )


@click.command(
    epilog="Examples:  edgekit verify dist/digits-1.0.0-x86-64-v3.edgekit   |   edgekit verify --emulate pi.edgekit"
)
@click.argument("bundle", type=BUNDLE)
@click.option("--emulate", is_flag=True, help="On an emulated ARM CPU of the bundle's profile.")
@click.option("--profile", help="With --emulate: the profile (or its .toml file) whose CPU is emulated.")
@json_option
def verify(bundle: Path, *, emulate: bool, profile: str | None, as_json: bool) -> None:
    """Run a bundle's self-test on this machine; exit code 3 if it fails.

    With --emulate it runs under qemu (see `edgekit emulator setup`): what the outputs differ by on ARM is real, the
    time it takes says nothing and is not shown.
    """
    if emulate:
        _verify_emulated(bundle, profile, as_json=as_json)
        return
    if profile is not None:
        raise UsageError("--profile says which CPU --emulate emulates; give both or neither")
    result = local.verify(bundle)
    bounds = bundles.read(bundle).manifest.selftest.snr_db or {}
    if as_json:
        render.print_json(result)
    else:
        told = local.foreign(bundles.read(bundle).manifest)
        render.pairs(
            f"{bundle.name}: {'passed' if result.passed else 'FAILED'}",
            [*_selftest_rows(result, bounds), *([("machine", told)] if told else [])],
        )
    if not result.passed:
        raise SelfTestFailedError(f"{bundle.name} must not run on this machine: {result.reason}")


def _selftest_rows(result: SelfTestResult, bounds: Mapping[str, Sequence[Floor]]) -> list[tuple[str, str]]:
    """What a self-test on this machine came to; `bounds` are the decibels that outputs must reach."""
    return [
        ("agreement", f"{result.agreement:.1%} of the golden answers equal the float source's"),
        *((f"error of {name}", f"{error:.3g}") for name, error in result.max_error.items()),
        *(
            (
                " ".join(filter(None, (f"output {name!r}", floor.describe()))),
                f"{snr:.1f} dB to the float source, at least {floor.least_db:.1f}",
            )
            for name, found in result.snr_db.items()
            for floor, snr in zip(bounds[name], found, strict=True)
        ),
        ("engine call here", f"p50 {result.latency_p50_ms:.2f} ms, p95 {result.latency_p95_ms:.2f} ms"),
    ]


def _verify_emulated(bundle: Path, profile: str | None, *, as_json: bool) -> None:
    """The converters own the emulator; they are loaded only here."""
    emulation: Any = import_module("converters.emulation.verify")
    cpu = emulation.cpu_for(bundle, profile)
    with render.progress() as progress:
        task = progress.add_task(f"self-test on an emulated {cpu}", total=None)
        ran = emulation.run(
            bundle, cpu, progress=lambda done, of: progress.update(task, completed=done, total=of)
        )
    if as_json:
        render.print_json(ran)
    else:
        render.pairs(
            f"{bundle.name}: {'passed' if ran.passed else 'FAILED'} on {ran.on.cpu}",
            [
                ("engine", f"{ran.on.engine} {ran.on.engine_version}"),
                ("instruction sets", ", ".join(ran.on.isa)),
                ("samples", f"{ran.samples} of {ran.of}"),
                ("agreement", f"{ran.agreement:.1%} of the golden answers equal the float source's"),
                *(
                    (
                        f"error of {name}",
                        f"{error:.3g}, at most {ran.tolerance.get(name, 0):.3g} is tolerated",
                    )
                    for name, error in ran.max_error.items()
                ),
            ],
        )
    if not ran.passed:
        raise SelfTestFailedError(f"{bundle.name} fails on an emulated {cpu}: {ran.reason}")


@click.command(
    epilog="Examples:  edgekit run digits.edgekit seven.png   |   edgekit run digits.edgekit scans/ --out answers.jsonl"
)
@click.argument("bundle", type=BUNDLE)
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True, type=INPUT)
@click.option("--out", type=BUNDLE, help="Write the answers there instead of printing them.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output (as it always is here).")
def run(bundle: Path, inputs: tuple[Path, ...], out: Path | None, *, as_json: bool) -> None:  # noqa: ARG001  # every command takes --json
    """Run a bundle on files, or on all files of a folder: .npz, .npy, .json, images.

    Prints one JSON line for each sample: the file, its outputs after post-processing and the milliseconds in the
    engine. A file that cannot be used gets a line with its error; the exit code is then 2.
    """
    files = list(input_files(inputs))
    failed, lines = 0, []
    with local.opened(bundle) as here, render.progress() as progress:
        for answer in answers(here, progress.track(files, description="running")):
            failed += bool(answer.error)
            if out is None:
                render.json_lines([answer])
            else:
                lines.append(msgspec.json.encode(answer).decode() + "\n")
    if out is not None:
        render.write_text(out, "".join(lines))
        render.note(f"wrote {len(lines)} answers to {out}")
    if failed:
        raise DataError(
            f"{failed} of {len(files)} input files could not be used; their lines have an 'error'"
        )


@click.command(
    epilog="Examples:  edgekit diff old.edgekit new.edgekit"
    "   |   edgekit diff dist/m-1-pi.edgekit dist/alternates/litert-fp16/m-1-pi.edgekit"
)
@click.argument("before", type=BUNDLE)
@click.argument("after", type=BUNDLE)
@json_option
def diff(before: Path, after: Path, *, as_json: bool) -> None:
    """Compare two bundles: manifest fields, recipe, tensors, files, and side by side what their builds measured (from
    the evidence beside them). Exit code 0 either way.
    """
    one, other = bundles.read(before), bundles.read(after)
    statements = local.evidence_of(one), local.evidence_of(other)
    told = tuple(statement.predicate if statement else None for statement in statements)
    found = difference(one.manifest, other.manifest, (told[0], told[1]))
    if as_json:
        render.print_json(found)
        return
    if found.is_empty:
        click.echo("the two bundles hold the same")
    names = _told_apart(one, other)
    for title, changes in (
        ("Manifest", found.fields),
        ("Tensors", found.tensors),
        ("Files", found.files),
        ("Figures of their builds", found.figures),
    ):
        if changes:
            render.table(
                title,
                ["what", *names],
                [(change.what, _cell(change.before), _cell(change.after)) for change in changes],
            )


def _told_apart(one: Bundle, other: Bundle) -> tuple[str, str]:
    """Names for the two columns: alternates have the pick's file name, so then the recipes, or else the whole paths."""
    for first, second in (
        (one.path.name, other.path.name),
        (one.manifest.recipe, other.manifest.recipe),
    ):
        if first != second:
            return first, second
    return str(one.path), str(other.path)


def bundle_rows(found: Bundle) -> list[tuple[str, str]]:
    """The manifest of a `Bundle` as names and values."""
    manifest = found.manifest
    test = manifest.selftest
    limits = msgspec.to_builtins(manifest.contract)
    return [
        ("sha256", found.sha256),
        ("size", render.size(found.size_bytes)),
        ("profile", manifest.profile),
        ("engine", f"{manifest.engine.name} {manifest.engine.versions}"),
        ("options", ", ".join(f"{key}={value}" for key, value in manifest.engine.options.items()) or "-"),
        ("threads", str(manifest.engine.threads or "the engine's choice")),
        ("recipe", manifest.recipe),
        *(("input", spec.describe()) for spec in manifest.admitted),
        *buckets_rows(manifest),
        *(("output", f"{name}: {told}") for name, told in described(manifest).items()),
        *(("state", f"{pair.output} feeds {pair.input}") for pair in manifest.state),
        *((f"before {name}", _steps(steps)) for name, steps in manifest.preprocess.items()),
        *((("after", _steps(manifest.postprocess)),) if manifest.postprocess else ()),
        *guard_rows(manifest),
        *label_rows(manifest),
        ("contract", ", ".join(f"{key} {value:g}" for key, value in limits.items()) or "no limits"),
        ("self-test", f"{test.samples} samples, at least {test.agreement:.1%} agreement with the source"),
    ]


def label_rows(manifest: Manifest) -> list[tuple[str, str]]:
    """Names of classes that the source carries and no step gives."""
    labels = manifest.labels or ()
    if not labels:
        return []
    shown = ", ".join(repr(label) for label in labels[:5])
    return [("labels", f"{len(labels)}: {shown}{', …' if len(labels) > 5 else ''}")]


def guard_rows(manifest: Manifest) -> list[tuple[str, str]]:
    """What is done about unfamiliar inputs."""
    guard = manifest.guard or None
    if guard is None:
        return []
    told = (
        f"looks at {', '.join(guard.inputs)}; set for {guard.false_alarms:.2%} false alarms; {guard.answer}"
    )
    return [("guard", told)]


def buckets_rows(manifest: Manifest) -> list[tuple[str, str]]:
    """The sizes that inputs are padded to."""
    if not manifest.buckets:
        return []
    where = ", ".join(f"{name} along axis {axis}" for name, axis in manifest.buckets.axes.items())
    return [("buckets", f"{', '.join(map(str, manifest.buckets.sizes))}: {where} is padded to the next")]


def evidence_rows(statement: Statement | None) -> list[tuple[str, str]]:
    """The figures of an evidence `Statement`, each with how it was obtained."""
    if statement is None:
        return [("evidence", "none beside the bundle")]
    build = statement.predicate
    shown = {
        f"{build.metric} of the source": build.source_accuracy,
        f"{build.metric} of the bundle": build.accuracy,
        "latency p50 (ms)": build.latency_p50_ms,
        "latency p95 (ms)": build.latency_p95_ms,
        "memory (MB)": build.memory_mb,
    }
    figures = [(name, _figure(figure)) for name, figure in shown.items() if figure is not None]
    rows = [*figures, *((f"budget {name}", outcome) for name, outcome in build.budgets.items())]
    rows += [(f"bucket {each.size}", _bucket(each)) for each in build.buckets]
    if build.emulation is not None:
        ran = build.emulation
        gaps = [f"{name} differs by {_figure(gap)}" for name, gap in ran.max_error.items()]
        rows.append(("self-test under emulation", "; ".join(filter(None, (ran.outcome, ran.reason, *gaps)))))
    return rows


def _bucket(each: BucketEvidence) -> str:
    told = [
        f"{each.share:.0%} of the samples",
        f"{each.accuracy.value:.4g}, source {each.source_accuracy.value:.4g}",
    ]
    if each.latency_p50_ms is not None and each.latency_p95_ms is not None:
        told.append(f"p50 {each.latency_p50_ms.value:.4g} ms, p95 {each.latency_p95_ms.value:.4g} ms")
    return "; ".join(told)


def _figure(figure: Figure) -> str:
    span = f"{figure.value:.4g}" if figure.high is None else f"{figure.value:.4g} to {figure.high:.4g}"
    return f"{span}, {figure.how} on {figure.on.cpu}"


def _steps(steps: Sequence[Step]) -> str:
    return " → ".join(step.describe() for step in steps)


def _cell(value: Any) -> str:
    """A value for a table; a pipe and `--json` have it whole."""
    if isinstance(value, Figure):
        return _figure(value)
    text = "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 160 or render.width() is None else f"{text[:159]}…"
