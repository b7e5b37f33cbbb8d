"""Which candidate a profile gets.

Pure: contract, figures and measured ratios in; the pick, alternates and a reason for each candidate out.

Always true
 1. What misses the contract, a met-able budget, or breaks on corrupted inputs is never picked and never an alternate.
 2. What cannot be decided is picked only when the caller accepts uncertainty.
 3. Measured latencies rank; estimates never do: without measurements the profile's order of engines and the precision
    rule choose, and budgets on latency and memory stay unverified. So does a budget on latency where the times are of
    another kind of machine than the profile's: they rank, and that is all.
 4. What was judged on a few samples only (`few`) counts as accurate, whatever these say. If such a one is picked,
    all have to be judged in full: so what is picked at last is what would be picked had all been.
 5. A difference inside the interval of the paired ratio is no difference: ties go to the smaller artifact. But a wide
    interval is no excuse: what another candidate clearly beats is not picked, and what took much longer than the
    fastest is not picked for being small.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from converters.judge.accuracy import Verdict
from edgekit.evidence import Outcome
from edgekit.manifest import Contract

MAX_ALTERNATES = 3
MEGABYTE = 1_000_000
# On a restless machine an interval may hold 1 although the one takes twice the other's time: that is no tie.
MOST_TIED = 1.1
Status = Literal["picked", "alternate", "lost", "refused"]


class Ratio(msgspec.Struct, frozen=True):
    """Latency of one candidate over another's, paired by round: median and 95 % interval."""

    low: float
    median: float
    high: float

    @property
    def is_tie(self) -> bool:
        return self.low <= 1 <= self.high


class Contender(msgspec.Struct, frozen=True):
    """What selection knows of a candidate. Latency and memory are None unless measured for the profile.

    `engine_rank` is the profile's preference (0 first), `scheme_rank` orders schemes of one precision.
    """

    recipe: str
    engine_rank: int
    precision: str
    scheme_rank: int
    size_bytes: int
    verdict: Verdict
    verdict_reason: str
    # Of how many samples its figures are, where that is not all of them; 0 otherwise.
    few: int = 0
    is_refused_on_shift: bool = False
    shift_reason: str = ""
    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None
    # Whether these times are the profile's own; others rank, and meet or miss no budget.
    is_own_time: bool = True
    memory_mb: float | None = None
    # What it takes at least, where a compiler says so: enough to miss a limit, never to meet one.
    least_memory_mb: float | None = None
    # Why the board cannot hold it, whatever the contract says; empty if it fits.
    misfit: str = ""


class Decision(msgspec.Struct, frozen=True):
    status: Status
    reason: str


class Selection(msgspec.Struct, frozen=True):
    """`decisions` has every contender; `closest` is the least bad one where nothing was picked."""

    picked: str | None
    alternates: tuple[str, ...]
    decisions: dict[str, Decision]
    budgets: dict[str, Outcome]
    closest: str | None


def select(
    contenders: Sequence[Contender],
    contract: Contract,
    ratios: Mapping[tuple[str, str], Ratio],
    *,
    is_int8_faster: bool,
    accept_uncertain: bool,
) -> Selection:
    """`ratios[a, b]` is a's latency over b's; empty without measurements."""
    decisions: dict[str, Decision] = {}
    standing: list[Contender] = []
    for contender in contenders:
        objection = _objection(contender, contract, accept_uncertain=accept_uncertain)
        if objection:
            decisions[contender.recipe] = Decision("refused", objection)
        else:
            standing.append(contender)
    if not standing:
        closest = min(contenders, key=_badness, default=None)
        return Selection(None, (), decisions, {}, closest.recipe if closest else None)
    if all(contender.latency_p50_ms is not None for contender in standing):
        picked, reason = _fastest(standing, ratios)
        alternates: list[Contender] = []
    else:
        order = sorted(standing, key=lambda item: _preference(item, is_int8_faster=is_int8_faster))
        picked, alternates = order[0], order[1 : 1 + MAX_ALTERNATES]
        reason = (
            "the profile's preferred engine, and there the"
            f" {'lowest' if is_int8_faster else 'highest'} precision that meets the contract; nothing was measured on"
            " this hardware"
        )
    decisions[picked.recipe] = Decision("picked", _with_doubt(reason, picked))
    for contender in standing:
        if contender in alternates:
            told = "meets the contract; to be measured on the device against the pick"
            decisions[contender.recipe] = Decision("alternate", _with_doubt(told, contender))
        elif contender is not picked:
            objection = _inaccuracy(contender, accept_uncertain=True) if contender.few else ""
            decisions[contender.recipe] = (
                Decision("refused", f"{objection}; seen on {contender.few} samples")
                if objection
                else Decision("lost", _why_lost(contender, picked, ratios))
            )
    names = tuple(contender.recipe for contender in alternates)
    return Selection(picked.recipe, names, decisions, budgets(picked, contract), None)


def budgets(contender: Contender, contract: Contract) -> dict[str, Outcome]:
    """The outcome of every budget for one contender."""
    return {
        "latency_p95_ms": _outcome(
            contender.latency_p95_ms if contender.is_own_time else None, contract.latency_p95_ms
        ),
        "memory_mb": _memory_outcome(contender, contract.memory_mb),
        "size_mb": _outcome(contender.size_bytes / MEGABYTE, contract.size_mb),
    }


