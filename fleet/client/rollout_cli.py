"""`edgekit fleet rollout …`."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.live import Live

from fleet import api
from fleet.client import render, rollout_file, views, watch_views, watching
from fleet.client.complete import completes
from fleet.client.options import connected, examples, with_fleet
from fleet.client.watching import Look

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
  edgekit fleet rollout start --file nightly.toml --per-site 2 --window '22:00-05:00' --rate 60/min
"""

WATCH_EPILOG = """\b
Exit codes:
  0    it completed
  5    it was rolled back, aborted or paused, or --timeout is over, or the fleet refused
  130  you stopped watching; the rollout goes on

\b
Examples:
  edgekit fleet rollout watch r3
  edgekit fleet rollout watch r3 --timeout 3600 && echo done
  edgekit fleet rollout watch r3 --json | jq .counts
"""
_one = click.argument("rollout_id", metavar="ID", shell_complete=completes("rollout"))


@click.group(
    epilog=examples(
        "edgekit fleet rollout start digits@1.1.0 --to site=lab --stages 1%,10%,100% --gate 'error_rate < 1%'",
        "edgekit fleet rollout watch r3",
    )
)
def rollout() -> None:
    """Move devices to a release in stages."""


@rollout.command(epilog=START_EPILOG)
@click.argument("release", metavar="[NAME@VERSION]", required=False, shell_complete=completes("release"))
@click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A rollout as a TOML file ('rollout show --toml' writes one); options given beside it hold.",
)
@click.option("--to", help="Which devices: 'site=lab and profile=…', 'device in (a, b)', all.")
@click.option("--stages", help="Shares or counts, e.g. 1%,10%,100%. Chosen by the fleet's size unless set.")
@click.option("--soak", help="How long each stage is watched.  [default: 30m]")
@click.option("--gate", "gates", multiple=True, help="A condition between stages; repeatable.")
@click.option(
    "--on-violation", type=click.Choice(["rollback", "pause", "abort"]), help="  [default: rollback]"
)
@click.option("--deadline", help="A device's time from accepting the order.  [default: 10m]")
@click.option("--finish-by", help="The rollout's time; then it pauses.  [default: 2d]")
@click.option("--holdback", help="Devices that stay on the old release as control: 10 or 2%.")
@click.option("--approve", help="Stages that begin only after 'rollout approve': 2,3 or all.")
@click.option("--rate", help="Orders given out at most, e.g. 60/min.")
@click.option("--at-once", type=click.IntRange(1), help="Devices that move at the same time, at most.")
@click.option("--per-site", type=click.IntRange(1), help="The same of each site (label site).")
@click.option(
    "--window",
    "windows",
    multiple=True,
    help="When devices may move, by their own clocks (label tz), e.g. 'mon-fri 22:00-05:00'; repeatable.",
)
@click.option("--time-zone", help="Of devices without a label tz.  [default: UTC]")
@click.option("--site-bandwidth", help="What the devices of a site fetch with together, e.g. 10Mbit/s.")
@click.option("--jitter", help="Each device begins to fetch within this time, e.g. 2m.")
@click.option("--deployment", help="The model slot; the release's name unless set.")
@click.option("--probation", help="How long a device tries the release on live traffic, e.g. 5s.")
@click.option("--queue", is_flag=True, help="Wait for rollouts that have some of these devices, then begin.")
@click.option("--dry-run", is_flag=True, help="Show the plan and stop.")
@with_fleet
def start(path: Path | None, place: str | None, *, as_json: bool, **given: Any) -> None:
    """Plan a rollout, show the plan, and start it."""
    with connected(place) as client:
        answer = client.start(_wanted(path, given))
    if as_json:
        render.show_json(answer)
        return
    render.show(views.plan(answer.plan))
    if answer.rollout is None:
        render.say("dry run: nothing was started")
        return
    began = "queued" if answer.rollout.status == "queued" else "started"
    render.say(
        f"{began} {answer.rollout.id}; follow it with: edgekit fleet rollout watch {answer.rollout.id}"
    )


def _wanted(path: Path | None, given: dict[str, Any]) -> api.NewRollout:
    """The file's rollout with the options that were given, or one of these alone. Raises: UsageError."""
    options = {name: value for name, value in given.items() if value not in (None, (), False)}
    if path is not None:
        return msgspec.structs.replace(rollout_file.read(path), **options)
    for name, flag in (("release", "NAME@VERSION"), ("to", "--to")):
        if name not in options:
            raise click.UsageError(f"{flag} is missing, or a --file that says it")
    return api.NewRollout(**options)


@rollout.command(epilog=examples("edgekit fleet rollout show r3 --toml > again.toml"))
@_one
@click.option("--toml", "as_toml", is_flag=True, help="As the file that starts another one like it.")
@with_fleet
def show(*, rollout_id: str, as_toml: bool, place: str | None, as_json: bool) -> None:
    """What a rollout was started with."""
    with connected(place) as client:
        found = client.wanted(rollout_id)
    if as_json and not as_toml:
        render.show_json(found)
    else:
        click.echo(rollout_file.write(found), nl=False)


@rollout.command("list", epilog=examples("edgekit fleet rollout list"))
@with_fleet
def listing(*, place: str | None, as_json: bool) -> None:
    """List rollouts, newest first."""
    with connected(place) as client:
        found = client.rollouts()
    if as_json:
        render.show_json(found)
    elif found:
        render.show(views.rollouts(found))
    else:
        render.say("no rollouts yet")


