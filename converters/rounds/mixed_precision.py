"""Mending int8 candidates that miss the contract: ranges that hold all values, where the engine's quantizer cuts some off;
then the worst layers go back to float, as few as will do.

Always true
 1. Only the search half is looked at; the judged half judges what comes out, once: no try is run over it.
 2. What cannot win is left alone and says so; tries and time are bounded, and each step tells what it bought.
 3. A failing analysis or try costs its repair, never the build.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from converters import backends
from converters.judge.score import Score
from converters.judge.select import MEGABYTE, Ratio
from converters.measure import latency
from converters.measure.host import Host
from converters.measure.race import Timing
from converters.quantize.sensitivity import LayerError
from converters.recipes.recipes import Plan, Tuning
from converters.rounds import float_layers
from converters.rounds.candidates import Candidate
from converters.rounds.float_layers import Try
from converters.rounds.making import made
from converters.rounds.scoring import searched
from converters.rounds.timing import timed
from converters.work.orders import Order
from converters.work.workbench import Workbench
from edgekit import interrupt
from edgekit.manifest import Contract, Option
from edgekit.profile import Profile
from edgekit.quiet import first_line

LABEL, WIDE = "mixed", "wide"
# Seconds for all repairs of a profile; what a worker makes for longer is ended.
BUDGET_S = 240.0
# A try or an analysis that is begun gets this long, at least.
LEAST_S = 5.0
# An engine whose models, float and int8, take this much longer here than another's is no hope on another CPU either.
HOPELESS = 3.0
# Seconds for one quick comparison of two candidates.
QUICK_S = 0.8


@dataclass
class _Shop:
    """Where the candidates of one profile are mended; `times` are of a race that was run, where there is one."""

    bench: Workbench
    profile: Profile
    contract: Contract
    host: Host
    times: Timing | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def is_late(self) -> bool:
        return self.left_s <= 0

    @property
    def left_s(self) -> float:
        return BUDGET_S - (time.monotonic() - self.began)


def repaired(
    bench: Workbench,
    profile: Profile,
    contract: Contract,
    tried: Sequence[Candidate],
    host: Host,
    *,
    times: Timing | None = None,
) -> list[Candidate]:
    """The candidates, those that miss the contract with their layers' shares, and what was made of them. `times`: of a race
    of the candidates, if there was one on this host.
    """
    broken = [item for item in tried if item.stands and not _holds(item) and _is_mendable(item)]
    holding = [item for item in tried if item.stands and _holds(item)]
    shop = _Shop(bench, profile, contract, host, times)
    if not set(profile.precisions) - {"int8"}:
        # Nothing may go back to float; a refusal still names the layers at fault.
        return [_analysed(shop, item) if item in broken and not holding else item for item in tried]
    changed: dict[str, Candidate] = {}
    extra: list[Candidate] = []
    for item in broken:
        bench.steps.expect_more(profile.name, "repair", float_layers.MAX_TRIES, item.recipe)
    for item in _fastest_first(shop, broken, holding):
        objection = _not_worth(shop, item, [*holding, *extra])
        if objection:
            bench.tell(f"{item.recipe} {_miss(item)} and is not mended: {objection}")
            bench.steps.finish(profile.name, "repair", item.recipe)
            changed[item.recipe] = replace(item, notes=(*item.notes, f"not mended: {objection}"))
            continue
        analysed, found = _mended(shop, item)
        bench.steps.finish(profile.name, "repair", item.recipe)
        changed[item.recipe] = analysed
        if found is not None:
            found = _finished(shop, found)
            extra.append(found)
            if found.stands and _holds(found):
                changed[item.recipe] = replace(analysed, mended=found.recipe)
    return [*(changed.get(item.recipe, item) for item in tried), *extra]


def may_mend(tried: Sequence[Candidate]) -> bool:
    """Whether one misses the contract that might be mended, and whether that is worth it depends on who holds."""
    standing = [item for item in tried if item.stands]
    return any(map(_holds, standing)) and any(_is_mendable(item) and not _holds(item) for item in standing)


def _mended(shop: _Shop, item: Candidate) -> tuple[Candidate, Candidate | None]:
    """The candidate with its layers' shares, and the mended one that leaves the fewest of them in float.

    Where no try holds, the least bad one is kept: the judged half has the last word.
    """
    widened = _widened(shop, item)
    if widened is not None and _holds(widened):
        return item, widened
    start = widened or item
    found = _analysed(shop, start)
    layers = found.layers
    analysed = replace(item, layers=layers, notes=(*item.notes, *found.notes[len(start.notes) :]))
    if not layers:
        return analysed, widened
    tries: list[Try] = []
    best: Candidate | None = None
    began = time.monotonic()
    while not shop.is_late and (count := float_layers.next_count(tries, len(layers))) is not None:
        made_now = _tried(shop, mixed(start.plan, float_layers.floats(layers, count)))
        if made_now.search is None:
            analysed = replace(
                analysed, notes=(*analysed.notes, f"with {count} layers in float: {made_now.failure}")
            )
        tries.append(Try(count, made_now.search is not None and made_now.search.is_kept))
        shop.bench.steps.count(shop.profile.name, "repair", item.recipe)
        spent = time.monotonic() - began
        left = spent / len(tries) * (float_layers.MAX_TRIES - len(tries))
        shop.bench.tell(
            f"{made_now.recipe} try {len(tries)} of {float_layers.MAX_TRIES}: {_layers_word(count)} float, "
            f"{bought(item.search, made_now.search, shop.bench.metric.name) or made_now.failure}; "
            f"at most {left:.0f} s left"
        )
        best = _better(best, made_now)
    if best is not None and not _helped(start, best):
        told = bought(start.search, best.search, shop.bench.metric.name)
        return replace(
            analysed, notes=(*analysed.notes, f"leaving layers in float did not help: {told}")
        ), widened
    return analysed, best or widened


def _widened(shop: _Shop, item: Candidate) -> Candidate | None:
    """With ranges that hold all values of calibration, where the quantizer cuts some off; None if that did not help."""
    plan = wide(item.plan)
    if plan is None:
        return None
    found = _tried(shop, plan)
    told = bought(item.search, found.search, shop.bench.metric.name) or found.failure
    shop.bench.tell(f"{found.recipe}: ranges that cut nothing off, {told}")
    return found if found.search is not None and _helped(item, found) else None


def _analysed(shop: _Shop, item: Candidate) -> Candidate:
    """The candidate with its layers' shares, worst first, or a note that says why there are none."""
    shop.bench.tell(f"{item.recipe} {_miss(item)}; looking for the layers at fault")
    try:
        layers = _layers(shop, item)
    except Exception as error:  # noqa: BLE001  # a tool's bug costs the repair, not the build; the reason is shown
        interrupt.check()
        return replace(item, notes=(*item.notes, f"its layers could not be told apart: {first_line(error)}"))
    shop.bench.tell(f"{item.recipe}: worst layers {float_layers.named(layers)}")
    return replace(item, layers=layers)


