"""What a manifest says of a bundle's guard. Needs no numpy: the agent's supervisor reads manifests."""

from collections.abc import Collection, Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

# More than the statistics of as many features as a guard may have.
MAX_BYTES = 256 * 1024
GuardAnswer = Literal["flag", "refuse", "pass"]


class Guard(msgspec.Struct, frozen=True):
    """Which inputs are unfamiliar: those further than `threshold` from what the model was made with (`edgekit.guard`).

    `statistics` is the member that says how far one is, from `inputs` alone, after pre-processing; `grid` is what they are
    averaged to, along each axis. `false_alarms` is the rate of familiar inputs that the threshold was set for. `answer` is
    what a caller gets for one that is caught, unless the device says otherwise; the address that `pass` needs is always the
    device's. `golden_caught` and `turned_caught` are how many of the self-test's inputs the build found unfamiliar, as they
    are and turned round, which a device must reproduce.
    """

    statistics: str
    inputs: tuple[str, ...]
    threshold: Annotated[float, Meta(gt=0, le=1e12)]
    false_alarms: Annotated[float, Meta(gt=0, lt=1)]
    golden_caught: Annotated[int, Meta(ge=0)]
    turned_caught: Annotated[int, Meta(ge=0)]
    answer: GuardAnswer = "flag"
    grid: Annotated[int, Meta(ge=1, le=8)] = 8

    def trouble(self, sizes: Mapping[str, int], names: Collection[str]) -> str:
        """What is wrong with it in a bundle of files of these sizes and a model of these inputs; empty if nothing."""
        if self.statistics not in sizes:
            return f"refers to {self.statistics!r}, which is not among its files"
        if sizes[self.statistics] > MAX_BYTES:
            return (
                f"lists {sizes[self.statistics]} bytes of {self.statistics}; a guard has at most {MAX_BYTES}"
            )
        if (
            not self.inputs
            or not set(names).issuperset(self.inputs)
            or len(set(self.inputs)) < len(self.inputs)
        ):
            return f"guards {', '.join(self.inputs) or 'nothing'}, which are no inputs of the model"
        return ""
