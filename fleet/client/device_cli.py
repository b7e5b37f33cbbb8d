"""`edgekit fleet enroll|waiting|approve|reject|device|deployment`: how boards join, change and leave."""

import os
from pathlib import Path

import click
import msgspec

from edgekit.errors import UsageError
from edgekit.wire.enrolment import EnrolmentFile
from fleet import api
from fleet.client import render
from fleet.client.options import connected, with_fleet

ENROLL_EPILOG = """\b
Examples:
  edgekit fleet enroll roof-1 --label site=lab --deployment digits --out roof-1.json
  edgekit fleet enroll --count 500 --expires 7d --label site=lab --deployment digits --out batch.json
  edgekit fleet enroll --serials serials.txt --deployment digits --out batch.json
"""


@click.command(epilog=ENROLL_EPILOG)
@click.argument("device", required=False)
@click.option(
    "--count", type=click.IntRange(1, 100_000), default=None, help="A batch: so many devices may join."
)
@click.option(
    "--serials",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=None,
    help="A batch for the names in this file only, one a line.",
)
@click.option("--approve", is_flag=True, help="Whoever joins waits for 'edgekit fleet approve'.")
@click.option("--expires", default="", metavar="DURATION", help="How long the file works.  [default: 7d]")
@click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label to select by; repeatable."
)
@click.option(
    "--deployment",
    "deployments",
    multiple=True,
    required=True,
    help="A model slot of the device; repeatable.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Where to write the enrolment file."
)
@with_fleet
def enroll(
    *,
    device: str | None,
    count: int | None,
    serials: Path | None,
    approve: bool,
    expires: str,
    labels: tuple[str, ...],
    deployments: tuple[str, ...],
    out: Path,
    place: str | None,
    as_json: bool,
) -> None:
    """Write the file by which DEVICE joins; or, with --count or --serials, one file for a batch."""
    _check_out(out)
    if (device is None) == (count is None and serials is None):
        raise UsageError("name one DEVICE, or make a file for a batch with --count N or --serials FILE")
    given = _labels(labels)
    with connected(place) as client:
        if device is not None:
            file = client.enroll(api.NewDevice(device, deployments, given, expires, approve))
        else:
            names = _serials(serials)
            wanted = api.NewBatch(count or len(names), deployments, given, expires, names, approve)
            file = client.batch(wanted)
    _write(file, out, device or "each board", as_json=as_json)
    if approve and not as_json:
        click.echo("who joins by it waits for you: edgekit fleet waiting, edgekit fleet approve DEVICE")


def _check_out(out: Path) -> None:
    """Raises: UsageError."""
    if out.exists():
        raise UsageError(f"{out}: exists already; remove it or choose another name")
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent}: there is no such folder")


