"""`edgekit fleet backup|restore|move`: parse, call, render."""

import time
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from edgekit.errors import UsageError
from fleet.server import home
from fleet.server.keep import backup as backups
from fleet.server.keep import move as moving
from fleet.server.keep import restore as restoring
from fleet.server.options import FILE

_STATE = click.option(
    "--state", type=click.Path(path_type=Path), required=True, help="The fleet's home ('edgekit fleet init')."
)
_DATABASE = click.option(
    "--database",
    default=None,
    envvar="EDGEKIT_FLEET_DATABASE",
    metavar="URL",
    help="Where its database is, if fleet.toml does not say so.",
)
_PASSPHRASE = click.option(
    "--passphrase-file",
    type=FILE,
    default=None,
    help=f"What seals the private keys; or set {backups.PASSPHRASE}.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")

BACKUP_EPILOG = """\b
Examples:
  edgekit fleet backup /backup/fleet-today.zip --state /srv/fleet
  edgekit fleet backup /backup/whole.zip --state /srv/fleet --with-keys --passphrase-file /root/backup.passphrase
"""
RESTORE_EPILOG = """\b
Examples:
  edgekit fleet restore whole.zip --state /srv/fleet --passphrase-file /root/backup.passphrase
  edgekit fleet restore fleet-today.zip --state /srv/fleet      # with the folder 'keys' put back there before
  edgekit fleet restore whole.zip --state /srv/fleet --database postgresql+psycopg://edgekit@db.example/fleet
"""
MOVE_EPILOG = """\b
Examples:
  edgekit fleet move --state /srv/fleet --to postgresql+psycopg://edgekit@db.example/fleet
  edgekit fleet move --state /srv/fleet --to sqlite
"""


@click.command(epilog=BACKUP_EPILOG)
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@_STATE
@_DATABASE
@click.option("--with-keys", is_flag=True, help="The private keys too, sealed by a passphrase.")
@_PASSPHRASE
@_JSON
def backup(
    *,
    out: Path,
    state: Path,
    database: str | None,
    with_keys: bool,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Copy a fleet into the file OUT, while it runs: all rows of one moment, artifacts, metadata."""
    passphrase = _passphrase(passphrase_file) if with_keys else None
    if with_keys and passphrase is None:
        raise UsageError(
            f"--with-keys: private keys are never written in clear; give --passphrase-file FILE, or set {backups.PASSPHRASE}"
        )
    manifest = backups.make(
        backups.Wanted(state, out, database, passphrase), time.time(), _teller(quiet=as_json)
    )
    if as_json:
        click.echo(msgspec.json.encode(manifest))
        return
    count = sum(table.rows for table in manifest.tables.values())
    click.echo(
        f"{out}: {manifest.fleet}, {count} rows in {len(manifest.tables)} tables, {out.stat().st_size} bytes"
    )
    if with_keys:
        click.echo("  it holds the private keys, sealed: whoever has it and the passphrase is this fleet")
    else:
        click.echo(
            f"  it holds no private keys: keep a copy of {state}/keys, {state}/tuf/*.key and {state}/publisher elsewhere; "
            "without them no device follows what is restored"
        )


@click.command(epilog=RESTORE_EPILOG)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    required=True,
    help="The new home: a folder that is not there, is empty, or holds nothing but the keys that were kept.",
)
@click.option(
    "--database", default=None, metavar="URL", help="An empty database.  [default: SQLite in the home]"
)
@_PASSPHRASE
@_JSON
def restore(
    *, file: Path, state: Path, database: str | None, passphrase_file: Path | None, as_json: bool
) -> None:
    """Make a fleet's home from a backup; what must be done so that its devices go on is said at the end."""
    wanted = restoring.Wanted(file, state, database, _passphrase(passphrase_file))
    restored = restoring.restore(wanted, time.time(), _teller(quiet=as_json))
    if as_json:
        click.echo(msgspec.json.encode(restored))
        return
    taken = datetime.fromtimestamp(restored.taken_at, UTC)
    click.echo(
        f"{state}: {restored.fleet} as it was at {taken:%Y-%m-%d %H:%M:%S} UTC, {restored.rows} rows, all compared"
    )
    click.echo("Now")
    for number, words in enumerate(_to_do(restored, state), 1):
        click.echo(f"  {number}. {words}")


def _to_do(restored: restoring.Restored, state: Path) -> list[str]:
    told = [
        "see that no other service of this fleet runs anywhere: devices would follow both",
        f"edgekit fleet up --state {state}, under the same public addresses: devices come by themselves",
        f"{restored.ordered} devices get their order anew, above any that they may have followed since the backup",
        "who enrolled since is not known here: enrol them again",
        "what was published since: publish it again, from the publisher's folder",
        "what was revoked since (devices, tokens, people) is good again: revoke it again",
    ]
    if restored.under_way:
        told.append(
            f"rollouts go on where they were: {', '.join(restored.under_way)}; 'edgekit fleet freeze' holds them"
        )
    if restored.lost:
        told.append(
            f"the audit log lacks {restored.lost} entries: the old head is kept in {state}/audit.head.before-restore"
        )
    return told


@click.command(epilog=MOVE_EPILOG)
@_STATE
@click.option(
    "--to",
    required=True,
    metavar="URL",
    help="An empty database: postgresql+psycopg://USER@HOST/NAME, sqlite:///FILE, or sqlite for the home's own file.",
)
@_DATABASE
@_JSON
def move(*, state: Path, to: str, database: str | None, as_json: bool) -> None:
    """Take a fleet to another database while its service is stopped; every row is compared before the switch."""
    moved = moving.move(moving.Wanted(state, to, database), time.time(), _teller(quiet=as_json))
    if as_json:
        click.echo(msgspec.json.encode(moved))
        return
    count = sum(table.rows for table in moved.tables.values())
    click.echo(
        f"{moved.fleet}: {count} rows in {len(moved.tables)} tables, from {moved.source} to {moved.target}"
    )
    click.echo(
        f"{state}/{home.CONFIG_FILE} names it; start again, without --database: edgekit fleet up --state {state}"
    )
    click.echo(f"{moved.source} is left as it was, and marked: no service goes on with it")
    if moved.aside:
        click.echo(f"what it had left behind before is now {moved.aside}")


def _passphrase(file: Path | None) -> bytes | None:
    return home.secret(file, backups.PASSPHRASE, "the passphrase of a backup")


def _teller(*, quiet: bool) -> backups.Tell:
    return (lambda _: None) if quiet else (lambda text: click.echo(text, err=True))
