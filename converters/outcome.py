"""What a build is asked, and what it answers; light enough to load before any engine or converter."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from converters.sheet import Sheet
from edgekit.errors import ContractMissedError, GuiltyLayer, Tried, UsageError

Lock = Literal["use", "write", "require"]

# Layers named of each candidate that loses too much.
LAYERS = 5


def sensible_jobs() -> int:
    """Two where there are cores for it: converters take gigabytes, and use several cores themselves."""
    return min(2, len(os.sched_getaffinity(0)))


@dataclass(frozen=True)
class Options:
    """`cache` None converts everything anew; `recipes` are patterns of recipe names, none meaning all.

    `jobs` worker processes make candidates side by side; 0 makes them in this process, where a converter's crash is the
    build's. `search` is how many trials go beyond the fixed recipes, for each target. `lock`: `use` one that is up to date,
    `write` a new one after trying everything, `require` one that is up to date.
    """

    out: Path
    accept_uncertain: bool = False
    strict: bool = False
    allow_code: bool = True
    cache: Path | None = None
    recipes: tuple[str, ...] = ()
    jobs: int = 1
    search: int = 0
    lock: Lock = "use"
    # Seconds that making one candidate, telling its layers apart, or one trial of a search may take.
    time_budget_s: float = 600.0

    def __post_init__(self) -> None:
        """Raises: UsageError for what no build can be asked."""
        if self.out.exists() and not self.out.is_dir():
            raise UsageError(f"out: {self.out} is a file; give a folder")
        for name in ("jobs", "search"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise UsageError(f"{name} = {value!r}: give a whole number, 0 or more")
        if not self.time_budget_s > 0:
            raise UsageError(f"time_budget_s = {self.time_budget_s!r}: give seconds, more than 0")
        if self.lock not in get_args(Lock):
            raise UsageError(f"lock = {self.lock!r}: give one of {', '.join(get_args(Lock))}")


@dataclass(frozen=True)
class Outcome:
    """`document` is what `result.json` holds; `missed` has a sentence for each profile that got no bundle, `cut` what was
    ended at its limit of time.
    """

    document: dict[str, Any]
    sheets: tuple[Sheet, ...]
    missed: tuple[str, ...]
    report: Path
    cut: tuple[str, ...] = ()

    def require_met(self) -> None:
        """Raises: ContractMissedError."""
        if self.missed:
            raise ContractMissedError("; ".join(self.missed), tried(self.sheets), guilty(self.sheets))


def tried(sheets: Sequence[Sheet]) -> tuple[Tried, ...]:
    """All candidates of the profiles that got no bundle."""
    return tuple(
        Tried(
            profile=sheet.profile,
            recipe=item.recipe,
            status=item.status,
            reason=item.reason,
            accuracy=item.accuracy.value if item.accuracy else None,
            drop=item.accuracy_drop.value if item.accuracy_drop else None,
            drop_bound_95=item.accuracy_drop.high if item.accuracy_drop else None,
            # An estimate meets and misses nothing.
            latency_p95_ms=item.latency_p95_ms.value
            if item.latency_p95_ms and item.latency_p95_ms.how == "measured"
            else None,
            memory_mb=item.memory_mb.value if item.memory_mb else None,
            size_bytes=item.size_bytes,
        )
        for sheet in sheets
        if not sheet.picked
        for item in sheet.candidates
    )


def guilty(sheets: Sequence[Sheet]) -> tuple[GuiltyLayer, ...]:
    """The layers that lose most in those of them whose layers were told apart, as they were ranked."""
    return tuple(
        GuiltyLayer(sheet.profile, item.recipe, layer.name, layer.op_type, layer.snr_db, layer.divergence)
        for sheet in sheets
        if not sheet.picked
        for item in sheet.candidates
        for layer in item.layers[:LAYERS]
    )
