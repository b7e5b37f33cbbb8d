"""`edgekit fleet init|up|broker-config`: the commands of the machine that the service runs on."""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from edgekit.errors import UsageError
from fleet.server import broker_config as configs
from fleet.server import broker_folder, home, hsm_uri, service, trusted
from fleet.server.ca import MOST_WORKERS
from fleet.server.options import FILE, broker_options, login_of, place_options, wanted_of
from fleet.server.places import MOSQUITTO, settle
from fleet.tuf.ring import PASSPHRASE as KEYS_PASSPHRASE

INIT_EPILOG = """\b
Examples:
  edgekit fleet init /srv/fleet --public-url https://fleet.example:8443 --mqtt-public mqtts://fleet.example:8883 \\
      --ca-passphrase-file /root/ca.passphrase
  edgekit fleet init /srv/fleet ... --ca-key 'pkcs11:token=fleet;object=ca' --ca-passphrase-file /root/token.pin
  edgekit fleet init fleet-state        # for this machine only
"""

UP_EPILOG = """\b
Examples:
  edgekit fleet up --state fleet-state                  # on loopback; makes the home if there is none
  edgekit fleet up --state /srv/fleet --ca-passphrase-file /root/ca.passphrase
  edgekit fleet up --state fleet-state --http 127.0.0.1:9000 --mqtt 127.0.0.1:1884
  edgekit fleet up --state /srv/fleet --broker mqtts://fleet@broker.example:8883 --broker-ca broker-ca.pem \\
      --broker-password-file broker.password
"""

WORKER_EPILOG = """\b
Examples:
  edgekit fleet up --state /srv/fleet --workers 2       # brings its workers along
  edgekit fleet worker --state /srv/fleet --database postgresql+psycopg://edgekit@db.example/fleet
"""

BROKER_EPILOG = """\b
Examples:
  edgekit fleet broker-config mosquitto --state /srv/fleet --out mosquitto
  edgekit fleet broker-config mosquitto --state /srv/fleet --out mosquitto --refresh
"""

_as_json = click.option("--json", "as_json", is_flag=True, help="Answer as JSON on stdout.")


@click.command(epilog=INIT_EPILOG)
@click.argument("folder", type=click.Path(path_type=Path))
@place_options
@click.option(
    "--ca-key",
    default="",
    metavar="URI",
    help="The CA's key is in a PKCS#11 token, or is made there: pkcs11:token=LABEL;object=NAME (RFC 7512).",
)
@click.option(
    "--keys-passphrase-file",
    type=FILE,
    default=None,
    help=f"Passphrase of the publisher's keys; or set {KEYS_PASSPHRASE}.",
)
@click.option(
    "--no-publisher", is_flag=True, help="Make no publisher's keys here: 'edgekit keys init' does elsewhere."
)
@click.option("--inside-repository", is_flag=True, help="Make it inside a git work tree all the same.")
@_as_json
def init(
    *,
    folder: Path,
    as_json: bool,
    inside_repository: bool,
    no_publisher: bool,
    keys_passphrase_file: Path | None,
    ca_passphrase_file: Path | None,
    ca_key: str,
    **given: Any,
) -> None:
    """Make a fleet's home in FOLDER, once: keys, certificate authority, database, settings."""
    tree = home.git_tree_of(folder)
    if tree is not None and not inside_repository:
        raise UsageError(
            f"{folder} lies in the git work tree {tree}: private keys do not belong there; choose another folder, "
            "or say --inside-repository"
        )
    places = settle(wanted_of(given))
    passphrase = home.secret(ca_passphrase_file, home.PASSPHRASE, "the CA's passphrase")
    if ca_key:
        hsm_uri.parse(ca_key)
    if passphrase is None and not places.is_local and not ca_key:
        raise UsageError(
            "the CA's key of a fleet on a network needs a passphrase: give --ca-passphrase-file FILE, or set "
            f"{home.PASSPHRASE}"
        )
    publisher = None
    if not no_publisher:
        publisher = (
            home.secret(keys_passphrase_file, KEYS_PASSPHRASE, "the passphrase of the publisher's keys")
            or b""
        )
    kept = {
        name: given[name]
        for name in ("public_url", "mqtt_public", "mqtt_websockets", "http", "mqtt", "broker", "plain_http")
    }
    files = {
        name: str(path.absolute()) for name in ("tls_cert", "tls_key", "tls_ca") if (path := given[name])
    }
    made = home.create(
        folder,
        {**kept, **files, "ca_key": ca_key},
        given["database"],
        passphrase,
        time.time(),
        publisher=publisher,
    )
    if as_json:
        told = {"folder": str(folder), "fleet": made.fleet, "has_publisher": publisher is not None}
        click.echo(json.dumps(told))
        return
    where = "the database " if given["database"] else "fleet.db, "
    click.echo(f"{folder}: the home of {made.fleet}")
    click.echo(
        f"Back up, where nobody else reads it: {folder}/keys, {folder}/fleet.toml, {where}and the CA's "
        + ("PIN; its key by the token's own means" if ca_key else "passphrase")
    )
    key = "the CA's key in the token" if ca_key else "keys/ca.key"
    click.echo(f"  without {key} no device can join or renew; without keys/order.key none follows orders;")
    click.echo("  without the database nobody knows the devices")
    if publisher is None:
        click.echo(
            "Then make the publisher's keys where they are to stay: edgekit keys init DIR --fleet client.toml"
        )
    else:
        click.echo(
            f"{folder}/publisher has the keys that say which bundles devices may run: without them nothing new is"
        )
        click.echo("  published. Back them up; to publish from another machine, move the folder there")
    click.echo(f"Start it: edgekit fleet up --state {folder}")


