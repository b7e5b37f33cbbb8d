"""The one error budget of a rollout.

Always true
 1. Evidence of all gates and all stages adds up to one weighted mean of e-values: a release that is no worse is stopped
    with a chance of at most `ALPHA`, whatever the number of gates, stages and looks.
 2. What a closed stage found stays in the sum; stages to come count as one, which is no evidence.
 3. Resuming against the evidence does not start a new budget: what comes after is judged within half of the stage's.
"""

import math
from collections.abc import Mapping, Sequence

import msgspec

from fleet.rules.gates import Gate

ALPHA = 0.05
STOP = 1 / ALPHA
# A harm shows in the first stage that has it; each later stage has fewer of the surprises left.
STAGE_RATIO = 0.45
_WEIGHTS = {"error_rate": 0.22, "lost": 0.40, "install_failures": 0.10}
_USUAL_WEIGHT = 0.28


class Spent(msgspec.Struct, frozen=True):
    """What the stages so far have used, and found.

    `closed` has the evidence of each closed stage; `found` what they saw of a gate, by its text: harm and its standard
    error; `absent` the share of devices that are usually away; `resumed` how often the operator overruled evidence.
    """

    closed: tuple[float, ...] = ()
    found: Mapping[str, tuple[tuple[float, float], ...]] = {}
    absent: float = 0.0
    resumed: int = 0


def stage_weights(count: int) -> tuple[float, ...]:
    parts = [STAGE_RATIO**k for k in range(count)]
    return tuple(part / sum(parts) for part in parts)


def gate_weights(gates: Sequence[Gate]) -> dict[str, float]:
    """By text. Gates on the same metric share its part, and so do all latencies; weak gates have none."""
    judged = [gate for gate in gates if gate.reference != "before"]
    kinds: dict[str, list[Gate]] = {}
    for gate in judged:
        kind = "latency" if gate.metric.startswith("latency") else gate.metric
        kinds.setdefault(kind, []).append(gate)
    whole = sum(_WEIGHTS.get(kind, _USUAL_WEIGHT) for kind in kinds)
    return {
        gate.text: _WEIGHTS.get(kind, _USUAL_WEIGHT) / whole / len(those)
        for kind, those in kinds.items()
        for gate in those
    }


def total(spent: Spent, evidence: float, stage: int, stages: int) -> float:
    """The budget's sum with the open stage's evidence; at `STOP` the rollout stops."""
    weights = stage_weights(stages)
    halved = weights[stage] * 0.5**spent.resumed
    closed = math.fsum(w * e for w, e in zip(weights, spent.closed, strict=False))
    return closed + halved * evidence + (weights[stage] - halved) + sum(weights[stage + 1 :])
