"""How far a build is: the steps that it knows of, and which of them are done. Pure; the caller supplies the time.

Always true
 1. A step is done once, however often it is said; nothing done becomes undone.
 2. What is left is told from what the done steps took, weighed by what such steps usually take; never before a
    twentieth is done.
 3. What comes to be known on the way is expected from then on: the share that is done may fall by it, never the number.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["make", "repair", "trial", "measure", "write"]
# What a step usually takes beside others: making and judging one candidate, one try of its repair, one trial of a search,
# timing all of a target, its bundles.
WEIGHTS: Mapping[Kind, float] = {"make": 1.0, "repair": 1.0, "trial": 1.0, "measure": 3.0, "write": 1.0}


@dataclass
class Step:
    """`what` is a candidate's name where the kind has one."""

    kind: Kind
    target: str
    what: str = ""
    is_done: bool = False


@dataclass
class Steps:
    """`changed` hears of each change; `target` is the one whose turn it is, empty while all are worked on together."""

    changed: Callable[["Steps"], None] = lambda _: None
    target: str = ""
    steps: list[Step] = field(default_factory=list)

    def expect(self, target: str, candidates: Iterable[str]) -> None:
        """All that a target asks for."""
        self.steps += [Step("make", target, name) for name in candidates]
        self.steps += [Step("measure", target), Step("write", target)]
        self.changed(self)

    def expect_more(self, target: str, kind: Kind, count: int, what: str = "") -> None:
        """What may be needed besides, as soon as that is known; `finish` is told when no more of it comes."""
        self.steps += [Step(kind, target, what) for _ in range(count)]
        self.changed(self)

    def count(self, target: str, kind: Kind, what: str = "") -> None:
        """One of several like it is done."""
        waiting = (
            step
            for step in self.steps
            if (step.kind, step.target, step.what) == (kind, target, what) and not step.is_done
        )
        self._finish([step for step in [next(waiting, None)] if step])

    def enter(self, target: str) -> None:
        self.target = target
        self.changed(self)

    def made(self, candidate: str) -> None:
        """The first step not yet done that makes this candidate: targets ask in the order in which they were expected."""
        waiting = (
            step for step in self.steps if step.kind == "make" and step.what == candidate and not step.is_done
        )
        self._finish([step for step in [next(waiting, None)] if step])

    def made_for(self, target: str, candidate: str) -> None:
        """The candidate is there for this target, whoever made it."""
        self._finish(
            [
                step
                for step in self.steps
                if (step.kind, step.target, step.what) == ("make", target, candidate)
            ]
        )

    def finish(self, target: str, kind: Kind | None = None, what: str | None = None) -> None:
        """A target's steps of one kind (and candidate), or all of them."""
        self._finish(
            [
                step
                for step in self.steps
                if step.target == target and kind in (None, step.kind) and what in (None, step.what)
            ]
        )

    @property
    def done(self) -> int:
        return sum(step.is_done for step in self.steps)

    @property
    def total(self) -> int:
        return len(self.steps)

    @property
    def share(self) -> float:
        """0..1, by weight."""
        whole = sum(WEIGHTS[step.kind] for step in self.steps)
        return sum(WEIGHTS[step.kind] for step in self.steps if step.is_done) / whole if whole else 0.0

    def left_s(self, elapsed_s: float) -> float | None:
        """Seconds that are probably left, if the rest goes as what was done."""
        return elapsed_s * (1 - self.share) / self.share if self.share >= 0.05 else None

    def _finish(self, steps: Iterable[Step]) -> None:
        for step in steps:
            step.is_done = True
        self.changed(self)
