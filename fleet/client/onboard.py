"""Measuring bundles on boards: what is not published goes there for this alone, and is taken away again."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from edgekit import bundle as bundles
from edgekit.bundle import Bundle
from edgekit.errors import FleetError, UsageError
from edgekit.wire.commands import Measured
from fleet import api
from fleet.client import config, publishing
from fleet.client.rest import Client

LOOK_S = 0.5
# For bringing, testing and loading, beside the timing itself.
PATIENCE_S = 900.0
BUDGET_S = 10.0
# A board that is offline for so long is waited for no longer: a restart and a bad moment of a link are shorter.
GONE_S = 90.0


class NotMeasuredError(FleetError):
    """No board measured what it was asked to; the message says why each did not."""

    code = "not-measured"


class Asked(msgspec.Struct, frozen=True):
    """What boards measured, at least one; and why the others did not, by board."""

    measured: dict[str, Measured]
    left_out: dict[str, str]


def measuring(
    place: str | None, device: str, custody: Path | None = None, *, budget_s: float = BUDGET_S
) -> Callable[[Sequence[Path]], dict[str, Measured]]:
    """What measures bundle files on one board of the fleet at `place`; the publisher's keys are in `custody`.

    Raises: UsageError without a fleet or keys.
    """
    access = config.find(place)
    keys = publishing.custody_of(access, custody)

    def measure_on(paths: Sequence[Path]) -> dict[str, Measured]:
        checked = [bundles.read(path) for path in paths]
        with Client(access) as client, lent(client, checked, keys):
            return on_boards(client, [device], [one.sha256 for one in checked], budget_s).measured

    return measure_on


def on_boards(client: Client, devices: Sequence[str], digests: Sequence[str], budget_s: float) -> Asked:
    """Ask all boards at once, and wait for all. A board that is not there, or does not do it, costs itself only.

    Raises: NotMeasuredError where none did it.
    """
    ask = api.MeasureHere(tuple(digests), "", budget_s)
    expires = f"{PATIENCE_S:.0f}s"
    asked: list[api.CommandView] = []
    measured: dict[str, Measured] = {}
    left_out: dict[str, str] = {}
    for device in devices:
        if client.explain(device).device.online:
            asked.append(client.command(device, api.NewCommand(ask, expires)))
        else:
            left_out[device] = "the board is offline; nobody would hear it"
    deadline = time.monotonic() + PATIENCE_S + 3 * budget_s
    for one in asked:
        command = _waited_for(client, one, deadline)
        if isinstance(command.payload, Measured):
            measured[command.device] = command.payload
        else:
            left_out[command.device] = _why(command)
    if not measured:
        raise NotMeasuredError("; ".join(f"{device}: {why}" for device, why in left_out.items()))
    return Asked(measured, left_out)


def _waited_for(client: Client, command: api.CommandView, deadline: float) -> api.CommandView:
    """The command once it is over or there is no use in waiting."""
    there = time.monotonic()
    while not command.is_over and time.monotonic() < deadline:
        time.sleep(LOOK_S)
        command = client.command_of(command.device, command.id)
        if time.monotonic() - there > LOOK_S * 10:
            if client.explain(command.device).device.online:
                there = time.monotonic()
            elif time.monotonic() - there > GONE_S:
                break
    return command


def _why(command: api.CommandView) -> str:
    if not command.is_over:
        heard = "was not heard of" if command.state == "waiting" else "did not answer"
        return f"the board {heard} in time; 'edgekit fleet device commands {command.device}' follows it"
    return f"{command.state}: {command.reason or 'no reason given'}"


@contextmanager
def lent(client: Client, checked: Sequence[Bundle], keys: Path) -> Iterator[None]:
    """Bundles that boards may fetch to measure them, and only as long as this lasts; published ones are left as they are.

    Raises: UsageError for the keys; what the service refuses.
    """
    # cryptography and tuf belong to signing only; the other commands do without them.
    from fleet.client import keys as custody
    from fleet.publish import target_of
    from fleet.tuf.home import Home
    from fleet.tuf.ring import Ring, passphrase

    known = {
        bundle.sha256 for release in client.releases() for bundle in (*release.bundles, *release.alternates)
    }
    new = [one for one in checked if one.sha256 not in known]
    if not new:
        yield
        return
    home = Home(Ring(keys, passphrase(None)))
    custody.refresh(client, home)
    if not home.exists:
        raise UsageError(f"{keys}: no publisher's keys there; 'edgekit keys init' makes them")
    try:
        for one in new:
            client.upload(one.path, one.sha256, lambda _size: None)
            custody.publish(client, home, target_of(one))
            client.lend(api.NewFinalist(one.sha256))
        yield
    finally:
        for one in new:
            client.take_back(one.sha256)
        home.withdraw([one.sha256 for one in new], datetime.now(UTC))
        custody.upload(client, home)
