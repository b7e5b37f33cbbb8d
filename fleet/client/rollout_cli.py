"""`edgekit fleet rollout …`."""

import time

import click
from rich.console import Console
from rich.live import Live

from fleet import api
from fleet.client import render
from fleet.client.options import connected, with_fleet
from fleet.client.rest import Client

# `watch` ends here; only the first is a success.
_ENDS = ("completed", "rolled_back", "aborted", "paused")
_LOOK_S = 0.5

START_EPILOG = """\b
Gates:
  error_rate < 1% [min 100 requests]     errors per accepted request
  latency_p95 <= 20ms [min 3 windows]    engine time; also latency_p50, latency_p99
  install_failures < 5% [min 20 devices]
  lost <= 5%                             always there; give it to change the limit
  latency_p95 <= 1.1 * control           against devices still on the old release
  error_rate <= control + 0.5%           the same, in points
  latency_p95 <= 1.2 * before            each device against its own past: may only pause
  drift_psi < 0.2                        drift of inputs
  metric:NAME >= 0.95 * control          what the application reports

\b
Examples:
  edgekit fleet rollout start digits@1.1.0 --to 'site=lab and profile=raspberry-pi-5' \\
      --stages 1%,10%,100% --soak 30m --gate 'error_rate < 1%' --gate 'latency_p95 <= 20ms'
  edgekit fleet rollout start digits@1.1.0 --to all --stages 1,100% --gate 'error_rate < 1%' --dry-run
"""


@click.group()
def rollout() -> None:
    """Move devices to a release in stages."""


@rollout.command(epilog=START_EPILOG)
@click.argument("release", metavar="NAME@VERSION")
@click.option(
    "--to",
    "selector",
    required=True,
    help="Which devices: 'site=lab and profile=…', 'device in (a, b)', all.",
)
@click.option(
    "--stages", default="", help="Shares or counts, e.g. 1%,10%,100%. Chosen by the fleet's size unless set."
)
@click.option("--soak", default="30m", show_default=True, help="How long each stage is watched.")
@click.option("--gate", "gates", multiple=True, help="A condition between stages; repeatable.")
@click.option(
    "--on-violation", type=click.Choice(["rollback", "pause", "abort"]), default="rollback", show_default=True
)
@click.option(
    "--deadline", default="10m", show_default=True, help="A device's time from accepting the order."
)
@click.option("--finish-by", default="2d", show_default=True, help="The rollout's time; then it pauses.")
@click.option("--holdback", default="", help="Devices that stay on the old release as control: 10 or 2%.")
@click.option("--deployment", default="", help="The model slot; the release's name unless set.")
@click.option("--probation", default="", help="How long a device tries the release on live traffic, e.g. 5s.")
@click.option("--dry-run", is_flag=True, help="Show the plan and stop.")
@with_fleet
def start(  # noqa: PLR0917  # click passes by keyword
    release: str,
    selector: str,
    stages: str,
    soak: str,
    gates: tuple[str, ...],
    on_violation: api.OnViolation,
    deadline: str,
    finish_by: str,
    holdback: str,
    deployment: str,
    probation: str,
    dry_run: bool,
    place: str | None,
    as_json: bool,
) -> None:
    """Plan a rollout, show the plan, and start it."""
    wanted = api.NewRollout(
        release=release,
        to=selector,
        stages=stages,
        soak=soak,
        gates=gates,
        on_violation=on_violation,
        deadline=deadline,
        finish_by=finish_by,
        holdback=holdback,
        deployment=deployment,
        probation=probation,
        dry_run=dry_run,
    )
    with connected(place) as client:
        answer = client.start(wanted)
    if as_json:
        render.show_json(answer)
        return
    render.show(render.plan(answer.plan))
    if answer.rollout is None:
        click.echo("dry run: nothing was started")
    else:
        click.echo(
            f"started {answer.rollout.id}; follow it with: edgekit fleet rollout watch {answer.rollout.id}"
        )


@rollout.command("list")
@with_fleet
def listing(*, place: str | None, as_json: bool) -> None:
    """List rollouts, newest first."""
    with connected(place) as client:
        found = client.rollouts()
    if as_json:
        render.show_json(found)
    elif found:
        render.show(render.rollouts(found))
    else:
        click.echo("no rollouts yet")


