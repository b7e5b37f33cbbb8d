"""`edgekit keys`: the publisher's offline keys. Parse, call one method of the folder, render."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec
from securesystemslib.signer import Key

from edgekit.errors import FleetError, UsageError
from edgekit.trust.orderkeys import OrderKeys
from fleet import api
from fleet.client import config, keys, render
from fleet.client.options import connected, examples, with_fleet
from fleet.client.rest import Client
from fleet.tuf.home import Home, RoleStatus
from fleet.tuf.ring import PASSPHRASE, Ring, passphrase

EPILOG = """\b
Examples:
  edgekit keys init publisher --fleet client.toml --passphrase-file pass
  edgekit keys status publisher
  edgekit keys sign publisher root targets --fleet client.toml
  edgekit keys rotate publisher model.digits --fleet client.toml
  edgekit keys withdraw publisher --fleet client.toml
"""

FILE = click.Path(path_type=Path, dir_okay=False)


@click.group(epilog=EPILOG)
def main() -> None:
    """Keep the publisher's keys: root, targets and a role per model, offline."""


def with_home(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the folder and how its passphrase is had."""
    command = click.option("--no-passphrase", is_flag=True, help="Keys in the clear: for a lab only.")(
        command
    )
    command = click.option(
        "--passphrase-file", type=FILE, default=None, help=f"Its first line [env: {PASSPHRASE}]."
    )(command)
    return click.argument("folder", type=click.Path(path_type=Path, file_okay=False))(command)


def _home(folder: Path, passphrase_file: Path | None, *, no_passphrase: bool) -> Home:
    return Home(Ring(folder, passphrase(passphrase_file, none=no_passphrase)))


@contextmanager
def _fleet(place: str | None) -> Iterator[Client | None]:
    """The fleet, if the command or the environment names one."""
    try:
        config.find(place)
    except UsageError:
        if place is not None:
            raise
        yield None
        return
    with connected(place) as client:
        yield client


def _public_keys(paths: tuple[Path, ...]) -> list[Key]:
    found = []
    for path in paths:
        try:
            found.append(keys.read_public_key(path.read_bytes(), str(path)))
        except OSError as error:
            raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    return found


def _told(client: Client | None, home: Home, waiting: list[str], *, as_json: bool, **more: Any) -> None:
    """Bring what is complete to the fleet, and say what is left to do; as JSON with `more` beside it."""
    for role in waiting:
        (path,) = home.pending.glob(f"*.{role}.json")
        render.say(
            f"{role} waits for signatures; each other holder runs: edgekit keys sign DIR --document {path}",
            err=as_json,
        )
    home.complete()
    done: tuple[str, ...] = ()
    if home.exists and client is None:
        render.say(f"next: edgekit keys upload {home.folder} --fleet DIR|client.toml", err=as_json)
    elif home.exists and client is not None and (done := keys.upload(client, home)):
        render.say(f"the fleet has {', '.join(done)}", err=as_json)
    if as_json:
        render.show_json({"folder": str(home.folder), "waiting": waiting, "uploaded": done, **more})


@main.command(epilog=examples("edgekit keys init publisher --fleet client.toml --passphrase-file pass"))
@with_home
@click.option("--online-key", type=FILE, default=None, help="The fleet's, from 'edgekit keys online-key'.")
@click.option(
    "--root-key", "others", type=FILE, multiple=True, help="Public key of another person; repeatable."
)
@click.option("--threshold", default=1, show_default=True, help="How many root keys must sign.")
@click.option(
    "--token", "tokens", multiple=True, help="Root key in a PKCS#11 token: hsm:LABEL[;id=N]; repeatable."
)
@with_fleet
def init(
    *, folder: Path, passphrase_file: Path | None, no_passphrase: bool, online_key: Path | None,
    others: tuple[Path, ...], threshold: int, tokens: tuple[str, ...], place: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Make root and targets in FOLDER, once."""
    home = _home(folder, passphrase_file, no_passphrase=no_passphrase)
    with _fleet(place) as client:
        if online_key is not None:
            (online,) = _public_keys((online_key,))
        elif client is not None:
            online = keys.public_key(client.metadata().online_key)
        else:
            raise UsageError(
                "which fleet is this for? give --fleet, or --online-key FILE where it cannot be reached"
            )
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        now = datetime.now(UTC)
        home.init(online, now, others=_public_keys(others), threshold=threshold, tokens=tokens)
        waiting = [] if home.exists else ["root"]
        render.say(
            f"back up {folder}/ring.json and {folder}/keys now: without them nothing can be published",
            err=True,
        )
        _told(client, home, waiting, as_json=as_json)


@main.command(epilog=examples("edgekit keys status publisher"))
@with_home
@with_fleet
def status(
    *, folder: Path, passphrase_file: Path | None, no_passphrase: bool, place: str | None, as_json: bool
) -> None:
    """Versions, keys, expiry, and what is listed though it is blocked; ends with 3 if something must be signed within 30
    days, or withdrawn.
    """
    home = _home(folder, passphrase_file, no_passphrase=no_passphrase)
    rows = home.status(datetime.now(UTC), _blocked(place))
    if as_json:
        render.show_json([msgspec.to_builtins(row) for row in rows])
    else:
        for line in _lines(rows):
            render.say(line)
    if any(row.remark for row in rows):
        raise click.exceptions.Exit(3)


def _blocked(place: str | None) -> list[str]:
    """What the fleet's block list names; nothing where no fleet is named or the one of the environment is away."""
    try:
        with _fleet(place) as client:
            return [row.subject for row in client.blocked()] if client is not None else []
    except FleetError as error:
        if place is not None:
            raise
        render.say(f"what is blocked is not known: {error}", err=True)
        return []


def _lines(rows: list[RoleStatus]) -> list[str]:
    width = max(len(row.role) for row in rows)
    return [
        f"{row.role:<{width}}  v{row.version:<4} expires {row.expires:%Y-%m-%d}  "
        f"{row.threshold} of {row.keys} keys, {row.here} here  {row.remark}".rstrip()
        for row in rows
    ]


@main.command(
    epilog=examples(
        "edgekit keys sign publisher root targets --fleet client.toml",
        "edgekit keys sign publisher --document 3.root.json",
    )
)
@with_home
@click.argument("roles", nargs=-1)
@click.option("--document", type=FILE, default=None, help="Add signatures to a pending document instead.")
@with_fleet
def sign(
    *, folder: Path, passphrase_file: Path | None, no_passphrase: bool, roles: tuple[str, ...],
    document: Path | None, place: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Sign ROLES anew, with a whole life before them; all where none is named."""
    home, now = _home(folder, passphrase_file, no_passphrase=no_passphrase), datetime.now(UTC)
    with _fleet(place) as client:
        if document is not None:
            home.cosign(document, now)
            render.say(f"{document}: signed", err=as_json)
            done = home.complete()
            if done:
                render.say(f"complete: {', '.join(done)}", err=as_json)
            _told(client if home.exists else None, home, [], as_json=as_json, signed=str(document))
            return
        if client is not None:
            keys.refresh(client, home)
        waiting = home.sign(roles or [row.role for row in home.status(now)], now)
        _told(client, home, waiting, as_json=as_json)


@main.command(
    epilog=examples(
        "edgekit keys rotate publisher model.digits --fleet client.toml",
        "edgekit keys rotate publisher orders --fleet client.toml",
    )
)
@with_home
@click.argument("role")
@click.option("--add", type=FILE, multiple=True, help="Public key of another person; repeatable.")
@click.option("--remove", multiple=True, metavar="KEYID", help="A key that is no longer trusted; repeatable.")
@click.option("--threshold", type=int, default=None, help="How many must sign.")
@click.option("--token", default="", help="The new key is in a PKCS#11 token: hsm:LABEL[;id=N].")
@with_fleet
def rotate(
    *, folder: Path, passphrase_file: Path | None, no_passphrase: bool, role: str, add: tuple[Path, ...],
    remove: tuple[str, ...], threshold: int | None, token: str, place: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Replace the keys of ROLE: root, targets, model.NAME, fleet; online and orders are the fleet's own, by successors
    that it makes.
    """
    home, now = _home(folder, passphrase_file, no_passphrase=no_passphrase), datetime.now(UTC)
    with _fleet(place) as client:
        if role == "orders":
            _rotate_orders(home, client, now, as_json=as_json)
            return
        added = _public_keys(add)
        if client is not None:
            keys.refresh(client, home)
            if role == "online" and not added:
                added = [keys.public_key(client.next_online_key())]
        waiting = home.rotate(role, now, add=added, remove=remove, threshold=threshold, token=token)
        _told(client, home, waiting, as_json=as_json)


def _rotate_orders(home: Home, client: Client | None, now: datetime, *, as_json: bool) -> None:
    """List the successor of the key that the fleet signs orders with; devices follow it from then on, and only it."""
    if client is None:
        raise UsageError("which fleet's order key? give --fleet")
    keys.refresh(client, home)
    new = client.next_order_key()
    waiting = home.set_order_keys(OrderKeys({new.keyid: new.public}), now)
    _told(client, home, waiting, as_json=as_json, keyid=new.keyid)
    render.say(f"orders are signed by {new.keyid} from now on; devices follow no other key", err=as_json)


@main.command(epilog=examples("edgekit keys delegate publisher digits --fleet client.toml"))
@with_home
@click.argument("model")
@with_fleet
def delegate(
    *,
    folder: Path,
    passphrase_file: Path | None,
    no_passphrase: bool,
    model: str,
    place: str | None,
    as_json: bool,
) -> None:
    """Give MODEL a role of its own; publishing does so by itself where the key of the targets is at hand."""
    home = _home(folder, passphrase_file, no_passphrase=no_passphrase)
    with _fleet(place) as client:
        if client is not None:
            keys.refresh(client, home)
        home.delegate(model, datetime.now(UTC))
        _told(client, home, [], as_json=as_json)


@main.command(epilog=examples("edgekit keys withdraw publisher --fleet client.toml"))
@with_home
@click.argument("subjects", nargs=-1, metavar="[NAME@VERSION|SHA256]...")
@click.option("--yes", is_flag=True, help="All that the fleet has blocked, without being asked.")
@with_fleet
def withdraw(
    *, folder: Path, passphrase_file: Path | None, no_passphrase: bool, subjects: tuple[str, ...], yes: bool,
    place: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Take blocked releases out of the targets: no device takes them from then on, whoever orders it.

    Without names: what the fleet's block list names, once you have seen it.
    """
    home, now = _home(folder, passphrase_file, no_passphrase=no_passphrase), datetime.now(UTC)
    with _fleet(place) as client:
        if client is not None:
            keys.refresh(client, home)
        wanted = subjects
        if not wanted:
            if client is None:
                raise UsageError("which fleet's block list? give --fleet, or say what to withdraw")
            wanted = tuple(row.subject for row in client.blocked())
        found = sorted(path for paths in home.still_listed(wanted).values() for path in paths)
        for path in found:
            render.say(path, err=as_json)
        if found and not subjects and not yes:
            # The block list is the fleet's word; what devices may run is the publisher's.
            click.confirm(f"Take these {len(found)} out of the targets?", abort=True, err=True)
        waiting = home.withdraw(wanted, now)
        if not found:
            render.say("nothing of that is listed", err=as_json)
        _told(client, home, waiting, as_json=as_json, withdrawn=found)


@main.command(epilog=examples("edgekit keys new mine second-root --out second-root.json"))
@with_home
@click.argument("label")
@click.option("--token", default="", help="The key is in a PKCS#11 token: hsm:LABEL[;id=N].")
@click.option("--out", type=FILE, required=True, help="Where to write the public half.")
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON on stdout.")
def new(
    *, folder: Path, passphrase_file: Path | None, no_passphrase: bool, label: str, token: str, out: Path,
    as_json: bool,
) -> None:  # fmt: skip
    """Make a key in FOLDER, and write its public half for another person's 'init' or 'rotate --add'."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = _home(folder, passphrase_file, no_passphrase=no_passphrase).ring.make(label, token)
    out.write_bytes(msgspec.json.encode(api.PublicKey(key.keyid, key.to_dict())) + b"\n")
    if as_json:
        render.show_json({"file": str(out), "keyid": key.keyid})
    else:
        render.say(f"{out}: public key {key.keyid}")


@main.command(epilog=examples("edgekit keys upload publisher --fleet client.toml"))
@with_home
@with_fleet
def upload(
    *, folder: Path, passphrase_file: Path | None, no_passphrase: bool, place: str | None, as_json: bool
) -> None:
    """Bring the fleet what was signed here."""
    home = _home(folder, passphrase_file, no_passphrase=no_passphrase)
    home.complete()
    with connected(place) as client:
        done = keys.upload(client, home)
    if as_json:
        render.show_json(list(done))
    else:
        render.say(f"the fleet has {', '.join(done)}" if done else "the fleet has everything already")


@main.command("online-key", epilog=examples("edgekit keys online-key --fleet client.toml > online-key.json"))
@click.option(
    "--next", "is_next", is_flag=True, help="Its successor, for 'rotate online' on a machine without a link."
)
@with_fleet
def online_key(*, is_next: bool, place: str | None, as_json: bool) -> None:
    """Print the public key by which the fleet signs snapshot and timestamp: as JSON, with --json in lines."""
    with connected(place) as client:
        told = client.next_online_key() if is_next else client.metadata().online_key
    if as_json:
        render.show_json(told)
    else:
        render.show_json_line(told)
