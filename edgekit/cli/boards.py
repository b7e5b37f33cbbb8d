"""The way from a build to the boards of a fleet: the fleet's client is loaded only when it is asked for."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgekit.distribution import extra
from edgekit.errors import UsageError
from edgekit.wire.commands import Measured


def measuring(
    place: str | None, device: str, keys: Path | None
) -> Callable[[Sequence[Path]], Mapping[str, Measured]]:
    """What measures bundle files on one board of a fleet, and says what it found by the board's name.

    Raises: UsageError without the client's packages, a fleet, or the publisher's keys.
    """
    try:
        client = importlib.import_module("fleet.client.onboard")
    except ModuleNotFoundError as error:
        raise UsageError(f"--on-device needs {error.name}; install it with: {extra('fleet')}") from error
    made: Callable[[Sequence[Path]], Mapping[str, Measured]] = client.measuring(place, device, keys)
    return made
