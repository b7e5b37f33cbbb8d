"""`edgekit fleet batch list|revoke`: the enrolment files of batches that are about."""

import click

from fleet.client import render
from fleet.client.complete import completes
from fleet.client.options import connected, examples, with_fleet


@click.group(epilog=examples("edgekit fleet batch list", "edgekit fleet batch revoke b2"))
def batch() -> None:
    """The enrolment files that were made for many devices."""


@batch.command("list", epilog=examples("edgekit fleet batch list"))
@with_fleet
def list_batches(*, place: str | None, as_json: bool) -> None:
    """Which there are, newest first, and who has joined by them."""
    with connected(place) as client:
        found = client.batches()
    if as_json:
        render.show_json(found)
        return
    for one in found:
        labels = ", ".join(f"{key}={value}" for key, value in one.labels.items())
        more = "".join(
            f", {count} {word}"
            for count, word in ((one.waiting, "waiting"), (one.refused, "refused"))
            if count
        )
        render.say(
            f"{one.id}  {one.state}  {one.joined} of {one.places} joined{more}  "
            f"until {one.expires:%Y-%m-%d %H:%M} UTC  {labels}  by {one.created_by}"
        )
    if not found:
        render.say("no batch was made")


@batch.command(epilog=examples("edgekit fleet batch revoke b2"))
@click.argument("batch", shell_complete=completes("batch"))
@with_fleet
def revoke(*, batch: str, place: str | None, as_json: bool) -> None:
    """Withdraw the file of BATCH, e.g. because it was lost; who has joined by it stays."""
    with connected(place) as client:
        done = client.revoke_batch(batch)
    if as_json:
        render.show_json(done)
    else:
        render.say(
            f"{batch}: nobody joins by its file any more"
            if done.is_changed
            else f"{batch}: was withdrawn already"
        )


COMMANDS = (batch,)
