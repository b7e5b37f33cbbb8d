"""`edgekit fleet token|user|whoami`: who may do what (docs/access.md).

Always true
 1. A secret is never an argument: a new token goes to a file or a pipe, a password comes from a file, the environment
    or a prompt.
"""

import os
import sys
from datetime import datetime
from pathlib import Path

import click

from edgekit.errors import UsageError
from fleet import api
from fleet.client import render
from fleet.client.complete import completes
from fleet.client.config import client_file, read_secret
from fleet.client.files import write_secret
from fleet.client.options import connected, examples, with_fleet
from fleet.client.sheet import sheet

PASSWORD = "EDGEKIT_FLEET_NEW_PASSWORD"  # noqa: S105  # the name of a variable, not a secret
ROLES = click.Choice(["viewer", "operator", "publisher", "admin"])

_EXAMPLES = """\b
Examples:
  edgekit fleet token add ci --role publisher --expires 90d --out ci.toml    # then: edgekit fleet --fleet ci.toml …
  edgekit fleet token add dashboard --role viewer --scope site=lab --out - | secret-store put dashboard
  edgekit fleet token revoke ci
"""


@click.command(epilog=examples("edgekit fleet whoami"))
@with_fleet
def whoami(*, place: str | None, as_json: bool) -> None:
    """Who you are to the fleet, and what you may do."""
    with connected(place) as client:
        found = client.whoami()
    if as_json:
        render.show_json(found)
    else:
        render.say(f"{found.name}: {found.role}" + (f", for {found.scope}" if found.scope else ""))


@click.group(epilog=_EXAMPLES)
def token() -> None:
    """Tokens of machines."""


@token.command(
    "add", epilog=examples("edgekit fleet token add ci --role publisher --expires 90d --out ci.toml")
)
@click.argument("name")
@click.option("--role", type=ROLES, required=True, help="What it may do (docs/access.md).")
@click.option(
    "--scope", default="", metavar="SELECTOR", help="Only devices with these labels, e.g. site=lab."
)
@click.option(
    "--expires", default="", metavar="DURATION", help="How long it holds.  [default: until revoked]"
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, allow_dash=True),
    required=True,
    help="A new client file with the token, for --fleet; - writes the bare token to stdout.",
)
@with_fleet
def add_token(
    *, name: str, role: str, scope: str, expires: str, out: Path, place: str | None, as_json: bool
) -> None:
    """Make a token NAME. It is told this once."""
    is_pipe = str(out) == "-"
    if not is_pipe and out.exists():
        raise UsageError(f"{out}: exists already; remove it or choose another name")
    if not is_pipe and not out.absolute().parent.is_dir():
        raise UsageError(f"{out.parent}: there is no such folder")
    with connected(place) as client:
        made = client.add_token(api.NewToken(name, role, scope, expires))
    if is_pipe:
        click.echo(made.secret)
        return
    write_secret(out, client_file(made.url, made.secret, made.ca).encode())
    if as_json:
        render.show_json({"name": made.name, "file": str(out)})
    else:
        render.say(
            f"{out}: the token {made.name}, for 'edgekit fleet --fleet {out} …'; it is shown nowhere else"
        )


@token.command("list", epilog=examples("edgekit fleet token list"))
@with_fleet
def list_tokens(*, place: str | None, as_json: bool) -> None:
    """List tokens, when each was used last, and from where."""
    with connected(place) as client:
        found = client.tokens()
    if as_json:
        render.show_json(found)
        return
    table = sheet("token", "role", "scope", "state", "expires", "last used", "from", "made by")
    for one in found:
        table.add(
            one.name,
            one.role,
            one.scope,
            one.state,
            _day(one.expires, "never"),
            _day(one.last_used, "never"),
            one.last_used_from,
            one.created_by,
        )
    render.show(table)


@token.command("revoke", epilog=examples("edgekit fleet token revoke ci"))
@click.argument("name", shell_complete=completes("token"))
@with_fleet
def revoke_token(*, name: str, place: str | None, as_json: bool) -> None:
    """Make the token NAME worthless at once."""
    with connected(place) as client:
        done = client.revoke_token(name)
    if as_json:
        render.show_json(done)
    else:
        render.say(f"{name}: revoked" if done.is_changed else f"{name}: was worthless already")


@click.group(
    epilog=examples(
        "edgekit fleet user add bo --role operator --scope site=lab --password-file bo.password",
        "edgekit fleet user list",
    )
)
def user() -> None:
    """People who sign in."""


_with_password_file = click.option(
    "--password-file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help=f"Where the password stands; or set {PASSWORD}. Asked for otherwise.",
)


