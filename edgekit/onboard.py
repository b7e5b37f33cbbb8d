"""What boards measured of a release's bundles for one profile, and which of them that makes the pick. Pure.

Always true
 1. A bundle is picked only if every board ran its golden data with the right outputs, and none measured it above a budget
    of the contract.
 2. What is picked already stays, unless it may not be picked any more, or another is faster beyond doubt: the interval of
    the paired ratio, over all boards, lies below 1.
 3. A figure that is written says which boards it is from; what they did not measure stays as it was.
"""

from collections.abc import Collection, Mapping, Sequence
from statistics import median

import msgspec
from msgspec.structs import replace

from edgekit import pairs
from edgekit.evidence import BuildEvidence, CandidateEvidence, Figure, How, Outcome, Where
from edgekit.manifest import Contract
from edgekit.pairs import Interval
from edgekit.wire.commands import Measured, Timed

# Board → what it measured.
Boards = Mapping[str, Measured]


class Standing(msgspec.Struct, frozen=True):
    """One bundle: its time over the present pick's, over all boards (None where either was not timed on all), and why it
    may not be picked; empty if it may.
    """

    sha256: str
    ratio: Interval | None
    objection: str = ""


class Choice(msgspec.Struct, frozen=True):
    """`picked` is a digest, empty where no bundle may be picked; `reason` says why in words."""

    picked: str
    reason: str
    standings: tuple[Standing, ...]


def choose(boards: Boards, digests: Sequence[str], present: str, contract: Contract) -> Choice:
    """The pick among `digests`, of which `present` is the one so far."""
    standings = tuple(_standing(boards, one, present, contract) for one in digests)
    sound = [one for one in standings if not one.objection and one.ratio is not None]
    own = next(one for one in standings if one.sha256 == present)
    where = "the board" if len(boards) == 1 else f"{len(boards)} boards"
    if not sound and not own.objection:
        return Choice(present, f"nothing else could be compared with it on {where}", standings)
    if not sound:
        # Without the present pick there is nothing to compare by: who alone remains may still stand.
        others = [one for one in standings if not one.objection]
        picked = others[0].sha256 if len(others) == 1 else ""
        return Choice(picked, f"the one picked before may not be: {own.objection}", standings)
    best = min(sound, key=_middle)
    if own.objection:
        return Choice(best.sha256, f"the one picked before may not be: {own.objection}", standings)
    faster = [one for one in sound if one.sha256 != present and one.ratio is not None and one.ratio.high < 1]
    if not faster:
        return Choice(present, f"none is faster beyond doubt on {where}", standings)
    best = min(faster, key=_middle)
    return Choice(
        best.sha256, f"{_told(best.ratio)} of the time of the one picked before, on {where}", standings
    )


def _middle(one: Standing) -> float:
    return one.ratio.median if one.ratio is not None else float("inf")


def _told(ratio: Interval | None) -> str:
    return "" if ratio is None else f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def _standing(boards: Boards, sha256: str, present: str, contract: Contract) -> Standing:
    ours, theirs = _of(boards, sha256), _of(boards, present)
    objections = [told for board, one in ours.items() if (told := _objection(board, one, contract))]
    if len(ours) < len(boards):
        objections.append("not every board measured it")
    both = [(ours[board].rounds_ms, theirs[board].rounds_ms) for board in ours.keys() & theirs.keys()]
    is_whole = len(both) == len(boards) and all(mine and other for mine, other in both)
    return Standing(sha256, pairs.pooled(both) if is_whole else None, "; ".join(objections))


def _of(boards: Boards, sha256: str) -> dict[str, Timed]:
    found = {}
    for board, measured in boards.items():
        one = next((one for one in measured.bundles if one.test.sha256 == sha256), None)
        if one is not None:
            found[board] = one
    return found


