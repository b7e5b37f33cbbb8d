"""What is asked for of a plan, and where in the findings the answers stand.

Always true
 1. An order is known once everything it asks for is found, or its artifact could not be made.
 2. Where the process that had an order died, the first step of it that is not known takes the blame.
"""

from dataclasses import dataclass, replace
from typing import Any

from converters.recipes.recipes import Plan
from converters.work.findings import Findings
from converters.work.keys import Keys

# Of every order.
MADE = "made"


@dataclass(frozen=True)
class Order:
    """One plan to make, to run on the judged half (or a few samples of it) and on the search half, and to tell its layers'
    errors of.

    `limit_s` is what is left for it where that is less than the pool's limit; of a trial, running it counts too.
    """

    plan: Plan
    threads: int
    is_judged: bool = False
    is_searched: bool = False
    is_analysed: bool = False
    is_glimpsed: bool = False
    is_trial: bool = False
    limit_s: float = float("inf")

    @property
    def is_float(self) -> bool:
        return self.plan.recipe.precision != "int8"


def whole(plan: Plan, threads: int, limit_s: float = float("inf")) -> Order:
    """All that a candidate needs."""
    return Order(plan, threads, is_judged=True, is_searched=plan.recipe.is_searched_over, limit_s=limit_s)


def glimpse(plan: Plan, threads: int) -> Order:
    """Enough to time a candidate, and to show about what it loses."""
    return Order(plan, threads, is_glimpsed=True)


@dataclass(frozen=True)
class Ledger:
    """Orders against what is found."""

    findings: Findings
    keys: Keys

    def rest(self, order: Order) -> Order | None:
        """What of an order is not known yet; None if it is."""
        left = {kind for kind, table, at in self._asked(order) if at not in table}
        made = self.findings.artifacts.get(self.keys.artifact(order.plan))
        if not left or isinstance(made, Exception):
            return None
        return replace(
            order,
            is_glimpsed="is_glimpsed" in left,
            is_judged="is_judged" in left,
            is_searched="is_searched" in left,
            is_analysed="is_analysed" in left,
        )

    def blame(self, order: Order, error: Exception) -> None:
        """The process that had the order died: at the first step that is not known, as far as can be told."""
        table, at = next((table, at) for _, table, at in self._asked(order) if at not in table)
        table[at] = error

    def shared(self, order: Order) -> str:
        """Orders that share a conversion have the same name here."""
        return self.keys.conversion(order.plan)

    def _asked(self, order: Order) -> list[tuple[str, dict[str, Any], str]]:
        """What an order asks for, and where the findings of it will stand, in the order in which they are made."""
        made, run = self.keys.artifact(order.plan), self.keys.run(order.plan, order.threads)
        places: list[tuple[str, dict[str, Any], str]] = [
            (MADE, self.findings.artifacts, made),
            ("is_glimpsed", self.findings.glimpsed, run),
            ("is_judged", self.findings.evaluated, run),
            ("is_searched", self.findings.searched, run),
            ("is_analysed", self.findings.layers, made),
        ]
        return [place for place in places if place[0] == MADE or getattr(order, place[0])]
