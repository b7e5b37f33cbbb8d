"""How far what devices meet and give has moved from what their models were judged on."""

import msgspec


class Confidence(msgspec.Struct, frozen=True):
    """The mean probability of the likeliest class: at build, and what devices said in a day."""

    expected: float
    found: float


class DriftView(msgspec.Struct, frozen=True):
    """One bundle on the devices that run it.

    `named` is how many of them the fleet's rule names drifted. `indices` has, by `SECTION/LABEL`, the mean population
    stability index that devices said in the last hour, what moved most first; what none of them knows is not there.
    `anomalies` counts, by kind, a day's inputs that were refused, or answered and unlike all of the reference.
    """

    release: str
    profile: str
    sha256: str
    devices: int
    named: int = 0
    indices: dict[str, float] = {}
    confidence: dict[str, Confidence] = {}
    anomalies: dict[str, int] = {}


class DriftAnswer(msgspec.Struct, frozen=True):
    """Bundles that devices run, those on most devices; what moved most first."""

    bundles: tuple[DriftView, ...] = ()