@click.command(epilog=UP_EPILOG)
@click.option(
    "--state", type=click.Path(path_type=Path), required=True, help="The fleet's home ('edgekit fleet init')."
)
@place_options
@broker_options
@click.option(
    "--tick",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.05, 60),
    help="Seconds between looks at rollouts.",
)
@click.option(
    "--workers",
    default=0,
    show_default=True,
    type=click.IntRange(0, MOST_WORKERS),
    help="Processes of their own that take reports in (docs/scale.md); 0: the service does.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def up(
    *,
    state: Path,
    ca_passphrase_file: Path | None,
    broker_files: Path | None,
    tick: float,
    workers: int,
    verbose: bool,
    **given: Any,
) -> None:
    """Start the broker and the fleet service; Ctrl-C stops both."""
    _log(verbose=verbose)
    options = service.Options(
        state=state,
        wanted=wanted_of(given),
        database=given["database"],
        tick_s=tick,
        tls=trusted.TlsFiles(given["tls_cert"], given["tls_key"], given["tls_ca"]),
        broker_login=login_of(given),
        broker_files=broker_files,
        ca_passphrase=home.secret(ca_passphrase_file, home.PASSPHRASE, "the CA's passphrase"),
        workers=workers,
    )
    console = Console(stderr=True)
    service.run(options, lambda found: _announce(console, found))
    console.print("stopped")


@click.command(epilog=WORKER_EPILOG)
@click.option(
    "--state", type=click.Path(path_type=Path), required=True, help="The fleet's home ('edgekit fleet init')."
)
@place_options
@broker_options
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def worker(
    *,
    state: Path,
    ca_passphrase_file: Path | None,
    broker_files: Path | None,
    verbose: bool,
    **given: Any,
) -> None:
    """Take reports in, beside 'edgekit fleet up'; any number of workers share them. Ctrl-C stops it."""
    from fleet.server import worker as process

    _log(verbose=verbose)
    options = service.Options(
        state=state,
        wanted=wanted_of(given),
        database=given["database"],
        broker_login=login_of(given),
        broker_files=broker_files,
        ca_passphrase=home.secret(ca_passphrase_file, home.PASSPHRASE, "the CA's passphrase"),
    )
    process.run(options, lambda name: click.echo(f"worker {name}: ready", err=True))