def _objection(board: str, one: Timed, contract: Contract) -> str:
    if not one.test.passed:
        return f"it fails its self-test on {board}: {one.test.reason}"
    if contract.latency_p95_ms is not None and one.p95_ms > contract.latency_p95_ms:
        return f"p95 is {one.p95_ms:.3g} ms on {board}, the contract says {contract.latency_p95_ms:g} ms"
    if contract.memory_mb is not None and one.memory_mb is not None and one.memory_mb > contract.memory_mb:
        return f"it takes {one.memory_mb:.0f} MB on {board}, the contract says {contract.memory_mb:g} MB"
    return ""


# -- evidence ------------------------------------------------------------------------------------------------------


def recorded(
    predicate: BuildEvidence, boards: Boards, recipes: Mapping[str, str], own: str, choice: Choice
) -> BuildEvidence:
    """The evidence of the bundle `own`, with what boards measured of those in `recipes` (digest → recipe)."""
    by_recipe = {recipe: digest for digest, recipe in recipes.items()}
    standings = {one.sha256: one for one in choice.standings}
    candidates = tuple(
        _candidate(item, boards, standings[by_recipe[item.recipe]], choice)
        if item.recipe in by_recipe
        else item
        for item in predicate.candidates
    )
    found = _of(boards, own)
    timed = {board: one for board, one in found.items() if one.rounds_ms}
    if not timed:
        return replace(predicate, candidates=candidates)
    return replace(
        predicate,
        candidates=candidates,
        latency_p50_ms=_figure(boards, timed, "p50_ms", "ms"),
        latency_p95_ms=_figure(boards, timed, "p95_ms", "ms"),
        memory_mb=_memory(boards, timed) or predicate.memory_mb,
        budgets=_budgets(predicate.budgets, predicate.contract, timed.values()),
    )


def _candidate(
    item: CandidateEvidence, boards: Boards, standing: Standing, choice: Choice
) -> CandidateEvidence:
    is_picked = standing.sha256 == choice.picked
    timed = {board: one for board, one in _of(boards, standing.sha256).items() if one.rounds_ms}
    ratio = f"{_told(standing.ratio)} of the time of the one picked before" if standing.ratio else ""
    item = replace(
        item,
        status="picked" if is_picked else "refused" if standing.objection else "alternate",
        reason=choice.reason if is_picked else standing.objection or ratio or item.reason,
    )
    if not timed:
        return item
    return replace(
        item,
        latency_p50_ms=_figure(boards, timed, "p50_ms", "ms"),
        latency_p95_ms=_figure(boards, timed, "p95_ms", "ms"),
        memory_mb=_memory(boards, timed) or item.memory_mb,
    )


def _figure(boards: Boards, timed: Mapping[str, Timed], name: str, unit: str) -> Figure:
    """Of one board what it measured; of several the median over boards."""
    how: How = "measured"
    values = [getattr(one, name) for one in timed.values() if getattr(one, name) is not None]
    return Figure(round(median(values), 4), how, _where(boards, timed), unit)


def _memory(boards: Boards, timed: Mapping[str, Timed]) -> Figure | None:
    """The most on any board: what must fit."""
    values = [one.memory_mb for one in timed.values() if one.memory_mb is not None]
    return Figure(round(max(values), 1), "measured", _where(boards, timed), "MB") if values else None


def _where(boards: Boards, timed: Mapping[str, Timed]) -> Where:
    first = next(iter(timed))
    one, board = timed[first], boards[first]
    return Where(
        cpu=", ".join(sorted({boards[name].cpu for name in timed})),
        isa=board.isa,
        engine=one.engine,
        engine_version=one.engine_version,
        threads=one.threads,
        device=", ".join(sorted(timed)),
    )


def _budgets(
    budgets: Mapping[str, Outcome], contract: Contract, timed: Collection[Timed]
) -> dict[str, Outcome]:
    """What boards measured meets or misses; the rest stays as the build saw it."""
    found = dict(budgets)
    if contract.latency_p95_ms is not None:
        worst = max(one.p95_ms for one in timed)
        found["latency_p95_ms"] = "met" if worst <= contract.latency_p95_ms else "missed"
    taken = [one.memory_mb for one in timed if one.memory_mb is not None]
    if contract.memory_mb is not None and taken:
        found["memory_mb"] = "met" if max(taken) <= contract.memory_mb else "missed"
    return found
