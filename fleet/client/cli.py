"""`edgekit fleet`: the commands of a fleet's operator. Parse, call one method, render; no rule lives here."""

import importlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from edgekit.distribution import extra
from fleet.client import (
    access_cli,
    alerts_cli,
    assign_cli,
    audit_cli,
    batch_cli,
    config,
    describe_cli,
    device_cli,
    devices_cli,
    drift_cli,
    enrol_cli,
    login_cli,
    publishing,
    render,
    samples_cli,
    shadow_cli,
    tune_cli,
    views,
)
from fleet.client.complete import completes
from fleet.client.experiment_cli import experiment
from fleet.client.options import FLEET_HELP, connected, examples, with_fleet
from fleet.client.rollout_cli import rollout

# Commands that need the service's packages: loaded only when called.
_LAZY: Mapping[str, tuple[str, str]] = {
    "init": ("fleet.server.cli:init", "Make a fleet's home, once: keys, authority, database, settings."),
    "up": ("fleet.server.cli:up", "Start the broker and the fleet service; Ctrl-C stops both."),
    "worker": ("fleet.server.cli:worker", "Take reports in, beside the service; any number share them."),
    "backup": ("fleet.server.keep.cli:backup", "Copy a fleet into a file, while it runs."),
    "restore": ("fleet.server.keep.cli:restore", "Make a fleet's home from a backup."),
    "move": ("fleet.server.keep.cli:move", "Take a fleet to another database, SQLite or PostgreSQL."),
    "simulate": (
        "fleet.simulate.cli:simulate",
        "Virtual devices that behave as real ones, to size a set-up.",
    ),
    "broker-config": (
        "fleet.server.cli:broker_config",
        "Write the configuration of a broker that knows every device.",
    ),
}

EPILOG = """\b
Examples:
  edgekit fleet up --state fleet-state
  export EDGEKIT_FLEET=fleet-state
  edgekit fleet enroll roof-1 --label site=lab --deployment digits --out roof-1.json
  edgekit fleet publish dist/*.edgekit
  edgekit fleet rollout start digits@1.0.0 --to 'site=lab' --stages 1,100% --gate 'error_rate < 1%'
  edgekit fleet device explain roof-1
"""