@rollout.command(epilog=examples("edgekit fleet rollout status r3"))
@_one
@with_fleet
def status(*, rollout_id: str, place: str | None, as_json: bool) -> None:
    """Show one rollout: stage, gates, devices."""
    with connected(place) as client:
        found = client.rollout(rollout_id)
    if as_json:
        render.show_json(found)
    else:
        render.show(views.rollout(found, most=1000))


@rollout.command(epilog=WATCH_EPILOG)
@_one
@click.option(
    "--timeout", type=float, default=None, help="Stop watching after so many seconds (exit code 5)."
)
@with_fleet
def watch(*, rollout_id: str, timeout: float | None, place: str | None, as_json: bool) -> None:
    """Follow a rollout until it ends or pauses: its track, what it waits for, canary against control.

    Where standard output is no terminal: a line whenever something changes; with --json a JSON line.
    """
    with connected(place) as client:
        looks = watching.looks(client, rollout_id, timeout)
        last = (
            _watch_live(looks)
            if not as_json and Console().is_terminal
            else _watch_lines(looks, as_json=as_json)
        )
    if last.rollout.status != "completed":
        raise click.exceptions.Exit(5)


def _watch_live(looks: Iterator[Look]) -> Look:
    look = next(looks)
    with Live(watch_views.screen(look, datetime.now(UTC)), refresh_per_second=4) as live:
        for look in looks:
            live.update(watch_views.screen(look, datetime.now(UTC)))
    return look


def _watch_lines(looks: Iterator[Look], *, as_json: bool) -> Look:
    last = ""
    for look in looks:
        now = datetime.now(UTC)
        new = watch_views.substance(look, now)
        if new == last:
            continue
        last = new
        if not as_json:
            render.say(watch_views.line(look, now))
        elif look.away_since is None:
            render.show_json_line(look.rollout)
    return look


def _turn(
    rollout_id: str, verb: str, place: str | None, how: api.Turn | None = None, *, as_json: bool
) -> None:
    with connected(place) as client:
        found = client.turn(rollout_id, verb, how)
    if as_json:
        render.show_json(found)
    else:
        render.say(views.line(found))


@rollout.command(epilog=examples("edgekit fleet rollout pause r3"))
@_one
@with_fleet
def pause(*, rollout_id: str, place: str | None, as_json: bool) -> None:
    """No new orders; devices that are moving finish, and are judged."""
    _turn(rollout_id, "pause", place, as_json=as_json)


@rollout.command(
    epilog=examples("edgekit fleet rollout resume r3", "edgekit fleet rollout resume r3 --finish-by 1d")
)
@_one
@click.option(
    "--finish-by", default="", help="The time that it has from now on; needed once its time is over."
)
@with_fleet
def resume(*, rollout_id: str, finish_by: str, place: str | None, as_json: bool) -> None:
    """Go on; failures so far are excused, what was spent of the error budget is not."""
    _turn(rollout_id, "resume", place, api.Turn(finish_by=finish_by), as_json=as_json)


@rollout.command(epilog=examples("edgekit fleet rollout approve r3"))
@_one
@with_fleet
def approve(*, rollout_id: str, place: str | None, as_json: bool) -> None:
    """Let the stage begin that waits for approval."""
    _turn(rollout_id, "approve", place, as_json=as_json)


@rollout.command(epilog=examples("edgekit fleet rollout hold r3 --profile raspberry-pi-5"))
@_one
@click.option("--profile", required=True, help="Of the release's bundles, as the plan shows them.")
@with_fleet
def hold(*, rollout_id: str, profile: str, place: str | None, as_json: bool) -> None:
    """No more orders for devices of one profile; the others go on."""
    _turn(rollout_id, "hold", place, api.Turn(profile), as_json=as_json)


@rollout.command(epilog=examples("edgekit fleet rollout release r3 --profile raspberry-pi-5"))
@_one
@click.option("--profile", required=True, help="One that is held.")
@with_fleet
def release(*, rollout_id: str, profile: str, place: str | None, as_json: bool) -> None:
    """Let a profile go on that was held."""
    _turn(rollout_id, "release", place, api.Turn(profile), as_json=as_json)


@rollout.command(
    epilog=examples("edgekit fleet rollout retry r3", "edgekit fleet rollout retry r3 roof-1 roof-2")
)
@_one
@click.argument("devices", nargs=-1, shell_complete=completes("device"))
@with_fleet
def retry(*, rollout_id: str, devices: tuple[str, ...], place: str | None, as_json: bool) -> None:
    """Tell failed DEVICES (all that failed, unless named) to try again; their failures count no more."""
    with connected(place) as client:
        done = client.retry(rollout_id, devices)
    if as_json:
        render.show_json(done)
    else:
        render.say(f"{rollout_id}: {', '.join(done.devices)} try again")


@rollout.command(epilog=examples("edgekit fleet rollout abort r3"))
@_one
@with_fleet
def abort(*, rollout_id: str, place: str | None, as_json: bool) -> None:
    """Order devices back that have not committed; those that have stay."""
    _turn(rollout_id, "abort", place, as_json=as_json)


@rollout.command(epilog=examples("edgekit fleet rollout rollback r3"))
@_one
@with_fleet
def rollback(*, rollout_id: str, place: str | None, as_json: bool) -> None:
    """Order all devices back, each to what it ran before; those that came since, to what is assigned then."""
    _turn(rollout_id, "rollback", place, as_json=as_json)
