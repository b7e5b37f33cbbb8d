"""`edgekit fleet enroll|waiting|approve|reject`: how boards join."""

from pathlib import Path

import click
import msgspec

from edgekit.errors import UsageError
from edgekit.wire.enrolment import EnrolmentFile
from fleet import api
from fleet.client import files, render
from fleet.client.complete import completes
from fleet.client.options import connected, examples, with_fleet

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
    files.check_new(out)
    if (device is None) == (count is None and serials is None):
        raise UsageError("name one DEVICE, or make a file for a batch with --count N or --serials FILE")
    given = labels_of(labels)
    with connected(place) as client:
        if device is not None:
            file = client.enroll(api.NewDevice(device, deployments, given, expires, approve))
        else:
            names = _serials(serials)
            wanted = api.NewBatch(count or len(names), deployments, given, expires, names, approve)
            file = client.batch(wanted)
    write_file(file, out, device or "each board", as_json=as_json)
    if approve and not as_json:
        render.say("who joins by it waits for you: edgekit fleet waiting, edgekit fleet approve DEVICE")


def write_file(file: EnrolmentFile, out: Path, where: str, *, as_json: bool) -> None:
    files.write_secret(out, msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n")
    if as_json:
        render.show_json(
            {"device": file.device, "file": str(out), "labels": file.labels, "deployments": file.deployments}
        )
        return
    render.say(
        f"{out}: carry it to {where} and run there: edgekit agent run --enrolment {out.name} --state DIR"
    )


def labels_of(pairs: tuple[str, ...]) -> dict[str, str]:
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


@click.command(epilog=examples("edgekit fleet waiting"))
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
        render.say(
            f"{one.device}  {one.profile}  {labels}  since {one.since:%Y-%m-%d %H:%M} UTC  key {one.key}"
        )
    if not found:
        render.say("nobody waits")


@click.command(epilog=examples("edgekit fleet approve roof-1 roof-2"))
@click.argument("devices", nargs=-1, required=True, shell_complete=completes("waiting"))
@with_fleet
def approve(*, devices: tuple[str, ...], place: str | None, as_json: bool) -> None:
    """Let DEVICES that wait join."""
    _decide(devices, place, is_approved=True, as_json=as_json)


@click.command(epilog=examples("edgekit fleet reject roof-9"))
@click.argument("devices", nargs=-1, required=True, shell_complete=completes("waiting"))
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
        render.say(f"{one.device} {'may join' if is_approved else 'is refused'}")


COMMANDS = (enroll, waiting, approve, reject)
