"""`edgekit agent`: a thin skin over the agent, the status file and the doctor."""

import asyncio
import os
import sys
from pathlib import Path

import click
import msgspec

from device_agent import account, agentfile, log, start, status
from device_agent import doctor as doctors
from device_agent.config import Settings
from device_agent.folder import StateFolder
from device_agent.install.commands import install, uninstall
from device_agent.listen import Credentials, credentials
from edgekit.errors import UsageError

_STATE = click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The agent's state folder.",
)
_CONFIG = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file with sources and sinks; by default agent.toml in the state folder, if there is one.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")


@click.group()
def agent() -> None:
    """Run the agent on a device, and look at it."""


agent.add_command(install)
agent.add_command(uninstall)


@agent.command(
    epilog="Examples:  edgekit agent run --enrolment board-7.json --state /var/lib/edgekit   (first start)    "
    "edgekit agent run --state /var/lib/edgekit --http 127.0.0.1:9000   (later)"
)
@click.option(
    "--enrolment",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file that 'edgekit fleet enroll' made for this device; needed for the first start, and to enrol again.",
)
@click.option(
    "--name", default="", help="The device's name, where the file is for many; by default its serial number."
)
@_STATE
@_CONFIG
@click.option(
    "--http",
    multiple=True,
    default=("127.0.0.1:8500",),
    show_default=True,
    help="Where to serve: HOST:PORT or unix:PATH; may be repeated. Beyond loopback with TLS and a token only.",
)
@click.option(
    "--tls-cert",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Certificate chain in PEM, for addresses beyond loopback.",
)
@click.option(
    "--tls-key", type=click.Path(path_type=Path, dir_okay=False), help="The certificate's private key in PEM."
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the bearer token that requests from beyond loopback must have.",
)
@click.option("--profile", help="A hardware profile's name or .toml file; by default the one that fits best.")
@click.option(
    "--window",
    type=click.FloatRange(min=0.5),
    default=60.0,
    show_default=True,
    help="Seconds per telemetry report.",
)
@click.option("--log-json", is_flag=True, help="Log JSON, one object per line.")
@click.option(
    "--serve-despite-engine-change",
    "serves_despite",
    is_flag=True,
    help="Serve a committed model even if it fails its golden data under newer engines.",
)
@click.option(
    "--worker-user",
    help="Run what loads models as this user; 'edgekit agent install' makes one that sees no key.",
)
def run(
    *,
    enrolment: Path | None,
    name: str,
    state: Path,
    config: Path | None,
    http: tuple[str, ...],
    tls_cert: Path | None,
    tls_key: Path | None,
    token_file: Path | None,
    profile: str | None,
    window: float,
    log_json: bool,
    serves_despite: bool,
    worker_user: str | None,
) -> None:
    """Enrol if needed, then serve models, follow the fleet's orders and report, until told to end."""
    # What it was started with: some of it is taken out, so that what it starts does not learn it.
    environment = dict(os.environ)
    log.set_up(as_json=log_json)
    file = agentfile.read(state.absolute(), config)
    settings = Settings(
        state=StateFolder(state.absolute()),
        http=http,
        secured=_secured(tls_cert, tls_key, token_file),
        enrolment=enrolment,
        profile=profile,
        window_s=window,
        log_json=log_json,
        serves_despite_change=serves_despite,
        private=(
            *(path.absolute() for path in (enrolment, tls_key, token_file) if path is not None),
            *file.secrets,
        ),
        name=name,
        file=file,
        account=account.take(worker_user) if worker_user else None,
    )
    if asyncio.run(start.run(settings)):
        # The same process with the same words: to whoever started it, it never ended.
        log.event("agent starts again")
        if settings.account is not None:
            account.hand_on()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606  # no shell, its own words


def _secured(cert: Path | None, key: Path | None, token: Path | None) -> Credentials | None:
    if cert is None and key is None and token is None:
        return None
    if cert is None or key is None or token is None:
        raise UsageError("--tls-cert, --tls-key and --token-file go together: give all three, or none")
    return credentials(cert, key, token)


@agent.command("status", epilog="Example:  edgekit agent status --state /var/lib/edgekit --json")
@_STATE
@_JSON
def status_command(*, state: Path, as_json: bool) -> None:
    """Show who this device is, what runs, the newest order, and where updates stand, as the state folder has it."""
    view = status.read(StateFolder(state))
    click.echo(msgspec.json.encode(view) if as_json else status.render(view))


@agent.command(epilog="Example:  edgekit agent doctor --state /var/lib/edgekit")
@_STATE
@_CONFIG
@_JSON
@click.option("--profile", help="A hardware profile's name or .toml file, as for 'run'.")
def doctor(*, state: Path, config: Path | None, as_json: bool, profile: str | None) -> int:
    """Check engines, disk, clock, identity and the link to the fleet; exit code 1 if something is wrong."""
    checks = asyncio.run(doctors.examine(StateFolder(state), profile, config))
    click.echo(msgspec.json.encode(checks) if as_json else doctors.render(checks))
    return 1 if any(check.state == "bad" for check in checks) else 0