@rollout.command()
@click.argument("rollout_id", metavar="ID")
@with_fleet
def status(*, rollout_id: str, place: str | None, as_json: bool) -> None:
    """Show one rollout: stage, gates, devices."""
    with connected(place) as client:
        found = client.rollout(rollout_id)
    if as_json:
        render.show_json(found)
    else:
        render.show(render.rollout(found, most=1000))


@rollout.command()
@click.argument("rollout_id", metavar="ID")
@click.option(
    "--timeout", type=float, default=None, help="Stop watching after so many seconds (exit code 5)."
)
@with_fleet
def watch(*, rollout_id: str, timeout: float | None, place: str | None, as_json: bool) -> None:
    """Follow a rollout until it ends or pauses; exit code 0 only if it completed, else 5."""
    deadline = time.monotonic() + timeout if timeout is not None else None
    with connected(place) as client:
        found = (
            _watch_live(client, rollout_id, deadline)
            if _is_live(as_json)
            else _watch_lines(client, rollout_id, deadline, as_json=as_json)
        )
    if found.status != "completed":
        raise click.exceptions.Exit(5)


def _is_live(as_json: bool) -> bool:
    return not as_json and Console().is_terminal


def _watch_live(client: Client, rollout_id: str, deadline: float | None) -> api.RolloutView:
    found = client.rollout(rollout_id)
    with Live(render.rollout(found), refresh_per_second=4) as live:
        while found.status not in _ENDS and not _is_past(deadline):
            time.sleep(_LOOK_S)
            found = client.rollout(rollout_id)
            live.update(render.rollout(found))
    return found


def _watch_lines(
    client: Client, rollout_id: str, deadline: float | None, *, as_json: bool
) -> api.RolloutView:
    last = ""
    while True:
        found = client.rollout(rollout_id)
        line = render.line(found)
        if line != last:
            last = line
            if as_json:
                render.show_json_line(found)
            else:
                click.echo(line)
        if found.status in _ENDS or _is_past(deadline):
            return found
        time.sleep(_LOOK_S)


def _is_past(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _turn(rollout_id: str, verb: str, place: str | None, *, as_json: bool) -> None:
    with connected(place) as client:
        found = client.turn(rollout_id, verb)
    if as_json:
        render.show_json(found)
    else:
        click.echo(render.line(found))


@rollout.command()
@click.argument("rollout_id", metavar="ID")
@with_fleet
def pause(*, rollout_id: str, place: str | None, as_json: bool) -> None:
    """No new orders; devices that are moving finish."""
    _turn(rollout_id, "pause", place, as_json=as_json)


@rollout.command()
@click.argument("rollout_id", metavar="ID")
@with_fleet
def resume(*, rollout_id: str, place: str | None, as_json: bool) -> None:
    """Go on; failures so far are excused, and the stage is judged afresh."""
    _turn(rollout_id, "resume", place, as_json=as_json)


@rollout.command()
@click.argument("rollout_id", metavar="ID")
@click.argument("devices", nargs=-1)
@with_fleet
def retry(*, rollout_id: str, devices: tuple[str, ...], place: str | None, as_json: bool) -> None:
    """Tell failed DEVICES (all that failed, unless named) to try again; their failures count no more."""
    with connected(place) as client:
        done = client.retry(rollout_id, devices)
    if as_json:
        render.show_json(done)
    else:
        click.echo(f"{rollout_id}: {', '.join(done.devices)} try again")


@rollout.command()
@click.argument("rollout_id", metavar="ID")
@with_fleet
def abort(*, rollout_id: str, place: str | None, as_json: bool) -> None:
    """Order devices back that have not committed; those that have stay."""
    _turn(rollout_id, "abort", place, as_json=as_json)


@rollout.command()
@click.argument("rollout_id", metavar="ID")
@with_fleet
def rollback(*, rollout_id: str, place: str | None, as_json: bool) -> None:
    """Order all devices back, each to what it ran before."""
    _turn(rollout_id, "rollback", place, as_json=as_json)
