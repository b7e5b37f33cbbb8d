"""What other parts of the service keep, where they are there: alerts, history, events. Where one is not, its section of
the page is left out.
"""

import importlib
from functools import cache
from typing import Any

from sqlalchemy import Connection

from fleet.rules.access import RULES

EVENTS = "/api/v1/events"


def has_events() -> bool:
    return ("GET", EVENTS) in RULES


@cache
def _part(name: str) -> Any:
    try:
        return importlib.import_module(f"fleet.server.store.{name}")
    except ModuleNotFoundError:
        return None


def has_alerts() -> bool:
    return _part("alerts") is not None


def open_alerts(connection: Connection) -> list[Any]:
    """`fleet.api.AlertView`s that nobody ended, the newest first."""
    return list(_part("alerts").listing(connection, is_open=True)) if has_alerts() else []


def has_history() -> bool:
    return _part("history") is not None


def of_rollout(connection: Connection, rollout: int) -> list[Any]:
    """`fleet.api.history.ArmPoint`s."""
    return list(_part("history").of_rollout(connection, rollout)) if has_history() else []


def of_device(connection: Connection, device: str, since: float, until: float) -> list[Any]:
    """`fleet.api.history.DevicePoint`s."""
    return list(_part("history").of_device(connection, device, since, until)) if has_history() else []


def of_release(connection: Connection, deployment: str, digest: str, since: float, until: float) -> list[Any]:
    """`fleet.api.history.ReleasePoint`s."""
    if not has_history():
        return []
    return list(_part("history").of_release(connection, deployment, digest, since, until))
