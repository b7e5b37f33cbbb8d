"""`edgekit fleet alerts|alert-targets`: what is wrong with the fleet, and who is told (docs/monitoring.md).

Always true
 1. A secret is never an argument: it comes from a file or the environment.
"""

import os
from pathlib import Path

import click
from rich.text import Text

from edgekit.errors import UsageError
from fleet import api
from fleet.client import render
from fleet.client.config import read_secret
from fleet.client.options import connected, examples, with_fleet
from fleet.client.sheet import sheet

SECRET = "EDGEKIT_WEBHOOK_SECRET"  # noqa: S105  # the name of a variable, not a secret
URL = "EDGEKIT_WEBHOOK_URL"
PASSWORD = "EDGEKIT_SMTP_PASSWORD"  # noqa: S105  # likewise
_FILE = click.Path(path_type=Path, dir_okay=False)
_GRAVE = {"critical": "red", "warning": "yellow"}

_EXAMPLES = """\b
Examples:
  edgekit fleet alert-targets add ops webhook --url https://alerts.example/edgekit --secret-file hook.secret
  edgekit fleet alert-targets add chat webhook --url-file chat.url --secret-file hook.secret --severity critical
  edgekit fleet alert-targets add night smtp --server smtps://mail.example:465 --from fleet@example.org \\
      --to night@example.org --user fleet --password-file mail.password
  edgekit fleet alert-targets add training webhook --url https://train.example/start --secret-file t.secret --for retraining
  edgekit fleet alert-targets test ops
"""


@click.group(
    epilog=examples(
        "edgekit fleet alerts list",
        "edgekit fleet alerts acknowledge a3 --reason 'the site has no power today'",
    )
)
def alerts() -> None:
    """What is wrong with the fleet."""


@alerts.command("list", epilog=examples("edgekit fleet alerts list", "edgekit fleet alerts list --ended"))
@click.option("--ended", is_flag=True, help="Those that are over, the newest first.")
@with_fleet
def list_alerts(*, ended: bool, place: str | None, as_json: bool) -> None:
    """List alerts that stand, the gravest first."""
    with connected(place) as client:
        found = client.alerts(ended=ended)
    if as_json:
        render.show_json(found)
        return
    if not found:
        click.echo("no alert has ended yet" if ended else "nothing is wrong that the fleet knows of")
    for one in found:
        render.show(_line(one))
        render.say(f"    {one.words}")
        if one.ended is None:
            render.say(f"    to do: {one.what_to_do}")


def _line(one: api.AlertView) -> Text:
    parts = [one.kind, f"since {one.since:%Y-%m-%d %H:%M} UTC"]
    if one.ended is not None:
        parts.append(f"until {one.ended:%Y-%m-%d %H:%M} UTC")
    if one.acknowledged_by:
        parts.append(f"acknowledged by {one.acknowledged_by}")
    if one.told:
        parts.append(f"told {', '.join(one.told)}")
    return render.words(one.id, "  ", (one.severity, _GRAVE[one.severity]), "  ", "  ".join(parts))


@alerts.command(epilog=examples("edgekit fleet alerts acknowledge a3 --reason 'somebody drives there'"))
@click.argument("alert", metavar="ID")
@click.option("--reason", default="", help="For the audit log.")
@with_fleet
def acknowledge(*, alert: str, reason: str, place: str | None, as_json: bool) -> None:
    """Note that you have seen the alert ID; it stands until what is wrong is over."""
    with connected(place) as client:
        done = client.acknowledge(alert, reason)
    if as_json:
        render.show_json(done)
    else:
        render.say(f"{alert}: acknowledged" if done.is_changed else f"{alert}: somebody had already")


@click.group("alert-targets", epilog=_EXAMPLES)
def targets() -> None:
    """Who is told of alerts, and when a model is to be trained again."""


