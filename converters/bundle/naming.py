"""Names that the source carries for its classes, given to post-processing that has none of its own.

Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import structs

from edgekit.manifest import Step, TensorSpec


@dataclass(frozen=True)
class Named:
    """`left` are the names where no step took them."""

    steps: tuple[Step, ...]
    left: tuple[str, ...]


def named(steps: Sequence[Step], outputs: Sequence[TensorSpec], labels: tuple[str, ...]) -> Named:
    """Every `top_k` without labels gets those of the source, if its output has as many entries."""
    sizes = {spec.name: spec.shape[-1] if spec.shape else None for spec in outputs}

    def takes(step: Step) -> bool:
        fits = sizes.get(str(step.args.get("output"))) == len(labels)
        return step.op == "top_k" and bool(labels) and fits and not step.args.get("labels")

    made = tuple(
        structs.replace(step, args={**step.args, "labels": list(labels)}) if takes(step) else step
        for step in steps
    )
    return Named(made, () if any(map(takes, steps)) else labels)
