"""`edgekit fleet samples …`: inputs for retraining, from devices whose orders allow it."""

from collections.abc import Iterator
from pathlib import Path

import click

from fleet import api
from fleet.client import bulk, render
from fleet.client.complete import completes
from fleet.client.options import connected, examples, with_fleet
from fleet.client.rest import Client
from fleet.client.sheet import sheet

_id = click.argument("collection", metavar="ID", shell_complete=completes("samples"))

COLLECT = """\b
Reasons; any one is enough:
  --low-confidence 0.6   the model's best class has less than this probability
  --random 1%            this share of all inputs
  --label NAME           the model answered NAME
  --drifted              while the device finds that its inputs drift
  --guard                the bundle's guard finds the input unfamiliar

\b
Examples:
  edgekit fleet samples collect digits --on 'site=lab' --low-confidence 0.6 --random 1% --most 200 --for 1h
  edgekit fleet samples collect faces --on all --guard --per-device 20 --per-day 20MB --for 7d
"""


@click.group(
    epilog=examples(
        "edgekit fleet samples collect digits --on 'site=lab' --low-confidence 0.6 --most 200 --for 1h",
        "edgekit fleet samples list",
        "edgekit fleet samples download s1 --out samples",
        "edgekit fleet samples stop s1",
    )
)
def samples() -> None:
    """Inputs for retraining. A device keeps and sends one only while a signed order says so."""


@samples.command(epilog=COLLECT)
@click.argument("deployment", metavar="NAME")
@click.option("--on", "to", required=True, metavar="SELECTOR", help="Which devices: 'site=lab', all.")
@click.option("--for", "lasts", required=True, metavar="DURATION", help="How long, e.g. 1h; at most 90d.")
@click.option("--low-confidence", type=float, default=None, metavar="P", help="Best class below P (0 to 1).")
@click.option("--random", "share", default="", metavar="PERCENT", help="A share of all inputs, e.g. 1%.")
@click.option("--label", "labels", multiple=True, help="Answered so; may be given several times.")
@click.option("--drifted", is_flag=True, help="While the inputs of the device drift.")
@click.option("--guard", is_flag=True, help="What the bundle's guard finds unfamiliar.")
@click.option("--most", type=int, default=200, show_default=True, help="Samples of all devices together.")
@click.option("--per-device", type=int, default=0, help="Samples of each device at most.  [default: --most]")
@click.option("--per-day", default="100MB", show_default=True, help="Of each device in a day (UTC).")
@with_fleet
def collect(
    *,
    deployment: str,
    to: str,
    lasts: str,
    low_confidence: float | None,
    share: str,
    labels: tuple[str, ...],
    drifted: bool,
    guard: bool,
    most: int,
    per_device: int,
    per_day: str,
    place: str | None,
    as_json: bool,
) -> None:
    """Let devices that have the deployment NAME keep inputs and bring them here.

    The devices are those that match now. What they may keep is signed in their orders, with its end.
    """
    wanted = api.NewCollection(
        deployment=deployment,
        to=to,
        lasts=lasts,
        most=most,
        per_device=per_device,
        per_day=per_day,
        low_confidence=low_confidence,
        random=share,
        labels=labels,
        drifted=drifted,
        guard=guard,
    )
    with connected(place) as client:
        found = client.collect(wanted)
    if as_json:
        render.show_json(found)
        return
    render.say(
        f"{found.id}: {found.devices} devices keep inputs of {found.deployment} ({found.words}), at most {found.most},"
        f" until {found.until:%Y-%m-%d %H:%M} UTC"
    )
    render.say(f"then: edgekit fleet samples download {found.id} --out DIR")


@samples.command(
    "list", epilog=examples("edgekit fleet samples list", "edgekit fleet samples list s1 --json")
)
@click.argument("collection", metavar="[ID]", required=False, shell_complete=completes("samples"))
@with_fleet
def listing(*, collection: str | None, place: str | None, as_json: bool) -> None:
    """What was asked for and what came; with ID its samples."""
    with connected(place) as client:
        if collection is None:
            _collections(client.collections(), as_json=as_json)
        else:
            _items(list(client.samples(collection)), as_json=as_json)


def _collections(found: list[api.CollectionView], *, as_json: bool) -> None:
    if as_json:
        render.show_json(found)
        return
    if not found:
        render.say("nothing was asked for; 'edgekit fleet samples collect' does")
        return
    table = sheet("id", "deployment", "on", "state", "samples", "bytes", "devices", "until (UTC)", "why")
    for one in found:
        count = f"{one.samples}/{one.most}"
        until = f"{one.until:%Y-%m-%d %H:%M}"
        sizes = (count, str(one.bytes), str(one.devices), until)
        table.add(one.id, one.deployment, one.to, one.state, *sizes, one.words)
    render.show(table)


def _items(found: list[api.SampleView], *, as_json: bool) -> None:
    if as_json:
        render.show_json(found)
        return
    if not found:
        render.say("nothing came yet")
        return
    table = sheet("sample", "device", "reason", "confidence", "label", "bundle", "taken (UTC)", "bytes")
    for one in found:
        sure = "-" if one.confidence is None else f"{one.confidence:.3f}"
        when = f"{one.taken:%Y-%m-%d %H:%M:%S}"
        table.add(
            one.sha256[:12], one.device, one.reason, sure, one.label, one.digest[:12], when, str(one.length)
        )
    render.show(table)


@samples.command(epilog=examples("edgekit fleet samples download s1 --out samples"))
@_id
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder.")
@with_fleet
def download(*, collection: str, out: Path, place: str | None, as_json: bool) -> None:
    """Write the samples of ID as `.npz` files that a build takes as [data], and an index of them."""
    # Loads numpy, which no other command of the fleet needs.
    from fleet.client import sample_files

    with connected(place) as client:
        found = list(client.samples(collection))
        if not found:
            render.say(f"nothing came for {collection} yet")
            return
        written = sample_files.write(out, _fetched(client, collection, found))
    if as_json:
        render.show_json(written)
        return
    for name, count in written.files.items():
        render.say(f"{out / name}: {count} samples")
    render.say(f"{out / sample_files.INDEX}: where each came from, why, and what the model answered")
    for sha256, why in written.unreadable:
        render.say(f"left out {sha256[:12]}: {why}", err=True)


def _fetched(
    client: Client, collection: str, found: list[api.SampleView]
) -> Iterator[tuple[api.SampleView, bytes]]:
    for view in found:
        yield view, client.sample(collection, view.sha256)


@samples.command(epilog=examples("edgekit fleet samples stop s1"))
@_id
@with_fleet
def stop(*, collection: str, place: str | None, as_json: bool) -> None:
    """No more from now on; devices delete what still waits there. What came stays until it is deleted."""
    with connected(place) as client:
        done = client.stop_collection(collection)
    if as_json:
        render.show_json(done)
    else:
        render.say(f"{done.name}: stopped" if done.is_changed else f"{done.name}: had ended already")


@samples.command(epilog=examples("edgekit fleet samples delete s1 --yes"))
@_id
@bulk.with_yes
@with_fleet
def delete(*, collection: str, is_sure: bool, place: str | None, as_json: bool) -> None:
    """Delete the samples of ID, which must have ended, from the fleet for good."""
    if not is_sure and not as_json:
        click.confirm(f"delete the samples of {collection} for good?", abort=True)
    with connected(place) as client:
        done = client.delete_collection(collection)
    if as_json:
        render.show_json(done)
    else:
        render.say(f"{done.id}: deleted, {done.samples} samples")


COMMANDS = (samples,)
