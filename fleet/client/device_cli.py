"""`edgekit fleet device|deployment`: one device, or those that a filter finds."""

from functools import partial
from pathlib import Path

import click

from edgekit.errors import UsageError
from fleet import api
from fleet.client import bulk, command_cli, device_views, files, render
from fleet.client.bulk import many, with_where, with_yes
from fleet.client.complete import completes
from fleet.client.enrol_cli import labels_of, write_file
from fleet.client.options import connected, examples, with_fleet

_one = click.argument("device", shell_complete=completes("device"))
_reason = click.option("--reason", default="", help="For the audit log.")


@click.group(
    epilog=examples(
        "edgekit fleet device show roof-1",
        "edgekit fleet device explain roof-1",
        "edgekit fleet device label --where 'site=lab and floor=2' floor=3 --yes",
        "edgekit fleet device retry --where 'state=failed and reason ~ disk' --yes",
    )
)
def device() -> None:
    """One device, or those that a filter finds."""


@device.command(
    epilog=examples("edgekit fleet device show roof-1", "edgekit fleet device show roof-1 --json")
)
@_one
@with_fleet
def show(*, device: str, place: str | None, as_json: bool) -> None:
    """Everything about DEVICE: what it should run and runs, with digests, and what it says is wrong."""
    with connected(place) as client:
        found = client.explain(device).device
    if as_json:
        render.show_json(found)
    else:
        render.show(device_views.device(found))


@device.command(epilog=examples("edgekit fleet device explain roof-1"))
@_one
@with_fleet
def explain(*, device: str, place: str | None, as_json: bool) -> None:
    """What DEVICE should run, what it runs, and why not, in sentences."""
    with connected(place) as client:
        found = client.explain(device)
    if as_json:
        render.show_json(found)
        return
    render.say(f"{found.device.device} ({found.device.profile or 'no profile yet'})")
    for line in found.lines:
        render.say(line)


@device.command(
    epilog=examples(
        "edgekit fleet device revoke roof-1 --reason stolen",
        "edgekit fleet device revoke --where 'site=van-7' --reason stolen --yes",
    )
)
@many
@_reason
@with_yes
@with_fleet
def revoke(
    *,
    devices: tuple[str, ...],
    where: str | None,
    reason: str,
    is_sure: bool,
    place: str | None,
    as_json: bool,
) -> None:
    """Take identities away at once, e.g. because a board was stolen; a new enrolment file lets it join again."""

    def told(name: str, done: api.Done) -> str:
        return f"{name}: its certificates are revoked" if done.is_changed else f"{name}: had no certificate"

    with connected(place) as client:
        chosen = bulk.choose(client, devices, where)
        bulk.confirm(chosen, "revoke the identity of {}", is_sure=is_sure)
        bulk.run(chosen, lambda name: client.revoke(name, reason), told, as_json=as_json)


@device.command(
    epilog=examples(
        "edgekit fleet device decommission roof-1 --reason 'roof is gone'",
        "edgekit fleet device decommission --where 'site=roof and last_seen > 30d'",
    )
)
@many
@_reason
@with_yes
@with_fleet
def decommission(
    *,
    devices: tuple[str, ...],
    where: str | None,
    reason: str,
    is_sure: bool,
    place: str | None,
    as_json: bool,
) -> None:
    """Take devices out of service: their identities are revoked, nothing is ordered of them any more.

    On a terminal it asks first; a script that means more than one device must say --yes.
    """

    def told(name: str, _done: api.Done) -> str:
        return f"{name}: out of service; 'edgekit fleet enroll {name} …' would bring the name back"

    with connected(place) as client:
        chosen = bulk.choose(client, devices, where)
        bulk.confirm(chosen, "take {} out of service, and revoke what identity is left", is_sure=is_sure)
        bulk.run(chosen, lambda name: client.decommission(name, reason), told, as_json=as_json)


@device.command(
    epilog=examples(
        "edgekit fleet device delete test-1",
        "edgekit fleet device delete --where 'site=test-bench and online=no' --yes",
    )
)
@many
@_reason
@with_yes
@with_fleet
def delete(
    *,
    devices: tuple[str, ...],
    where: str | None,
    reason: str,
    is_sure: bool,
    place: str | None,
    as_json: bool,
) -> None:
    """Forget devices: out of service, their history gone, their names free. The audit log keeps what it says.

    On a terminal it asks for the name, or how many; a script that means more than one device must say --yes.
    """

    def told(name: str, _done: api.Done) -> str:
        return f"{name}: deleted; the name is free"

    with connected(place) as client:
        chosen = bulk.choose(client, devices, where)
        bulk.confirm(chosen, "delete {} with all history", is_sure=is_sure, is_final=True)
        bulk.run(chosen, lambda name: client.delete(name, reason), told, as_json=as_json)


