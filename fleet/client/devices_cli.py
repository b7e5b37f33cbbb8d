"""`edgekit fleet devices`: which there are, found by a filter and in an order."""

from itertools import islice

import click

from fleet.client import device_views, render
from fleet.client.complete import listed
from fleet.client.options import connected, with_fleet
from fleet.client.rest import Client

# The service says what there is; these are for completion and help.
SORTS = ("device", "profile", "online", "last_seen", "state", "agent")

EPILOG = """\b
Filters: labels, and these fields, with and, or, not and parentheses:
  site=lab  site!=lab  site in (lab, roof)  site ~ part     any label; also device and profile
  state=failed                    idle, fetch, stage, selftest, switch, probation, commit, rollback, failed, diverged
  online=yes  enrolled=no         connected now; has joined
  last_seen < 5m  last_seen > 1d  how long ago it was heard of
  release=NAME@VERSION            what it runs; also model=NAME and version=VERSION
  wanted=NAME@VERSION             what it is ordered to run
  behind=yes                      does not run what it is ordered to
  refused=yes  reason ~ word      refused its newest order; words of its reasons
  condition=any  condition=CODE   says that something is wrong with it
  deployment=NAME  rollout=r3  duplicate=yes  agent=VERSION
  label.state=bavaria             a label that is called like a field

\b
Examples:
  edgekit fleet devices --where 'site=lab and state=failed' --sort last_seen
  edgekit fleet devices --where 'behind=yes and online=yes' --columns device,wanted,release,reason
  edgekit fleet devices --where 'last_seen > 1d' --sort -last_seen --limit 20
  edgekit fleet devices --columns device,site,digest --json
"""


@click.command(epilog=EPILOG)
@click.option(
    "--where",
    default="",
    metavar="FILTER",
    help="Only those that it finds, e.g. 'site=lab and state=failed'.",
)
@click.option(
    "--sort", default="", metavar="[-]FIELD", shell_complete=listed(SORTS),
    help=f"{', '.join(SORTS)} or a label; - turns it round.  [default: device]",
)  # fmt: skip
@click.option(
    "--columns", default="", metavar="NAME,…", shell_complete=listed(device_views.COLUMNS),
    help=f"Of {', '.join(device_views.COLUMNS)}, and labels.",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(1), default=None, help="So many at most.  [default: all]")
@with_fleet
def devices(
    *, where: str, sort: str, columns: str, limit: int | None, place: str | None, as_json: bool
) -> None:
    """List devices: what each should run, what it runs, and why not."""
    names = [name.strip() for name in columns.split(",") if name.strip()] or list(device_views.USUAL)
    with connected(place) as client:
        found = list(islice(client.find(where, sort, page=min(limit or 500, 500)), limit))
        left = _left(client, where, len(found)) if limit is not None and len(found) == limit else 0
    if as_json:
        render.show_json(found)
    elif found:
        render.show(device_views.devices(found, names))
    elif where:
        render.say("no device is found by this filter")
    else:
        render.say("no devices yet; 'edgekit fleet enroll DEVICE …' adds one")
    if left:
        render.say(f"and {left} more; --limit shows more of them", err=True)


def _left(client: Client, where: str, shown: int) -> int:
    return max(0, client.count(where) - shown)


COMMANDS = (devices,)