class FleetGroup(click.Group):
    """A group of which some commands are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_LAZY, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _LAZY:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = _LAZY[cmd_name][0].partition(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise click.ClickException(
                f"'edgekit fleet {cmd_name}' needs {error.name}; install it with: {extra('fleet')}"
            ) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, summary) for name, (_, summary) in _LAZY.items()]
        rows += [(name, self.commands[name].get_short_help_str(80)) for name in super().list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=FleetGroup, epilog=EPILOG)
@click.option("--fleet", "place", default=None, help=FLEET_HELP)
@click.pass_context
def fleet(ctx: click.Context, *, place: str | None) -> None:
    """Run the fleet service; enrol devices, publish bundles, roll out."""
    ctx.obj = {**(ctx.obj or {}), "fleet": place}


fleet.add_command(rollout)
fleet.add_command(experiment)
for room in (
    enrol_cli,
    devices_cli,
    drift_cli,
    device_cli,
    assign_cli,
    batch_cli,
    access_cli,
    login_cli,
    audit_cli,
    alerts_cli,
    describe_cli,
    samples_cli,
    shadow_cli,
    tune_cli,
):
    for command in room.COMMANDS:
        fleet.add_command(command)


@fleet.command(epilog=examples("edgekit fleet releases", "edgekit fleet releases --json"))
@with_fleet
def releases(*, place: str | None, as_json: bool) -> None:
    """List releases and their bundles."""
    with connected(place) as client:
        found = client.releases()
    if as_json:
        render.show_json(found)
    elif found:
        render.show(views.releases(found))
    else:
        render.say("no releases yet; 'edgekit fleet publish BUNDLE…' adds one")


@fleet.command(
    epilog="\b\nExamples:\n  edgekit fleet publish dist/*.edgekit\n  edgekit fleet publish dist    # with its alternates"
)
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--keys",
    "custody",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=None,
    help="Publisher's folder of 'edgekit keys'; the one in the state folder unless set.",
)
@click.option(
    "--deltas",
    type=click.IntRange(0, 20),
    default=3,
    show_default=True,
    help="Make deltas from so many releases before, where they save half or more; 0 for none.",
)
@with_fleet
def publish(
    *, bundles: tuple[Path, ...], custody: Path | None, deltas: int, place: str | None, as_json: bool
) -> None:
    """Check BUNDLES, sign them here, and upload them with their evidence.

    A folder means the bundles of a build in it. What their evidence calls an alternate lies beside the release's own
    bundle of the profile; no device is ordered to run it.
    """
    custody = publishing.custody_of(config.find(place), custody)
    answers = []
    with connected(place) as client:
        checked = publishing.check(client, publishing.bundle_files(bundles))
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            console=Console(stderr=True),
            transient=True,
        ) as progress:
            for found in checked:
                task = progress.add_task(found.bundle.manifest.title, total=found.bundle.size_bytes)
                moved = partial(progress.advance, task)
                answers.append(publishing.publish(client, found, custody, moved, deltas=deltas))
    if as_json:
        render.show_json(answers)
        return
    for answer in answers:
        what = f"{answer.bundle.name}@{answer.bundle.version} for {answer.bundle.profile}"
        if answer.bundle.alternate:
            what += f", alternate {answer.bundle.alternate}"
        done = "was published already, nothing changed" if answer.was_there else "published"
        evidence = "" if answer.bundle.has_evidence else " (without evidence: no file beside the bundle)"
        render.say(f"{what}: {done}, sha256 {answer.bundle.sha256}{evidence}")
        for delta in answer.deltas:
            share = 100 * delta.length / answer.bundle.length
            render.say(f"  delta from {delta.base}: {delta.length} bytes, {share:.1f} % of the bundle's")


@fleet.command(epilog=examples("edgekit fleet status"))
@with_fleet
def status(*, place: str | None, as_json: bool) -> None:
    """The service at a glance."""
    with connected(place) as client:
        found = client.status()
    if as_json:
        render.show_json(found)
        return
    broker = "connected" if found.is_connected else "NOT connected"
    render.say(
        f"{found.fleet}: {found.online} of {found.devices} devices online, {found.active_rollouts} active rollouts"
    )
    render.say(f"broker {found.broker}: {broker}" + ("; FROZEN" if found.is_frozen else ""))
    if not found.is_controller:
        render.say("this service stands by: another one on the same database is the controller")
    for reason, count in found.dropped.items():
        render.say(f"dropped {count} messages: {reason}")


@fleet.command(epilog=examples("edgekit fleet block digits@1.4.0 --reason 'wrong normalization'"))
@click.argument("subject", metavar="NAME@VERSION|SHA256", shell_complete=completes("release"))
@click.option("--reason", default="", help="For the list and the audit log.")
@with_fleet
def block(*, subject: str, reason: str, place: str | None, as_json: bool) -> None:
    """Stop new orders for a release or a bundle, at once; rollouts of it are paused. What runs it goes on."""
    with connected(place) as client:
        done = client.block(subject, reason)
    if as_json:
        render.show_json(done)
    else:
        render.say(f"{subject} is blocked" if done.is_changed else f"{subject} was blocked already")


@fleet.command(epilog=examples("edgekit fleet unblock digits@1.4.0"))
@click.argument("subject", metavar="NAME@VERSION|SHA256", shell_complete=completes("blocked"))
@click.option("--reason", default="", help="For the audit log.")
@with_fleet
def unblock(*, subject: str, reason: str, place: str | None, as_json: bool) -> None:
    """Let orders name it again; rollouts that were paused wait for 'rollout resume'."""
    with connected(place) as client:
        done = client.unblock(subject, reason)
    if as_json:
        render.show_json(done)
    else:
        render.say(f"{subject} may be ordered again")


@fleet.command(epilog=examples("edgekit fleet blocked"))
@with_fleet
def blocked(*, place: str | None, as_json: bool) -> None:
    """List what no new order may name."""
    with connected(place) as client:
        found = client.blocked()
    if as_json:
        render.show_json(found)
    elif not found:
        render.say("nothing is blocked")
    for item in found if not as_json else ():
        render.say(f"{item.subject}  {item.at:%Y-%m-%d %H:%M} by {item.actor}  {item.reason}".rstrip())


@fleet.group(epilog=examples("edgekit fleet keys show"))
def keys() -> None:
    """The fleet's keys."""


@keys.command("show", epilog=examples("edgekit fleet keys show --json"))
@with_fleet
def show_keys(*, place: str | None, as_json: bool) -> None:
    """Show the public halves: key id and ed25519 key in hex."""
    with connected(place) as client:
        found = client.keys()
    if as_json:
        render.show_json(found)
        return
    render.say(f"fleet {found.fleet}")
    for keyid, public in found.order_keys.items():
        render.say(f"order {keyid}  {public}")
    for keyid, public in found.audit_keys.items():
        render.say(f"audit {keyid}  {public}")


@fleet.command(epilog=examples("edgekit fleet freeze --reason 'power works on site'"))
@click.option("--reason", default="", help="For the audit log.")
@with_fleet
def freeze(*, reason: str, place: str | None, as_json: bool) -> None:
    """Stop everything: no rollout starts, moves on or is judged until unfrozen."""
    _freeze(place, reason, is_frozen=True, as_json=as_json)


@fleet.command(epilog=examples("edgekit fleet unfreeze"))
@click.option("--reason", default="", help="For the audit log.")
@with_fleet
def unfreeze(*, reason: str, place: str | None, as_json: bool) -> None:
    """Let rollouts go on."""
    _freeze(place, reason, is_frozen=False, as_json=as_json)


def _freeze(place: str | None, reason: str, *, is_frozen: bool, as_json: bool) -> None:
    with connected(place) as client:
        found = client.freeze(is_frozen=is_frozen, reason=reason)
    if as_json:
        render.show_json(found)
    else:
        render.say(
            f"{found.fleet} is frozen; orders already out are followed"
            if is_frozen
            else f"{found.fleet} goes on"
        )
