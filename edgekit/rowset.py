"""Outputs whose length follows from the data: what a detector finds, what a mask selects.

A manifest's section, and the same thing inside a build. Needs no numpy.

Always true
 1. All outputs of a set have the same length in every answer; one row of all of them is one finding.
 2. The order of the rows means nothing: sets are compared as sets (`edgekit.rows`).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

if TYPE_CHECKING:  # the manifest knows this module
    from edgekit.manifest import Manifest, TensorSpec


class RowSet(msgspec.Struct, frozen=True):
    """`axes` says along which axis of which outputs the rows stand, `bound` how many there are at most: what is recorded
    and compared is padded to it, and a manifest's shapes have it there.

    `reach` has, for each entry of a row over all outputs, how far it may lie from another row's for the two to be the same
    finding; 0 for whole numbers, which have to be equal.
    """

    axes: dict[str, Annotated[int, Meta(ge=0)]]
    bound: Annotated[int, Meta(ge=1)]
    reach: tuple[Annotated[float, Meta(ge=0)], ...]

    def trouble(self, specs: Sequence["TensorSpec"]) -> str:
        """What a manifest with these outputs has wrong; empty if nothing."""
        by_name = {spec.name: spec for spec in specs}
        width = 0
        for name, axis in self.axes.items():
            shape = by_name[name].shape if name in by_name else ()
            if axis >= len(shape) or shape[axis] != self.bound:
                return f"says that output {name!r} has up to {self.bound} rows along axis {axis}, which it has not"
            size = 1
            for dim in (*shape[:axis], *shape[axis + 1 :]):
                size *= dim or 0
            width += size
        if not self.axes or width != len(self.reach):
            return f"has rows of {width} entries, and says of {len(self.reach)} how far they may lie apart"
        return ""


def opened(sets: Sequence[RowSet], specs: Sequence["TensorSpec"]) -> tuple["TensorSpec", ...]:
    """The outputs as callers get them: open along the axis of the rows."""
    axes: Mapping[str, int] = {name: axis for one in sets for name, axis in one.axes.items()}
    return tuple(
        msgspec.structs.replace(
            spec, shape=(*spec.shape[: axes[spec.name]], None, *spec.shape[axes[spec.name] + 1 :])
        )
        if spec.name in axes
        else spec
        for spec in specs
    )


def described(manifest: "Manifest") -> dict[str, str]:
    """Each output as people read it, such as "float32 ?x6, up to 64 rows": the bound is no part of its shape."""
    bounds = {name: one.bound for one in manifest.sets or () for name in one.axes}
    return {
        spec.name: spec.describe().partition(": ")[2]
        + (f", up to {bounds[spec.name]} rows" if spec.name in bounds else "")
        for spec in manifest.given
    }
