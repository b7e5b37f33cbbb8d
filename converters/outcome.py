"""What a build is asked, and what it answers; light enough to load before any engine or converter."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from converters.report.sheet import Sheet
from edgekit.errors import ContractMissedError


@dataclass(frozen=True)
class Options:
    """`cache` None converts everything anew; `recipes` are patterns of recipe names, none meaning all.

    `jobs` worker processes make candidates side by side; 0 makes them in this process, where a converter's crash is the
    build's. `search` is how many trials go beyond the fixed recipes, for each target. `lock`: `use` one that is up to date, `write` a new one after trying everything, `require` one that is up to date.
    """

    out: Path
    accept_uncertain: bool = False
    strict: bool = False
    allow_code: bool = True
    cache: Path | None = None
    recipes: tuple[str, ...] = ()
    jobs: int = 1
    search: int = 0
    lock: Literal["use", "write", "require"] = "use"


@dataclass(frozen=True)
class Outcome:
    """`document` is what `result.json` holds; `missed` has a sentence for each profile that got no bundle."""

    document: dict[str, Any]
    sheets: tuple[Sheet, ...]
    missed: tuple[str, ...]
    report: Path

    def require_met(self) -> None:
        """Raises: ContractMissedError."""
        if self.missed:
            raise ContractMissedError("; ".join(self.missed))