def _holds(item: Candidate) -> bool:
    """Whether the search half has nothing against it, on shifted data neither; nobody searched over float32."""
    return item.search is None or item.search.is_kept


def _miss(item: Candidate) -> str:
    """What there is to mend: nothing that is shown, where the figures on shifted data alone go beyond the limit."""
    is_shown = item.search is None or item.search.is_broken
    return "misses the contract" if is_shown else "may miss the contract on shifted data"


def _is_mendable(item: Candidate) -> bool:
    """Only int8 has layers to put back into float."""
    return item.plan.recipe.precision == "int8"


def _helped(before: Candidate, after: Candidate) -> bool:
    """Whether the search half says so: only then is a repair kept."""
    assert before.search is not None
    assert after.search is not None
    return after.search.badness < before.search.badness


def _layers(shop: _Shop, item: Candidate) -> tuple[LayerError, ...]:
    """Worst first; kept between builds, since nothing but the artifact decides it."""
    assert item.artifact is not None
    threads = shop.host.threads(item.plan)
    limit_s = max(shop.left_s, LEAST_S)
    shop.bench.together([Order(item.plan, threads, is_analysed=True, limit_s=limit_s)])
    return shop.bench.layers(item.plan, item.artifact)


def _tried(shop: _Shop, plan: Plan) -> Candidate:
    """Made, and scored on the search half."""
    limit_s = max(shop.left_s, LEAST_S)
    order = Order(plan, shop.host.threads(plan), is_glimpsed=True, is_searched=True, limit_s=limit_s)
    shop.bench.together([order])
    found = made(shop.bench, plan, shop.host, limit_s=limit_s, is_glimpsed=True)
    return searched(shop.bench, shop.contract, found, shop.host) if found.stands else found


def _finished(shop: _Shop, item: Candidate) -> Candidate:
    """What comes out of the tries, run over the judged half."""
    found = made(shop.bench, item.plan, shop.host)
    return replace(
        item, evaluated=found.evaluated, parity=found.parity, failure=found.failure, is_glimpsed=False
    )


def wide(plan: Plan) -> Plan | None:
    """The plan with ranges that hold all values; None where its engine has no other, or its settings say which."""
    settings = backends.get(plan.recipe.engine).wide(plan)
    if not settings or settings.keys() & plan.tuning.settings.keys():
        return None
    return replace(plan, tuning=_tuned(plan, WIDE, plan.tuning.float_layers, settings))


def mixed(plan: Plan, float_layers: tuple[str, ...]) -> Plan:
    """The plan with some layers in float."""
    return replace(plan, tuning=_tuned(plan, LABEL, float_layers, {}))


