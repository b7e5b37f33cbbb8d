"""`edgekit fleet assign|assignments|unassign`: what devices run without a rollout."""

import click

from fleet import api
from fleet.client import render, views
from fleet.client.complete import completes
from fleet.client.options import connected, examples, with_fleet

EPILOG = """\b
Examples:
  edgekit fleet assign digits@1.0.0 --to 'site=lab' --dry-run
  edgekit fleet assign digits@1.0.0 --to 'device in (roof-1, roof-2)'
"""


@click.command(epilog=EPILOG)
@click.argument("release", metavar="NAME@VERSION", shell_complete=completes("release"))
@click.option("--to", "selector", required=True, help="Which devices: 'site=lab', 'device in (a, b)', all.")
@click.option("--deployment", default="", help="The model slot; the release's name unless set.")
@click.option("--probation", default="", help="How long a device tries the release on live traffic, e.g. 5s.")
@click.option("--dry-run", is_flag=True, help="Show who would move and stop.")
@with_fleet
def assign(
    *,
    release: str,
    selector: str,
    deployment: str,
    probation: str,
    dry_run: bool,
    place: str | None,
    as_json: bool,
) -> None:
    """Have devices run a release from now on, all at once: no stage, no gate, nobody goes back by itself.

    Devices that match later get it too. For more than a handful, 'edgekit fleet rollout start' is the way.
    """
    with connected(place) as client:
        found = client.assign(api.NewAssignment(release, selector, deployment, probation, dry_run))
    if as_json:
        render.show_json(found)
        return
    render.show(views.assigned(found))
    render.say("dry run: nothing was assigned" if dry_run else f"assigned as {found.id}")


@click.command(epilog=examples("edgekit fleet assignments"))
@with_fleet
def assignments(*, place: str | None, as_json: bool) -> None:
    """What is assigned, newest first: the first that matches a device holds for it."""
    with connected(place) as client:
        found = client.assignments()
    if as_json:
        render.show_json(found)
    elif found:
        render.show(views.assignments(found))
    else:
        render.say("nothing is assigned yet; a completed rollout does it, or 'edgekit fleet assign'")


@click.command(epilog=examples("edgekit fleet unassign a4 --reason 'the wrong site'"))
@click.argument("assignment", metavar="ID", shell_complete=completes("assignment"))
@click.option("--reason", default="", help="For the audit log.")
@with_fleet
def unassign(*, assignment: str, reason: str, place: str | None, as_json: bool) -> None:
    """Take an assignment away. Devices go on with what they run; who comes later gets what was assigned before."""
    with connected(place) as client:
        done = client.unassign(assignment, reason)
    if as_json:
        render.show_json(done)
    else:
        render.say(f"{assignment}: assigned no more")


COMMANDS = (assign, assignments, unassign)