@user.command(
    "add",
    epilog=examples("edgekit fleet user add bo --role operator --scope site=lab --password-file bo.password"),
)
@click.argument("name")
@click.option("--role", type=ROLES, required=True, help="What they may do (docs/access.md).")
@click.option(
    "--scope", default="", metavar="SELECTOR", help="Only devices with these labels, e.g. site=lab."
)
@click.option(
    "--expires", default="", metavar="DURATION", help="How long they may.  [default: until removed]"
)
@_with_password_file
@with_fleet
def add_user(
    *,
    name: str,
    role: str,
    scope: str,
    expires: str,
    password_file: Path | None,
    place: str | None,
    as_json: bool,
) -> None:
    """Add the user NAME."""
    password = _password(password_file)
    with connected(place) as client:
        done = client.add_user(api.NewUser(name, password, role, scope, expires))
    if as_json:
        render.show_json(done)
    else:
        render.say(f"{name}: may sign in as {role}" + (f", for {scope}" if scope else ""))


@user.command("change", epilog=examples("edgekit fleet user change bo --role viewer"))
@click.argument("name", shell_complete=completes("user"))
@click.option("--role", type=ROLES, default=None, help="What they may do from now on (docs/access.md).")
@click.option(
    "--scope",
    default=None,
    metavar="SELECTOR",
    help="Only devices with these labels from now on; '' is the whole fleet.",
)
@click.option("--expires", default=None, metavar="DURATION", help="How long from now on; 'never' for no end.")
@with_fleet
def change_user(
    *, name: str, role: str | None, scope: str | None, expires: str | None, place: str | None, as_json: bool
) -> None:
    """Give the user NAME another role, scope or end; it holds from their next request on."""
    if role is None and scope is None and expires is None:
        raise UsageError("what is to change? give --role, --scope or --expires")
    with connected(place) as client:
        done = client.change_user(name, api.UserChange(role, scope, "" if expires == "never" else expires))
    if as_json:
        render.show_json(done)
    else:
        render.say(f"{name}: changed" if done.is_changed else f"{name}: was so already")


@user.command("list", epilog=examples("edgekit fleet user list"))
@with_fleet
def list_users(*, place: str | None, as_json: bool) -> None:
    """List users and when each was there last."""
    with connected(place) as client:
        found = client.users()
    if as_json:
        render.show_json(found)
        return
    table = sheet("user", "kind", "role", "scope", "state", "expires", "last there", "from", "added by")
    for one in found:
        ends, last = _day(one.expires, "never"), _day(one.last_used, "never")
        words = (one.name, one.kind, one.role, one.scope, one.state)
        table.add(*words, ends, last, one.last_used_from, one.created_by)
    render.show(table)


@user.command("remove", epilog=examples("edgekit fleet user remove bo"))
@click.argument("name", shell_complete=completes("user"))
@with_fleet
def remove_user(*, name: str, place: str | None, as_json: bool) -> None:
    """Remove the user NAME and end their sessions. Whom a provider vouches for may come again: 'block' keeps them out."""
    with connected(place) as client:
        done = client.remove_user(name)
    if as_json:
        render.show_json(done)
    else:
        render.say(f"{name}: removed")


@user.command("block", epilog=examples("edgekit fleet user block bo --reason 'left the company'"))
@click.argument("name", shell_complete=completes("user"))
@click.option("--reason", default="", help="For the audit log.")
@with_fleet
def block_user(*, name: str, reason: str, place: str | None, as_json: bool) -> None:
    """Keep the user NAME out, and end their sessions; also whom a provider vouches for."""
    _set_blocked(name, reason, place, is_blocked=True, as_json=as_json)


@user.command("unblock", epilog=examples("edgekit fleet user unblock bo"))
@click.argument("name", shell_complete=completes("user"))
@click.option("--reason", default="", help="For the audit log.")
@with_fleet
def unblock_user(*, name: str, reason: str, place: str | None, as_json: bool) -> None:
    """Let the user NAME sign in again."""
    _set_blocked(name, reason, place, is_blocked=False, as_json=as_json)


def _set_blocked(name: str, reason: str, place: str | None, *, is_blocked: bool, as_json: bool) -> None:
    with connected(place) as client:
        done = client.set_blocked(name, reason, is_blocked=is_blocked)
    if as_json:
        render.show_json(done)
    else:
        was = "" if done.is_changed else ", as before"
        render.say(f"{name}: {'blocked' if is_blocked else 'may sign in'}{was}")


@user.command("passwd", epilog=examples("edgekit fleet user passwd bo --password-file bo.password"))
@click.argument("name", shell_complete=completes("user"))
@_with_password_file
@with_fleet
def passwd(*, name: str, password_file: Path | None, place: str | None, as_json: bool) -> None:
    """Give the user NAME another password; their sessions end."""
    password = _password(password_file)
    with connected(place) as client:
        done = client.set_password(name, api.NewPassword(password))
    if as_json:
        render.show_json(done)
    else:
        render.say(f"{name}: has a new password")


def _password(file: Path | None) -> str:
    """From a file, the environment or a prompt. Raises: UsageError."""
    if file is not None:
        return read_secret(file, "the password")
    if found := os.environ.get(PASSWORD):
        return found
    if not sys.stdin.isatty():
        raise UsageError(f"the password? give --password-file FILE, or set {PASSWORD}")
    asked: str = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    return asked


def _day(moment: datetime | None, otherwise: str) -> str:
    return otherwise if moment is None else f"{moment:%Y-%m-%d %H:%M} UTC"


COMMANDS = (whoami, token, user)
