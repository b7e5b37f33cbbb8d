"""What is done about an input that the bundle's guard finds unfamiliar."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit import guard
from edgekit.guard import Watch
from edgekit.guard_section import GuardAnswer
from edgekit.manifest import Manifest
from edgekit.tensors import Array

# What is told of a distance that is no number.
BEYOND = 1e6


@dataclass(frozen=True)
class Guarded:
    """`answer` is what the caller of an unfamiliar input gets."""

    watch: Watch
    answer: GuardAnswer

    @property
    def refuses(self) -> bool:
        """Whether the model does not answer."""
        return self.answer != "flag"

    def excess(self, inputs: Mapping[str, Array]) -> float:
        """How many times further away than the threshold; 0 for a familiar input."""
        found = self.watch.excess(inputs)
        if found <= 1:
            return 0.0
        return found if math.isfinite(found) else BEYOND

    def told(self, excess: float) -> str:
        return f"the input is unlike what this model was made with: {excess:.3g} times as far from it as is taken for familiar"


def guarded_by(manifest: Manifest, slot: Path, answer: GuardAnswer | None = None) -> Guarded | None:
    """A bundle's guard; None if it has none. `answer` is the device's word, which counts more. Raises: BundleError."""
    watch = guard.load(manifest, slot)
    return None if watch is None else Guarded(watch, answer or watch.guard.answer)