def _log(*, verbose: bool) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _announce(console: Console, found: service.Announcement) -> None:
    if found.made is not None:
        console.print(
            f"[bold]made[/bold]      {found.made}, the home of a new fleet for this machine: its keys are in "
            f"{found.made}/keys, so keep it out of repositories and in backups",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"[bold]fleet[/bold]     {found.fleet}", highlight=False)
    console.print(f"[bold]API[/bold]       {found.url}", highlight=False)
    connected = "" if found.is_broker_connected else " (not reachable yet; trying again until it is)"
    console.print(f"[bold]broker[/bold]    {found.broker} ({found.broker_kind}){connected}", highlight=False)
    console.print(f"[bold]database[/bold]  {found.database}", highlight=False)
    console.print(
        f"[bold]client[/bold]    export EDGEKIT_FLEET={found.client_file}",
        highlight=False,
        soft_wrap=True,
    )
    console.print("ready; Ctrl-C stops")


@click.command("broker-config", epilog=BROKER_EPILOG)
@click.argument("kind", type=click.Choice([MOSQUITTO]))
@click.option(
    "--state", type=click.Path(path_type=Path), required=True, help="The fleet's home ('edgekit fleet init')."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder for the files.")
@click.option(
    "--at",
    default="",
    metavar="DIR",
    help="Where the folder will lie on the broker's machine, e.g. /etc/mosquitto/edgekit.  [default: --out]",
)
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="What the service calls the broker's machine, where that is not its public name; repeatable.",
)
@click.option(
    "--refresh",
    is_flag=True,
    help="--out is there: bring the present revocation list, and renew its certificates where they are due.",
)
@click.option(
    "--ca-passphrase-file",
    type=FILE,
    default=None,
    help=f"Passphrase of the CA's key, or the PIN of its token; or set {home.PASSPHRASE}.",
)
@_as_json
def broker_config(
    *,
    kind: str,
    as_json: bool,
    state: Path,
    out: Path,
    at: str,
    hosts: tuple[str, ...],
    refresh: bool,
    ca_passphrase_file: Path | None,
) -> None:
    """Write what a mosquitto on its own takes: configuration, rules per device, certificates, revocation list."""
    config = home.read_config(state)
    places = settle(config.wanted)
    if not places.announced.tls:
        raise UsageError(f"{state}: has no --mqtt-public mqtts://HOST:PORT; make the home with it")
    if out.exists() and not refresh:
        raise UsageError(f"{out}: exists already; renew what is in it with --refresh, or choose another name")
    keys = state / "keys"
    authority = home.authority(
        keys, config, home.secret(ca_passphrase_file, home.PASSPHRASE, "the CA's passphrase")
    )
    source = broker_folder.Source(keys, authority, config.fleet, places)
    place = Path(at) if at else out.absolute()
    changed: Sequence[str] = ()
    try:
        if refresh:
            changed = broker_folder.refresh(out, source, time.time())
        else:
            broker_folder.write(out, source, hosts=hosts, at=place, now=time.time())
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror})") from error
    if as_json:
        click.echo(json.dumps({"folder": str(out), "changed": list(changed)}))
        return
    if refresh:
        what = f"{', '.join(changed)} changed; the broker reads them anew after a SIGHUP"
        click.echo(f"{out}: {what if changed else 'nothing was due'}")
        return
    host = hosts[0] if hosts else places.announced.host
    click.echo(f"{out}: for {kind} on {places.announced.host}:{places.announced.port}")
    click.echo(f"  there: chown -R mosquitto: {place} && mosquitto -c {place}/{configs.CONFIG}")
    click.echo(
        f"  here:  edgekit fleet up --state {state} --broker mqtts://{host}:{places.announced.port} --broker-files {out}"
    )
    click.echo(
        f"  after a revocation the broker takes the new list from {places.url}/v1/crl.pem and a SIGHUP (docs/network.md)"
    )
