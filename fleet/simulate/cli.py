"""`edgekit fleet simulate`: virtual devices, to size a set-up before real ones come."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import click
import msgspec

from edgekit.errors import UsageError
from fleet.client.options import connected, with_fleet
from fleet.client.render import show
from fleet.client.sheet import pairs
from fleet.simulate.behaviour import Release, World, with_faults
from fleet.simulate.run import Wanted, run
from fleet.simulate.tally import Told

EPILOG = """\b
Examples:
  edgekit fleet simulate --devices 1000 --duration 10m
  edgekit fleet simulate --devices 200 --window 5s --state sim --fault 2.0:latency=1.3 --fault 2.0:install=2%
  edgekit fleet simulate --devices 200 --window 5s --drift 5%
"""
_LINE_EVERY_S = 10.0
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(_ctx: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """`30s`, `10m`, `1h`. Raises: UsageError."""
    if text is None:
        return None
    try:
        found = float(text[:-1]) * _UNITS[text[-1:]]
    except (ValueError, KeyError) as error:
        raise UsageError(f"{parameter.opts[0]} {text!r}: write a duration like 30s, 10m or 1h") from error
    if not 0 <= found < 1e7:
        raise UsageError(f"{parameter.opts[0]} {text!r}: not a duration that can be waited for")
    return found


def share(_ctx: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """`5%` or `0.05`. Raises: UsageError."""
    if text is None:
        return None
    try:
        found = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise UsageError(f"{parameter.opts[0]} {text!r}: write a share like 5% or 0.05") from error
    if not 0 <= found <= 1:
        raise UsageError(f"{parameter.opts[0]} {text!r}: a share is from 0 to 100%")
    return found


@click.command(epilog=EPILOG)
@click.option("--devices", required=True, type=click.IntRange(1, 100_000), help="How many devices.")
@click.option("--duration", default=None, callback=seconds, help="How long.  [default: until Ctrl-C]")
@click.option("--window", default="60s", show_default=True, callback=seconds, help="Between two reports.")
@click.option(
    "--state", type=click.Path(path_type=Path), default=None, help="Folder that keeps who has enrolled."
)
@click.option("--deployment", "deployments", multiple=True, default=("digits",), show_default=True)
@click.option("--profile", "profiles", multiple=True, default=("x86-64-v3",), show_default=True)
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label of all of them.")
@click.option(
    "--engine",
    "engines",
    multiple=True,
    default=("onnxruntime=1.22.0", "openvino=2026.4.0", "litert=2.1.0"),
    show_default=True,
    metavar="NAME=VERSION",
)
@click.option("--requests", default=60.0, show_default=True, help="Per window and deployment, on average.")
@click.option("--latency-ms", default=8.0, show_default=True, help="Of the middle device.")
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="VERSION:WHAT=AMOUNT",
    help="What a version does: errors=5%, latency=1.3, install=2%, silent=20%, drift=0.4; repeatable.",
)
@click.option(
    "--drift",
    "drifting",
    default=None,
    callback=share,
    metavar="SHARE",
    help="Devices whose inputs have drifted, as 5%; all of them tell of drift, confidence and odd inputs then.",
)
@click.option("--drops", default=0.02, show_default=True, help="Lost connections per device and hour.")
@click.option("--fetch", default="5s", show_default=True, callback=seconds, help="An update's download.")
@click.option("--probation", default="10s", show_default=True, callback=seconds, help="An update's trial.")
@click.option("--ramp", default=500.0, show_default=True, help="Connections begun per second.")
@click.option(
    "--per-connection",
    default=1,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="Devices that share one connection, on a broker without TLS: where this machine has too few.",
)
@click.option(
    "--settle", default="30s", show_default=True, callback=seconds, help="Wait for the last answers."
)
@click.option("--seed", default=1, show_default=True)
@with_fleet
def simulate(  # an option each
    *,
    place: str | None,
    as_json: bool,
    devices: int,
    duration: float | None,
    window: float,
    state: Path | None,
    deployments: tuple[str, ...],
    profiles: tuple[str, ...],
    labels: tuple[str, ...],
    engines: tuple[str, ...],
    requests: float,
    latency_ms: float,
    faults: tuple[str, ...],
    drifting: float | None,
    drops: float,
    fetch: float,
    probation: float,
    ramp: float,
    per_connection: int,
    settle: float,
    seed: int,
) -> None:
    """Virtual devices that enrol, report, follow orders and fail as real ones do, over real connections."""
    if min(window, ramp, latency_ms) <= 0 or min(requests, drops) < 0:
        raise UsageError("--window, --ramp, --latency-ms: above 0; --requests, --drops: not below")
    world = World(
        window_s=window,
        requests=requests,
        latency_ms=latency_ms,
        usual=Release(),
        drops_per_hour=drops,
        fetch_s=fetch,
        probation_s=probation,
        drifting=drifting,
    )
    wanted = Wanted(
        devices=devices,
        deployments=deployments,
        world=with_faults(replace(world), faults),
        profiles=profiles,
        labels=_pairs("--label", labels),
        engines=_pairs("--engine", engines),
        state=state,
        duration_s=duration,
        settle_s=settle,
        ramp=ramp,
        per_connection=per_connection,
        seed=seed,
    )
    with connected(place) as client:
        told = run(wanted, client, _Progress())
    if as_json:
        click.echo(msgspec.json.encode(told).decode())
    else:
        _show(told)


def _pairs(flag: str, texts: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UsageError(f"{flag} {text!r}: write KEY=VALUE")
        found[name] = value
    return found


class _Progress:
    """One line that is written over; where nobody watches, a line every ten seconds."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, text: str) -> None:
        is_watched = sys.stderr.isatty()
        now = time.monotonic()
        if now - self._last < (0.1 if is_watched else _LINE_EVERY_S):
            return
        self._last = now
        click.echo(f"\r\x1b[K{text}" if is_watched else text, err=True, nl=not is_watched)


def _show(told: Told) -> None:
    click.echo("", err=True)
    rows = []
    for name, value in msgspec.structs.asdict(told).items():
        shown = f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)
        rows.append((name.replace("_", " "), shown))
    show(pairs(rows))
