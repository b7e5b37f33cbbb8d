"""The workers that `edgekit fleet up --workers N` brings along: processes of their own, started again if one dies.

Always true
 1. They end with the service, even if it is killed (`keeper`).
 2. No secret is on their command line.
"""

import logging
import os
import subprocess
import sys
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Self

from edgekit.errors import UsageError
from fleet.server import home
from fleet.server.ca import MOST_WORKERS
from fleet.server.options import BROKER_PASSWORD
from fleet.server.places import EMBEDDED, Places, Wanted

if TYPE_CHECKING:
    from fleet.server.service import Options

log = logging.getLogger(__name__)

_PAUSE_S = 5.0
_FLAGS = {"websockets": "--mqtt-websockets"}


class Crew:
    """`options.workers` workers of this service."""

    def __init__(self, options: "Options", places: Places) -> None:
        """Raises: UsageError for workers that the broker cannot share its messages between."""
        if options.workers > MOST_WORKERS:
            raise UsageError(f"--workers {options.workers}: at most {MOST_WORKERS}")
        if options.workers and places.broker == EMBEDDED:
            raise UsageError(
                "--workers: the embedded broker does not share a subscription; use --broker mosquitto, or --broker "
                "mqtts://HOST:PORT for one that runs already"
            )
        self._command = [sys.executable, "-m", "edgekit", "fleet", "worker", *_arguments(options)]
        self._environment = _environment(options)
        self._count = options.workers
        self._children: list[subprocess.Popen[bytes]] = []
        self._not_before = 0.0

    def __enter__(self) -> Self:
        self._fill()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _fill(self) -> None:
        while len(self._children) < self._count:
            keeper = [sys.executable, "-m", "fleet.server.keeper", *self._command]
            self._children.append(
                subprocess.Popen(keeper, stdin=subprocess.PIPE, env=self._environment, start_new_session=True)
            )

    def watch(self) -> None:
        """Start those again that ended."""
        alive = [child for child in self._children if child.poll() is None]
        if len(alive) == len(self._children) or time.monotonic() < self._not_before:
            return
        log.warning("%d of %d workers ended; starting others", len(self._children) - len(alive), self._count)
        self._not_before = time.monotonic() + _PAUSE_S
        self._children = alive
        self._fill()

    def _stop(self) -> None:
        for child in self._children:
            assert child.stdin is not None
            child.stdin.close()
        for child in self._children:
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait(5)
        self._children = []


def _arguments(options: "Options") -> list[str]:
    found = ["--state", str(options.state)]
    for one in fields(Wanted):
        value = getattr(options.wanted, one.name)
        flag = _FLAGS.get(one.name, f"--{one.name.replace('_', '-')}")
        if value is True:
            found.append(flag)
        elif value:
            found += [flag, value]
    login = options.broker_login
    given = (
        ("--broker-files", options.broker_files),
        ("--broker-ca", login.authorities),
        ("--broker-cert", login.certificate),
        ("--broker-key", login.key),
    )
    for flag, path in given:
        if path is not None:
            found += [flag, str(path)]
    return found


def _environment(options: "Options") -> dict[str, str]:
    secrets = {
        home.PASSPHRASE: options.ca_passphrase and options.ca_passphrase.decode(),
        BROKER_PASSWORD: options.broker_login.password and options.broker_login.password.decode(),
        "EDGEKIT_FLEET_DATABASE": options.database,
    }
    return os.environ | {name: value for name, value in secrets.items() if value}
