"""How virtual devices and the releases on them behave: latency, errors, drift, failed updates, silence. Pure but for the
random numbers it is given.

A device has a level of its own (log-normal over the fleet); the times of a window are log-normal around it. Windows are
drawn from a stock of ready sketches, moved to the device's level: drawing each time anew would take most of the time.
"""

import math
import random
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from msgspec import structs

from edgekit.errors import UsageError
from edgekit.manifest import Histogram
from edgekit.sketch import Sketch, of
from edgekit.wire.messages import DeploymentWindow, Moments

_FAULT = re.compile(r"^(?P<version>[^:]+):(?P<what>errors|latency|install|silent|drift)=(?P<amount>.+)$")
_STOCK = 64
# What is told of drift: the names of the example's input and output, counts over ten bins that have a tenth each.
_INPUT, _OUTPUT = "x", "logits"
_EDGES = [at / 10 for at in range(11)]
_DRIFTED = 0.6
_LOG_GAMMA = math.log(1.01 / 0.99)


@dataclass(frozen=True)
class Release:
    """What a version does to a device. `errors`, `install_failures` and `silent` are shares, `latency` is a factor,
    `drift` is a population stability index.
    """

    errors: float = 0.001
    latency: float = 1.0
    install_failures: float = 0.0
    silent: float = 0.0
    drift: float = 0.05


@dataclass(frozen=True)
class World:
    """Every virtual device's surroundings. Durations in seconds; `drops_per_hour` is how often a device loses its
    connection, `away_s` how long it is away then on average. `drifting` is the share of devices whose inputs have moved;
    with None windows have no more of drift than gates need.
    """

    window_s: float = 60.0
    requests: float = 60.0
    latency_ms: float = 8.0
    usual: Release = Release()
    faults: Mapping[str, Release] = field(default_factory=dict)
    drops_per_hour: float = 0.02
    away_s: float = 60.0
    fetch_s: float = 5.0
    probation_s: float = 10.0
    drifting: float | None = None

    def release(self, version: str) -> Release:
        return self.faults.get(version, self.usual)


def with_faults(world: World, texts: tuple[str, ...]) -> World:
    """`VERSION:errors=5%`, `:latency=1.3`, `:install=2%`, `:silent=20%`, `:drift=0.4`. Raises: UsageError."""
    faults = dict(world.faults)
    for text in texts:
        match = _FAULT.match(text)
        if match is None:
            raise UsageError(
                f"--fault {text!r}: write VERSION:errors=5%, :latency=1.3, :install=2%, :silent=20% or :drift=0.4"
            )
        what = {"install": "install_failures"}.get(match["what"], match["what"])
        amount = _number(text, match["amount"])
        if what in ("errors", "install_failures", "silent") and amount > 1:
            raise UsageError(f"--fault {text!r}: at most 100%")
        faults[match["version"]] = replace(faults.get(match["version"], world.usual), **{what: amount})
    return replace(world, faults=faults)


def _number(text: str, amount: str) -> float:
    try:
        found = float(amount.removesuffix("%")) / (100 if amount.endswith("%") else 1)
    except ValueError as error:
        raise UsageError(f"--fault {text!r}: {amount!r} is no number") from error
    if not 0 <= found < math.inf:
        raise UsageError(f"--fault {text!r}: {amount!r} is not a number of 0 or more")
    return found


class Windows:
    """Makes windows for all devices of a world."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._random = random.Random(seed)  # noqa: S311  # a simulation, not a secret
        self._stock = [self._drawn() for _ in range(_STOCK)]

    def level(self) -> float:
        """A device's own factor on latency."""
        return self._random.lognormvariate(0.0, 0.25)

    def drifts(self, name: str) -> bool:
        """Whether the inputs of a device have moved: the same ones in every run."""
        return zlib.crc32(name.encode()) / 2**32 < (self._world.drifting or 0.0)

    def window(
        self, deployment: str, digest: str, version: str, level: float, *, drifts: bool = False
    ) -> DeploymentWindow:
        release = self._world.release(version)
        index = (_DRIFTED if drifts else release.drift) * self._random.lognormvariate(0.0, 0.3)
        times = _moved(self._random.choice(self._stock), level * release.latency)
        requests = times.count
        made = DeploymentWindow(
            deployment,
            digest,
            requests,
            errors=self._errors(requests, release.errors),
            infer_ms=times,
            request_ms=times,
            metrics={"drift_psi": Moments(1, index)},
        )
        return made if self._world.drifting is None else self._telling(made, index, drifts=drifts)

    def _telling(self, window: DeploymentWindow, index: float, *, drifts: bool) -> DeploymentWindow:
        """With what a device tells of its inputs: where they drift they are higher, the model is less sure, some do not fit."""
        requests = window.requests
        low, high = (0.05, 0.15) if drifts else (0.1, 0.1)
        sure = [0.0] * 5 + ([0.1, 0.15, 0.2, 0.25, 0.3] if drifts else [0.0, 0.02, 0.03, 0.15, 0.8])
        return structs.replace(
            window,
            inputs={_INPUT: self._counts([low] * 5 + [high] * 5, 10 * requests)},
            confidence={_OUTPUT: self._counts(sure, requests)},
            drift={f"inputs/{_INPUT}": round(index, 4), f"outputs/{_OUTPUT}": round(index / 4, 4)},
            anomalies={"out-of-range": requests // 50 + 1} if drifts else {},
        )

    def _counts(self, shares: list[float], values: int) -> Histogram:
        counts = [0] * len(shares)
        for at in self._random.choices(range(len(shares)), shares, k=values):
            counts[at] += 1
        return Histogram(_EDGES, counts)

    def _errors(self, requests: int, share: float) -> int:
        """Poisson, by multiplying uniform numbers (Knuth); the mean is small."""
        edge, product, found = math.exp(-min(requests * share, 500.0)), self._random.random(), 0
        while product > edge:
            product *= self._random.random()
            found += 1
        return min(found, requests)

    def _drawn(self) -> Sketch:
        requests = max(0, round(self._random.gauss(self._world.requests, math.sqrt(self._world.requests))))
        middle = math.log(self._world.latency_ms)
        return of(self._random.lognormvariate(middle, 0.15) for _ in range(requests))


def _moved(sketch: Sketch, factor: float) -> Sketch:
    """All values times `factor`, to the next bin."""
    bins = round(math.log(factor) / _LOG_GAMMA)
    moved = {at + bins: count for at, count in sketch.bins.items()}
    return Sketch(moved, sketch.zeros, sketch.total * factor, sketch.largest * factor)
