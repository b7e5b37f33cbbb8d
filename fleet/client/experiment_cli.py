"""`edgekit fleet experiment …`."""

import click

from fleet import api
from fleet.client import render
from fleet.client.complete import completes
from fleet.client.options import connected, examples, with_fleet
from fleet.client.sheet import sheet

EPILOG = """\b
Goals, compared device by device:
  metric:NAME        what the application reports; more is better ('min metric:NAME': less is)
  error_rate         errors per accepted request; less is better
  latency_mean       engine time; less is better

\b
Example:
  edgekit fleet experiment start digits@1.0.0 digits@1.1.0 --to site=lab --goal metric:conversion
"""


@click.group(
    epilog=examples(
        "edgekit fleet experiment start digits@1.0.0 digits@1.1.0 --to site=lab --goal metric:conversion",
        "edgekit fleet experiment status e1",
    )
)
def experiment() -> None:
    """Two releases side by side on a fixed split of devices."""


@experiment.command(epilog=EPILOG)
@click.argument("a", metavar="A", shell_complete=completes("release"))
@click.argument("b", metavar="B", shell_complete=completes("release"))
@click.option("--to", "selector", required=True, help="Which devices, as of a rollout.")
@click.option("--goal", required=True, help="What decides, e.g. metric:conversion.")
@click.option("--split", default="50/50", show_default=True, help="Shares of A and B.")
@click.option("--deployment", default="", help="The model slot; the name of A unless set.")
@with_fleet
def start(
    *, a: str, b: str, selector: str, goal: str, split: str, deployment: str, place: str | None, as_json: bool
) -> None:
    """Give each device that can run both A or B (NAME@VERSION each), and compare them for as long as it runs."""
    wanted = api.NewExperiment(a=a, b=b, to=selector, goal=goal, split=split, deployment=deployment)
    with connected(place) as client:
        _show(client.start_experiment(wanted), as_json=as_json)


@experiment.command("list", epilog=examples("edgekit fleet experiment list"))
@with_fleet
def listing(*, place: str | None, as_json: bool) -> None:
    """List experiments, newest first."""
    with connected(place) as client:
        found = client.experiments()
    render.show_lines(found, _line, none="no experiments yet", as_json=as_json)


def _line(one: api.ExperimentView) -> str:
    return f"{one.id}  {one.a.release} against {one.b.release}  {one.status}  {one.words}"


@experiment.command(epilog=examples("edgekit fleet experiment status e1"))
@click.argument("experiment_id", metavar="ID", shell_complete=completes("experiment"))
@with_fleet
def status(*, experiment_id: str, place: str | None, as_json: bool) -> None:
    """Show one experiment and its verdict in words. Looking often costs nothing."""
    with connected(place) as client:
        _show(client.experiment(experiment_id), as_json=as_json)


@experiment.command(epilog=examples("edgekit fleet experiment stop e1"))
@click.argument("experiment_id", metavar="ID", shell_complete=completes("experiment"))
@with_fleet
def stop(*, experiment_id: str, place: str | None, as_json: bool) -> None:
    """End it; each device goes back to what it ran before."""
    with connected(place) as client:
        _show(client.end_experiment(experiment_id), as_json=as_json)


@experiment.command(epilog=examples("edgekit fleet experiment adopt e1 B"))
@click.argument("experiment_id", metavar="ID", shell_complete=completes("experiment"))
@click.argument("arm", type=click.Choice(["A", "B"]))
@with_fleet
def adopt(*, experiment_id: str, arm: str, place: str | None, as_json: bool) -> None:
    """End it; all its devices, and those that its selector matches later, get the release of A or B."""
    with connected(place) as client:
        _show(client.end_experiment(experiment_id, arm), as_json=as_json)


def _show(found: api.ExperimentView, *, as_json: bool) -> None:
    if as_json:
        render.show_json(found)
        return
    table = sheet("", "release", "share", "devices", "reporting", "measured", "mean", "errors")
    for name, arm in (("A", found.a), ("B", found.b)):
        mean = "-" if arm.mean is None else f"{arm.mean:.4g}"
        errors = "-" if arm.error_rate is None else f"{arm.error_rate:.3%}"
        counts = (str(arm.assigned), str(arm.reporting), str(arm.measured))
        table.add(name, arm.release, f"{arm.share:.0%}", *counts, mean, errors)
    render.say(
        f"{found.id} to {found.to}, goal {found.goal}: {found.status}{f' ({found.reason})' if found.reason else ''}"
    )
    render.show(table)
    render.say(found.words)
