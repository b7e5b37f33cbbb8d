"""Options that several commands of the service's machine share: where it listens, and how it reaches its broker."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fleet.server import home
from fleet.server.logins import BrokerLogin
from fleet.server.places import Wanted

BROKER_PASSWORD = "EDGEKIT_BROKER_PASSWORD"  # noqa: S105  # the name of a variable, not a secret
FILE = click.Path(path_type=Path, dir_okay=False)

PLACES: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "--public-url",
        {"default": "", "metavar": "URL", "help": "How devices and people reach it: https://HOST:PORT."},
    ),
    (
        "--mqtt-public",
        {"default": "", "metavar": "URL", "help": "How devices reach the broker: mqtts://HOST:PORT."},
    ),
    (
        "--mqtt-websockets",
        {
            "default": "",
            "metavar": "URL",
            "help": "The same broker for devices that only get out to 443: wss://HOST:PORT/mqtt.",
        },
    ),
    (
        "--http",
        {
            "default": "",
            "metavar": "HOST:PORT",
            "help": "Where the API listens.  [default: the public port, or 127.0.0.1:8080]",
        },
    ),
    (
        "--mqtt",
        {
            "default": "",
            "metavar": "HOST:PORT",
            "help": "Where our broker listens.  [default: the public port, or 127.0.0.1:1883]",
        },
    ),
    (
        "--broker",
        {
            "default": "",
            "metavar": "BROKER",
            "help": "embedded, mosquitto, or mqtts://USER@HOST:PORT.  [default: embedded; mosquitto with TLS]",
        },
    ),
    (
        "--plain-http",
        {"is_flag": True, "help": "A proxy on this machine ends TLS: serve it plain HTTP on loopback."},
    ),
    ("--tls-cert", {"type": FILE, "default": None, "help": "A certificate of your own for the API (PEM)."}),
    ("--tls-key", {"type": FILE, "default": None, "help": "Its key."}),
    ("--tls-ca", {"type": FILE, "default": None, "help": "Who signed it: what devices pin."}),
    (
        "--database",
        {
            "default": None,
            "envvar": "EDGEKIT_FLEET_DATABASE",
            "help": "SQLAlchemy URL; SQLite in the home unless set.",
        },
    ),
    (
        "--ca-passphrase-file",
        {
            "type": FILE,
            "default": None,
            "help": f"Passphrase of the CA's key, or the PIN of its token; or set {home.PASSPHRASE}.",
        },
    ),
)


def place_options(command: Callable[..., None]) -> Callable[..., None]:
    for flag, settings in reversed(PLACES):
        command = click.option(flag, **settings)(command)
    return command


BROKER: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "--broker-files",
        {
            "type": click.Path(path_type=Path, exists=True, file_okay=False),
            "default": None,
            "help": "The folder of 'broker-config' of a broker that runs apart: says how to reach it, and is kept fresh.",
        },
    ),
    (
        "--broker-ca",
        {"type": FILE, "default": None, "help": "What pins a broker that is not ours (PEM)."},
    ),
    ("--broker-cert", {"type": FILE, "default": None, "help": "What the service shows it."}),
    ("--broker-key", {"type": FILE, "default": None, "help": "The key of that."}),
    (
        "--broker-password-file",
        {"type": FILE, "default": None, "help": f"The user's password; or set {BROKER_PASSWORD}."},
    ),
)


def broker_options(command: Callable[..., None]) -> Callable[..., None]:
    for flag, settings in reversed(BROKER):
        command = click.option(flag, **settings)(command)
    return command


def login_of(given: dict[str, Any]) -> BrokerLogin:
    return BrokerLogin(
        given["broker_ca"],
        given["broker_cert"],
        given["broker_key"],
        home.secret(given["broker_password_file"], BROKER_PASSWORD, "the broker's password"),
    )


def wanted_of(given: dict[str, Any]) -> Wanted:
    return Wanted(
        public_url=given["public_url"],
        mqtt_public=given["mqtt_public"],
        websockets=given["mqtt_websockets"],
        http=given["http"],
        mqtt=given["mqtt"],
        broker=given["broker"],
        plain_http=given["plain_http"],
    )