def _write(file: EnrolmentFile, out: Path, where: str, *, as_json: bool) -> None:
    write_secret(out, msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n")
    if as_json:
        render.show_json(
            {"device": file.device, "file": str(out), "labels": file.labels, "deployments": file.deployments}
        )
        return
    click.echo(
        f"{out}: carry it to {where} and run there: edgekit agent run --enrolment {out.name} --state DIR"
    )


def write_secret(path: Path, data: bytes) -> None:
    """A new file, 0600 from its first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)


def _labels(pairs: tuple[str, ...]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals and value):
            raise UsageError(f"--label {pair!r}: write KEY=VALUE, e.g. site=lab")
        labels[key] = value
    return labels


def _serials(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    names = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not names:
        raise UsageError(f"--serials {path}: holds no name")
    return names


@click.command()
@with_fleet
def waiting(*, place: str | None, as_json: bool) -> None:
    """Who asked to join and waits for approval."""
    with connected(place) as client:
        found = client.waiting()
    if as_json:
        render.show_json(found)
        return
    for one in found:
        labels = ", ".join(f"{key}={value}" for key, value in one.labels.items())
        click.echo(
            f"{one.device}  {one.profile}  {labels}  since {one.since:%Y-%m-%d %H:%M} UTC  key {one.key[:16]}…"
        )
    if not found:
        click.echo("nobody waits")


@click.command()
@click.argument("devices", nargs=-1, required=True)
@with_fleet
def approve(*, devices: tuple[str, ...], place: str | None, as_json: bool) -> None:
    """Let DEVICES that wait join."""
    _decide(devices, place, is_approved=True, as_json=as_json)


@click.command()
@click.argument("devices", nargs=-1, required=True)
@with_fleet
def reject(*, devices: tuple[str, ...], place: str | None, as_json: bool) -> None:
    """Refuse DEVICES that wait."""
    _decide(devices, place, is_approved=False, as_json=as_json)


def _decide(devices: tuple[str, ...], place: str | None, *, is_approved: bool, as_json: bool) -> None:
    with connected(place) as client:
        done = [client.decide(device, is_approved=is_approved) for device in devices]
    if as_json:
        render.show_json(done)
        return
    for one in done:
        click.echo(f"{one.device} {'may join' if is_approved else 'is refused'}")


@click.group()
def device() -> None:
    """One device."""


@device.command()
@click.argument("device")
@with_fleet
def explain(*, device: str, place: str | None, as_json: bool) -> None:
    """What DEVICE should run, what it runs, and why not."""
    with connected(place) as client:
        found = client.explain(device)
    if as_json:
        render.show_json(found)
    else:
        click.echo(
            "\n".join((f"{found.device.device} ({found.device.profile or 'no profile yet'})", *found.lines))
        )


@device.command()
@click.argument("device")
@click.option("--reason", default="", help="For the audit log.")
@with_fleet
def revoke(*, device: str, reason: str, place: str | None, as_json: bool) -> None:
    """Take DEVICE's identity away at once, e.g. because it was stolen; a new enrolment file lets it join again."""
    with connected(place) as client:
        done = client.revoke(device, reason)
    if as_json:
        render.show_json(done)
    else:
        click.echo(
            f"{device}: its certificates are revoked" if done.is_changed else f"{device}: had no certificate"
        )


@device.command()
@click.argument("device")
@click.option("--reason", default="", help="For the audit log.")
@with_fleet
def decommission(*, device: str, reason: str, place: str | None, as_json: bool) -> None:
    """Take DEVICE out of service: its identity is revoked, nothing is ordered of it any more."""
    with connected(place) as client:
        done = client.decommission(device, reason)
    if as_json:
        render.show_json(done)
    else:
        click.echo(f"{device}: out of service; 'edgekit fleet enroll {device} …' would bring the name back")


@device.command()
@click.argument("device")
@click.option("--reason", default="", help="For the audit log.")
@with_fleet
def delete(*, device: str, reason: str, place: str | None, as_json: bool) -> None:
    """Forget DEVICE: out of service, its history gone, its name free. The audit log keeps what it says."""
    with connected(place) as client:
        done = client.delete(device, reason)
    if as_json:
        render.show_json(done)
    else:
        click.echo(f"{device}: deleted; the name is free")


@device.command(epilog="\b\nExamples:\n  edgekit fleet device label roof-1 site=attic floor-")
@click.argument("device")
@click.argument("changes", nargs=-1, required=True, metavar="KEY=VALUE|KEY-…")
@with_fleet
def label(*, device: str, changes: tuple[str, ...], place: str | None, as_json: bool) -> None:
    """Set labels of DEVICE, or take them away with KEY-. It leaves its old group and follows what the new one runs."""
    gone = tuple(word[:-1] for word in changes if word.endswith("-") and "=" not in word)
    wanted = api.NewLabels(_labels(tuple(word for word in changes if word[:-1] not in gone)), gone)
    with connected(place) as client:
        done = client.label(device, wanted)
    if as_json:
        render.show_json(done)
    else:
        click.echo(f"{device}: labelled" if done.is_changed else f"{device}: has these labels already")


@device.command()
@click.argument("device")
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
    _check_out(out)
    with connected(place) as client:
        file = client.replace(device, api.Replacement(expires, approve))
    _write(file, out, device, as_json=as_json)


@device.command()
@click.argument("device")
@with_fleet
def retry(*, device: str, place: str | None, as_json: bool) -> None:
    """Tell DEVICE to try once more what it has given up: after a full disk, a broken link, a fixed sensor."""
    with connected(place) as client:
        done = client.retry_device(device)
    if as_json:
        render.show_json(done)
    else:
        click.echo(f"{device}: tries again; follow it with: edgekit fleet device explain {device}")


@click.group()
def deployment() -> None:
    """The model slots of a device."""


@deployment.command()
@click.argument("device")
@click.argument("name")
@with_fleet
def add(*, device: str, name: str, place: str | None, as_json: bool) -> None:
    """Give DEVICE one more model slot, NAME; nobody has to go there."""
    with connected(place) as client:
        done = client.add_deployment(device, name)
    if as_json:
        render.show_json(done)
    else:
        click.echo(f"{device}: has deployment {name}" + (" now" if done.is_changed else " already"))


COMMANDS = (enroll, waiting, approve, reject, device, deployment)