def _memory_outcome(contender: Contender, limit: float | None) -> Outcome:
    least = contender.least_memory_mb
    if limit is not None and least is not None and least > limit:
        return "missed"
    return _outcome(contender.memory_mb, limit)


def _outcome(value: float | None, limit: float | None) -> Outcome:
    if limit is None:
        return "no-limit"
    if value is None:
        return "unverified"
    return "met" if value <= limit else "missed"


def _objection(contender: Contender, contract: Contract, *, accept_uncertain: bool) -> str:
    """Why this one must not be shipped; empty if it may."""
    if not contender.few and (objection := _inaccuracy(contender, accept_uncertain=accept_uncertain)):
        return objection
    if contender.misfit:
        return contender.misfit
    values = {
        "latency_p95_ms": contender.latency_p95_ms,
        "memory_mb": contender.memory_mb if contender.memory_mb is not None else contender.least_memory_mb,
        "size_mb": contender.size_bytes / MEGABYTE,
    }
    missed = [name for name, outcome in budgets(contender, contract).items() if outcome == "missed"]
    return "; ".join(f"{name}: {values[name]:.4g} above {getattr(contract, name):g}" for name in missed)


def _inaccuracy(contender: Contender, *, accept_uncertain: bool) -> str:
    """What speaks against its accuracy; empty if nothing does."""
    if contender.verdict == "missed":
        return f"accuracy: {contender.verdict_reason}"
    if contender.verdict == "undecided" and not accept_uncertain:
        return f"accuracy undecided: {contender.verdict_reason}"
    if contender.is_refused_on_shift:
        return f"accuracy: {contender.shift_reason}"
    return ""


def _fastest(standing: Sequence[Contender], ratios: Mapping[tuple[str, str], Ratio]) -> tuple[Contender, str]:
    # Where each of them is beaten by another, in a circle, the averages decide.
    unbeaten = [item for item in standing if not _is_beaten(item, standing, ratios)] or standing
    leader = min(
        unbeaten, key=lambda item: (_mean_log_ratio(item, unbeaten, ratios), item.size_bytes, item.recipe)
    )
    tied = [item for item in unbeaten if item is not leader and _is_tie(item, leader, ratios)]
    if not tied:
        return leader, "fastest of those that meet the contract"
    best = min((leader, *tied), key=lambda item: (item.size_bytes, item.recipe))
    others = ", ".join(item.recipe for item in (leader, *tied) if item is not best)
    return best, f"as fast as {others} within the measurement, and the smallest"


def _is_tie(contender: Contender, leader: Contender, ratios: Mapping[tuple[str, str], Ratio]) -> bool:
    ratio = ratios.get((contender.recipe, leader.recipe))
    return ratio is not None and ratio.is_tie and ratio.median <= MOST_TIED


def _is_beaten(
    contender: Contender, standing: Sequence[Contender], ratios: Mapping[tuple[str, str], Ratio]
) -> bool:
    """Whether some other candidate is faster beyond the measurement's doubt.

    One average over all others would not tell: whoever was dropped from a race early was seen in other moments.
    """
    pairs = (ratios.get((contender.recipe, other.recipe)) for other in standing if other is not contender)
    return any(pair is not None and pair.low > 1 for pair in pairs)


def _mean_log_ratio(
    contender: Contender, standing: Sequence[Contender], ratios: Mapping[tuple[str, str], Ratio]
) -> float:
    """How a contender does against all others, in pairs: negative is faster."""
    pairs = [ratios.get((contender.recipe, other.recipe)) for other in standing if other is not contender]
    return sum(math.log(pair.median) for pair in pairs if pair is not None)


def _preference(contender: Contender, *, is_int8_faster: bool) -> tuple[int, int, int, str]:
    widths = {"int8": 0, "bf16": 1, "fp16": 1, "fp32": 2}
    width = widths.get(contender.precision, 3)
    return (
        contender.engine_rank,
        width if is_int8_faster else -width,
        contender.scheme_rank,
        contender.recipe,
    )


def _why_lost(contender: Contender, picked: Contender, ratios: Mapping[tuple[str, str], Ratio]) -> str:
    ratio = ratios.get((contender.recipe, picked.recipe))
    if ratio is None:
        return f"after {picked.recipe} in the profile's order"
    if _is_tie(contender, picked, ratios):
        return f"as fast as {picked.recipe} within the measurement, but larger"
    told = f"takes {ratio.median:.2f} x the time of {picked.recipe} ({ratio.low:.2f} to {ratio.high:.2f})"
    return f"{told}, so it was judged on {contender.few} samples only" if contender.few else told


def _with_doubt(reason: str, contender: Contender) -> str:
    if contender.verdict != "undecided":
        return reason
    return f"{reason}; accepted although undecided: {contender.verdict_reason}"


def _badness(contender: Contender) -> tuple[int, bool, float]:
    severity = {"met": 0, "undecided": 1, "missed": 2}[contender.verdict]
    return severity, contender.is_refused_on_shift, contender.latency_p95_ms or float(contender.size_bytes)