@targets.command("add", epilog=_EXAMPLES)
@click.argument("name")
@click.argument("kind", type=click.Choice(["webhook", "smtp", "log"]))
@click.option("--url", default="", metavar="URL", help="webhook: where to send.")
@click.option(
    "--url-file", type=_FILE, default=None, help=f"webhook: where that stands, if it is secret; or set {URL}."
)
@click.option(
    "--secret-file", type=_FILE, default=None, help=f"webhook: what signs messages; or set {SECRET}."
)
@click.option(
    "--server", default="", metavar="URL", help="smtp: smtps://HOST:PORT, or smtp://HOST:PORT for STARTTLS."
)
@click.option("--from", "sender", default="", metavar="ADDRESS", help="smtp: who sends.")
@click.option("--to", "recipients", multiple=True, metavar="ADDRESS", help="smtp: who gets it; repeatable.")
@click.option("--user", default="", help="smtp: the name to log in with.")
@click.option("--password-file", type=_FILE, default=None, help=f"smtp: its password; or set {PASSWORD}.")
@click.option(
    "--ca-file", type=_FILE, default=None, help="PEM that pins the receiver; public authorities without it."
)
@click.option(
    "--severity",
    type=click.Choice(["warning", "critical"]),
    default="warning",
    show_default=True,
    help="The least told.",
)
@click.option(
    "--for",
    "events",
    type=click.Choice(["alerts", "retraining"]),
    multiple=True,
    help="What it is told; repeatable.  [default: alerts]",
)
@with_fleet
def add_target(  # noqa: PLR0917  # click passes them by name
    name: str,
    kind: api.TargetKind,
    url: str,
    url_file: Path | None,
    secret_file: Path | None,
    server: str,
    sender: str,
    recipients: tuple[str, ...],
    user: str,
    password_file: Path | None,
    ca_file: Path | None,
    severity: api.Severity,
    events: tuple[api.TargetEvent, ...],
    place: str | None,
    as_json: bool,
) -> None:
    """Tell the target NAME of alerts from now on, by a signed webhook, mail, or a line in the service's log."""
    ca = _text(ca_file) if ca_file is not None else ""
    webhook = mail = None
    if kind == "webhook":
        to = url or _secret(url_file, URL, "the webhook's address", "--url URL or --url-file FILE")
        key = _secret(secret_file, SECRET, "the webhook's secret", "--secret-file FILE")
        webhook = api.Webhook(to, key, ca)
    elif kind == "smtp":
        if not (server and sender and recipients):
            raise UsageError("a target of kind smtp needs --server, --from and --to")
        password = (
            _secret(password_file, PASSWORD, "the mail server's password", "--password-file FILE")
            if user
            else ""
        )
        mail = api.Mail(server, sender, recipients, user, password, ca)
    new = api.NewTarget(name, kind, webhook, mail, severity, events or ("alerts",))
    with connected(place) as client:
        done = client.add_target(new)
    if as_json:
        render.show_json(done)
    else:
        render.say(f"{name}: is told from now on; try it: edgekit fleet alert-targets test {name}")


@targets.command("list", epilog=examples("edgekit fleet alert-targets list"))
@with_fleet
def list_targets(*, place: str | None, as_json: bool) -> None:
    """List targets, what waits for each, and why."""
    with connected(place) as client:
        found = client.targets()
    if as_json:
        render.show_json(found)
        return
    if not found:
        click.echo("nobody is told; 'edgekit fleet alert-targets add NAME …' changes that")
        return
    table = sheet("target", "kind", "where", "from", "told of", "last told", "waiting", "last error")
    for one in found:
        last = "never" if one.last_sent is None else f"{one.last_sent:%Y-%m-%d %H:%M} UTC"
        words = (one.name, one.kind, one.where, one.severity, ", ".join(one.events))
        table.add(*words, last, str(one.waiting), one.last_error)
    render.show(table)


@targets.command("remove", epilog=examples("edgekit fleet alert-targets remove night"))
@click.argument("name")
@with_fleet
def remove_target(*, name: str, place: str | None, as_json: bool) -> None:
    """Tell the target NAME no more; what still waits for it goes too."""
    with connected(place) as client:
        done = client.remove_target(name)
    if as_json:
        render.show_json(done)
    else:
        render.say(f"{name}: removed")


@targets.command("test", epilog=examples("edgekit fleet alert-targets test ops"))
@click.argument("name")
@click.pass_context
@with_fleet
def try_target(ctx: click.Context, *, name: str, place: str | None, as_json: bool) -> None:
    """Send the target NAME a test now. Exits with 1 if it did not arrive."""
    with connected(place) as client:
        done = client.try_target(name)
    if as_json:
        render.show_json(done)
    else:
        render.say(f"{name}: {'arrived' if done.has_arrived else 'did not arrive'}: {done.words}")
    if not done.has_arrived:
        ctx.exit(1)


def _secret(file: Path | None, variable: str, what: str, how: str) -> str:
    """From a file or the environment. Raises: UsageError."""
    if file is not None:
        return read_secret(file, what)
    if found := os.environ.get(variable):
        return found
    raise UsageError(f"{what}? give {how}, or set {variable}")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error


COMMANDS = (alerts, targets)
