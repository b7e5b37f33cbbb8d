"""How far what devices meet and give has moved from what their models were judged on."""

from typing import Literal

import msgspec

State = Literal["drifted", "moved", "well", "unknown"]


class Confidence(msgspec.Struct, frozen=True):
    """The mean probability of the likeliest class: at build, and what devices said in a day."""

    expected: float
    found: float


class Said(msgspec.Struct, frozen=True):
    """What devices say of one thing now: how many know it, at how many of them it has moved (an index above 0.2), and the mean
    index of these; of all where it has moved at none.
    """

    devices: int
    moved: int
    index: float

    @property
    def words(self) -> str:
        """In a sentence."""
        if not self.moved:
            return f"as it was (index {self.index:.2f})"
        where = "" if self.moved == self.devices == 1 else f" at {self.moved:,} of {self.devices:,} devices"
        return f"moved{where} (index {self.index:.2f}{' there' if self.moved < self.devices else ''})"


class DriftView(msgspec.Struct, frozen=True):
    """One bundle on the devices that run it.

    `named` is how many of them the fleet's rule names drifted. `said` has, by `SECTION/LABEL`, what each device that was heard
    in the last hour said last, what moved at most devices first; what none of them knows is not there.
    `anomalies` counts, by kind, a day's inputs that were refused, or answered and unlike all of the reference.
    """

    release: str
    profile: str
    sha256: str
    devices: int
    named: int = 0
    said: dict[str, Said] = {}
    confidence: dict[str, Confidence] = {}
    anomalies: dict[str, int] = {}

    @property
    def moved(self) -> int:
        """At how many devices the input that moved at most of them has."""
        return max((one.moved for label, one in self.said.items() if label.startswith("inputs/")), default=0)

    @property
    def state(self) -> State:
        if self.named:
            return "drifted"
        return "moved" if self.moved else "well" if self.said else "unknown"

    @property
    def words(self) -> str:
        """The one statement on it."""
        return {
            "drifted": f"drifted at {self.named:,} of {self.devices:,} devices",
            "moved": f"moved just now at {self.moved:,} of {self.devices:,} devices; drift is what lasts",
            "well": "as it was",
            "unknown": "no device knows yet: it takes half an hour of traffic at one window a minute",
        }[self.state]


class DriftAnswer(msgspec.Struct, frozen=True):
    """Bundles that devices run, those on most devices; what moved most first."""

    bundles: tuple[DriftView, ...] = ()