@device.command(
    epilog=examples(
        "edgekit fleet device label roof-1 site=attic floor-",
        "edgekit fleet device label --where 'site=roof' floor=2 --yes",
    )
)
@click.argument("words", nargs=-1, metavar="[DEVICE] KEY=VALUE|KEY-…", shell_complete=completes("device"))
@with_where
@with_yes
@with_fleet
def label(
    *, words: tuple[str, ...], where: str | None, is_sure: bool, place: str | None, as_json: bool
) -> None:
    """Set labels of DEVICE, or of all that --where finds, or take them away with KEY-.

    They leave their old group and follow what the new one runs.
    """
    names, changes = ((), words) if where is not None else (words[:1], words[1:])
    if not changes:
        raise UsageError("which labels? write DEVICE KEY=VALUE, or KEY- to take one away")
    gone = tuple(word[:-1] for word in changes if word.endswith("-") and "=" not in word)
    wanted = api.NewLabels(labels_of(tuple(word for word in changes if word[:-1] not in gone)), gone)

    def told(name: str, done: api.Done) -> str:
        return f"{name}: labelled" if done.is_changed else f"{name}: has these labels already"

    with connected(place) as client:
        chosen = bulk.choose(client, names, where)
        if not chosen.is_one:
            bulk.confirm(chosen, f"change labels ({' '.join(changes)}) of {{}}", is_sure=is_sure)
        bulk.run(chosen, lambda name: client.label(name, wanted), told, as_json=as_json)


@device.command(epilog=examples("edgekit fleet device replace roof-1 --out roof-1.json"))
@_one
@click.option("--expires", default="", metavar="DURATION", help="How long the file works.  [default: 7d]")
@click.option("--approve", is_flag=True, help="The new board waits for 'edgekit fleet approve'.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Where to write the enrolment file."
)
@with_fleet
def replace(*, device: str, expires: str, approve: bool, out: Path, place: str | None, as_json: bool) -> None:
    """Write a new enrolment file for DEVICE as it is: for a card written anew, or another board in its place.

    It keeps labels, deployments and what it is to run. The old board is refused once the new one has joined.
    """
    files.check_new(out)
    with connected(place) as client:
        file = client.replace(device, api.Replacement(expires, approve))
    write_file(file, out, device, as_json=as_json)


@device.command(
    epilog=examples(
        "edgekit fleet device retry roof-1",
        "edgekit fleet device retry --where 'state=failed and site=lab' --yes",
        "edgekit fleet device retry roof-1 --despite-budget",
    )
)
@many
@click.option(
    "--despite-budget", is_flag=True, help="Fetch even where the device's budget for its link is spent."
)
@with_yes
@with_fleet
def retry(
    *,
    devices: tuple[str, ...],
    where: str | None,
    despite_budget: bool,
    is_sure: bool,
    place: str | None,
    as_json: bool,
) -> None:
    """Tell devices to try once more what they have given up: after a full disk, a broken link, a fixed sensor."""

    def told(name: str, _done: api.Retried) -> str:
        return f"{name}: tries again; follow it with: edgekit fleet device explain {name}"

    with connected(place) as client:
        chosen = bulk.choose(client, devices, where)
        if not chosen.is_one:
            bulk.confirm(chosen, "tell {} to try again", is_sure=is_sure)
        again = partial(client.retry_device, despite_budget=despite_budget)
        bulk.run(chosen, again, told, as_json=as_json)


for one in command_cli.COMMANDS:
    device.add_command(one)


@click.group(epilog=examples("edgekit fleet deployment add roof-1 faces"))
def deployment() -> None:
    """The model slots of a device."""


@deployment.command(epilog=examples("edgekit fleet deployment add roof-1 faces"))
@_one
@click.argument("name")
@with_fleet
def add(*, device: str, name: str, place: str | None, as_json: bool) -> None:
    """Give DEVICE one more model slot, NAME; nobody has to go there."""
    with connected(place) as client:
        done = client.add_deployment(device, name)
    if as_json:
        render.show_json(done)
    else:
        render.say(f"{device}: has deployment {name}" + (" now" if done.is_changed else " already"))


COMMANDS = (device, deployment)
