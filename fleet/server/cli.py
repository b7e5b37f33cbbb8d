"""`edgekit fleet up`, and nothing else: the other commands are a client's."""

import logging
from pathlib import Path

import click
from rich.console import Console

from fleet.server import service

EPILOG = """\b
Examples:
  edgekit fleet up --state fleet-state
  edgekit fleet up --state fleet-state --http 127.0.0.1:9000 --mqtt 127.0.0.1:1884
  edgekit fleet up --state fleet-state --broker mqtt://broker.lan:1883
  edgekit fleet up --state fleet-state --database postgresql+psycopg://edgekit@db/fleet
"""


@click.command(epilog=EPILOG)
@click.option(
    "--state", type=click.Path(path_type=Path), required=True, help="Folder for keys, artifacts and database."
)
@click.option(
    "--http", default="127.0.0.1:8080", show_default=True, help="Where the API listens; loopback only."
)
@click.option(
    "--mqtt", default="127.0.0.1:1883", show_default=True, help="Where the broker listens; loopback only."
)
@click.option(
    "--broker", default="embedded", show_default=True, help="embedded, mosquitto, or mqtt://HOST:PORT."
)
@click.option("--database", default=None, help="SQLAlchemy URL; SQLite in the state folder unless set.")
@click.option(
    "--tick",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.05, 60),
    help="Seconds between looks at rollouts.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def up(
    *, state: Path, http: str, mqtt: str, broker: str, database: str | None, tick: float, verbose: bool
) -> None:
    """Start the broker and the fleet service; Ctrl-C stops both."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    console = Console(stderr=True)
    options = service.Options(
        state=state, http=http, mqtt=mqtt, broker=broker, database=database, tick_s=tick
    )

    def announce(found: service.Announcement) -> None:
        console.print(f"[bold]fleet[/bold]     {found.fleet}", highlight=False)
        console.print(f"[bold]API[/bold]       {found.url}", highlight=False)
        connected = "" if found.is_broker_connected else " (not reachable yet; trying again until it is)"
        console.print(f"[bold]broker[/bold]    mqtt://{found.broker} ({broker}){connected}", highlight=False)
        console.print(f"[bold]database[/bold]  {found.database}", highlight=False)
        console.print(
            f"[bold]client[/bold]    export EDGEKIT_FLEET={found.client_file}",
            highlight=False,
            soft_wrap=True,
        )
        console.print("ready; Ctrl-C stops")

    service.run(options, announce)
    console.print("stopped")