def _tuned(plan: Plan, label: str, float_layers: tuple[str, ...], settings: Mapping[str, Option]) -> Tuning:
    whole = f"{plan.tuning.label}+{label}" if plan.tuning.label else label
    return Tuning(whole, float_layers, {**plan.tuning.settings, **settings})


def bought(before: Score | None, after: Score | None, metric: str) -> str:
    """What a step changed: `cer .0180 -> .0139, shifted .272 -> .135`."""
    if before is None or after is None:
        return ""
    told = f"{metric} {before.accuracy.candidate:.4f} → {after.accuracy.candidate:.4f}"
    if before.there is not None and after.there is not None:
        told += f", shifted {before.there.candidate:.4f} → {after.there.candidate:.4f}"
    return f"{told} ({'holds' if after.is_kept else 'not yet'})"


def _better(best: Candidate | None, new: Candidate) -> Candidate | None:
    """What holds with the fewest float layers, or else what loses least."""

    def rank(item: Candidate) -> tuple[bool, float]:
        assert item.search is not None
        if item.search.is_kept:
            return False, len(item.plan.tuning.float_layers)
        return True, item.search.badness

    if new.search is None:
        return best
    return new if best is None or rank(new) < rank(best) else best


def _fastest_first(shop: _Shop, broken: Sequence[Candidate], holding: Sequence[Candidate]) -> list[Candidate]:
    """By a quick measurement where this machine counts for the profile, else in the profile's order of engines. Those that hold
    are in it, so that each need not be raced against them again.
    """
    if len(broken) < 2 or not shop.host.matches(shop.profile):
        return list(broken)
    if not _is_raced(shop, broken):
        shop.times = _raced(shop, [*broken, *holding], budget_s=QUICK_S * len(broken))
    assert shop.times is not None
    times = shop.times.latencies
    return sorted(
        broken, key=lambda item: times[item.recipe].p50_ms if item.recipe in times else float("inf")
    )


def _not_worth(shop: _Shop, item: Candidate, holding: Sequence[Candidate]) -> str:
    """Why a repair cannot win; empty if it may."""
    if shop.is_late:
        return f"the repairs before it took their {BUDGET_S:.0f} s"
    limit = shop.contract.size_mb
    rivals = [
        other
        for other in holding
        if other.artifact is not None and (limit is None or other.artifact.size_bytes <= limit * MEGABYTE)
    ]
    if not rivals:
        return ""
    if not shop.host.matches(shop.profile):
        if shop.profile.gmacs_int8 > shop.profile.gmacs_fp32:
            return _hopeless(shop, item, rivals)
        return f"{shop.profile.name} computes int8 no faster than float"
    both = [item, *rivals]
    timing = shop.times if shop.times is not None and _is_raced(shop, both) else _raced(shop, both)
    times = timing.latencies
    if item.recipe in timing.failures:
        return timing.failures[item.recipe]
    rivals = [other for other in rivals if other.recipe in times]
    if not rivals:
        return ""
    best = min(rivals, key=lambda other: times[other.recipe].p50_ms)
    ratio: Ratio = latency.ratio(times[item.recipe], times[best.recipe])
    if float_layers.is_worth(ratio):
        return ""
    return f"even with every layer in int8 it takes {ratio.median:.2f} x the time of {best.recipe}, which keeps the accuracy"


def _hopeless(shop: _Shop, item: Candidate, rivals: Sequence[Candidate]) -> str:
    """Why a repair cannot win on a CPU that is not here: neither the candidate nor its engine's float models, which it would
    come to lie between, are anywhere near the best that holds. Empty if they are, or for an accelerator.
    """
    own = [other for other in rivals if other.plan.recipe.engine == item.plan.recipe.engine]
    others = [other for other in rivals if other not in own]
    if not own or not others or shop.profile.accelerator is not None:
        return ""
    times = _raced(shop, [item, *rivals]).latencies
    fastest = [
        min(
            (each.recipe for each in some if each.recipe in times),
            default="",
            key=lambda name: times[name].p50_ms,
        )
        for some in ([item, *own], others)
    ]
    if not all(fastest):
        return ""
    found = latency.ratio(times[fastest[0]], times[fastest[1]])
    if found.low < HOPELESS:
        return ""
    return (
        f"the best of {item.plan.recipe.engine}, {fastest[0]}, takes {found.median:.1f} x the time of {fastest[1]} here, and"
        " what is mended is no faster"
    )


def _is_raced(shop: _Shop, items: Sequence[Candidate]) -> bool:
    """Whether a race that was run says of all of these how fast they are, or that they cannot run."""
    return shop.times is not None and all(
        item.recipe in shop.times.latencies or item.recipe in shop.times.failures for item in items
    )


def _raced(shop: _Shop, items: Sequence[Candidate], budget_s: float = QUICK_S) -> Timing:
    shop.bench.tell("measuring latency, of what may be mended and what holds")
    return timed(shop.bench, items, shop.host, {item.recipe for item in items}, budget_s=budget_s)


def _layers_word(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"
