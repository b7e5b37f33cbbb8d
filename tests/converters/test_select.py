"""Selection: what is never picked, what measured ratios decide, and what order decides without them."""

import itertools

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from converters.judge.select import Contender, Ratio, select
from edgekit.manifest import Contract

VERDICTS = ("met", "missed", "undecided")
PRECISIONS = ("int8", "bf16", "fp32")


def contender(recipe="onnxruntime/fp32", **changes):
    known = {
        "recipe": recipe, "engine_rank": 0, "precision": "fp32", "scheme_rank": 0, "size_bytes": 1000,
        "verdict": "met", "verdict_reason": "shown",
    }  # fmt: skip
    return Contender(**{**known, **changes})


def choose(contenders, contract=None, ratios=None, **options):
    known = {"is_int8_faster": True, "accept_uncertain": False}
    return select(contenders, contract or Contract(), ratios or {}, **{**known, **options})


def exact_ratios(contenders):
    """Ratios as a noiseless measurement would give them."""
    return {
        (a.recipe, b.recipe): Ratio(*[a.latency_p50_ms / b.latency_p50_ms] * 3)
        for a, b in itertools.permutations(contenders, 2)
    }


@st.composite
def fields(draw, measured):
    latency = draw(st.floats(0.1, 50)) if measured else None
    return {
        "engine_rank": draw(st.integers(0, 2)),
        "precision": draw(st.sampled_from(PRECISIONS)),
        "scheme_rank": draw(st.integers(0, 3)),
        "size_bytes": draw(st.integers(1, 10_000_000)),
        "verdict": draw(st.sampled_from(VERDICTS)),
        "is_refused_on_shift": draw(st.booleans()),
        "latency_p50_ms": latency,
        "latency_p95_ms": latency and latency * 1.5,
        "memory_mb": draw(st.floats(1, 500)) if measured else None,
    }


@st.composite
def cases(draw):
    measured = draw(st.booleans())
    many = draw(st.lists(fields(measured), min_size=0, max_size=6))
    contenders = [contender(f"e/{index}", **values) for index, values in enumerate(many)]
    contract = Contract(
        latency_p95_ms=draw(st.none() | st.floats(0.1, 60)),
        memory_mb=draw(st.none() | st.floats(1, 500)),
        size_mb=draw(st.none() | st.floats(0.001, 10)),
    )
    ratios = exact_ratios(contenders) if measured else {}
    return contenders, contract, ratios, draw(st.booleans()), draw(st.booleans())


@given(cases())
def test_what_is_picked_or_kept_as_alternate_meets_everything_that_is_known(case):
    contenders, contract, ratios, accept, int8 = case
    by_name = {item.recipe: item for item in contenders}
    chosen = choose(contenders, contract, ratios, accept_uncertain=accept, is_int8_faster=int8)
    for name in filter(None, (chosen.picked, *chosen.alternates)):
        item = by_name[name]
        assert item.verdict != "missed"
        assert accept or item.verdict != "undecided"
        assert not item.is_refused_on_shift
        assert contract.size_mb is None or item.size_bytes / 1e6 <= contract.size_mb
        if item.latency_p95_ms is not None:
            assert contract.latency_p95_ms is None or item.latency_p95_ms <= contract.latency_p95_ms
            assert contract.memory_mb is None or item.memory_mb <= contract.memory_mb


@given(cases())
def test_every_contender_gets_a_decision_and_at_most_one_is_picked(case):
    contenders, contract, ratios, accept, int8 = case
    chosen = choose(contenders, contract, ratios, accept_uncertain=accept, is_int8_faster=int8)
    assert set(chosen.decisions) == {item.recipe for item in contenders}
    picked = [name for name, decision in chosen.decisions.items() if decision.status == "picked"]
    assert picked == ([chosen.picked] if chosen.picked else [])
    assert all(decision.reason for decision in chosen.decisions.values())
    assert len(chosen.alternates) <= 3
    assert (chosen.picked is None) == all(item.status == "refused" for item in chosen.decisions.values())


@given(cases())
def test_the_order_of_contenders_does_not_matter(case):
    contenders, contract, ratios, accept, int8 = case
    options = {"accept_uncertain": accept, "is_int8_faster": int8}
    there = choose(contenders, contract, ratios, **options)
    back = choose(contenders[::-1], contract, ratios, **options)
    assert there.picked == back.picked
    assert there.alternates == back.alternates


@given(cases())
def test_the_measured_pick_is_the_fastest_that_stands(case):
    contenders, contract, ratios, accept, _ = case
    chosen = choose(contenders, contract, ratios, accept_uncertain=accept)
    standing = [item for item in contenders if chosen.decisions[item.recipe].status != "refused"]
    if standing and all(item.latency_p50_ms is not None for item in standing):
        picked = next(item for item in standing if item.recipe == chosen.picked)
        assert picked.latency_p50_ms <= min(item.latency_p50_ms for item in standing) * (1 + 1e-9)


def test_a_difference_inside_the_interval_is_a_tie_and_the_smaller_wins():
    fast = contender("a/fp32", latency_p50_ms=1.0, latency_p95_ms=1.2, size_bytes=900)
    small = contender("b/int8", latency_p50_ms=1.05, latency_p95_ms=1.2, size_bytes=300)
    tie = {("b/int8", "a/fp32"): Ratio(0.95, 1.05, 1.2), ("a/fp32", "b/int8"): Ratio(0.83, 0.95, 1.05)}
    assert choose([fast, small], ratios=tie).picked == "b/int8"
    clear = {("b/int8", "a/fp32"): Ratio(1.02, 1.05, 1.2), ("a/fp32", "b/int8"): Ratio(0.83, 0.95, 0.98)}
    assert choose([fast, small], ratios=clear).picked == "a/fp32"


def test_a_tie_with_an_unsteady_leader_does_not_hide_that_a_float_sibling_is_faster():
    leader, sibling = contender("litert/fp32", size_bytes=44), contender("onnxruntime/fp32", size_bytes=41)
    small = contender("onnxruntime/static-int8", precision="int8", size_bytes=16)
    named = [msgspec.structs.replace(item, latency_p50_ms=0.02) for item in (leader, sibling, small)]
    ratios = {
        ("litert/fp32", "onnxruntime/fp32"): Ratio(0.4, 0.98, 1.3),
        ("litert/fp32", "onnxruntime/static-int8"): Ratio(0.3, 0.6, 1.1),
        ("onnxruntime/fp32", "onnxruntime/static-int8"): Ratio(0.71, 0.75, 0.82),
    }
    ratios |= {(b, a): Ratio(1 / r.high, 1 / r.median, 1 / r.low) for (a, b), r in ratios.items()}
    assert choose(named, ratios=ratios).picked == "onnxruntime/fp32"


def test_what_another_beats_head_to_head_is_not_picked_for_doing_well_against_the_slow_ones():
    ov, ort = contender("openvino/static-int8"), contender("onnxruntime/static-int8")
    slow = contender("litert/fp32")
    named = [msgspec.structs.replace(item, latency_p50_ms=2.0) for item in (ov, ort, slow)]
    # The slow one was dropped after the first rounds, in which the faster of the two had a bad moment.
    ratios = {
        ("onnxruntime/static-int8", "openvino/static-int8"): Ratio(0.82, 0.83, 0.86),
        ("openvino/static-int8", "litert/fp32"): Ratio(0.3, 0.35, 0.5),
        ("onnxruntime/static-int8", "litert/fp32"): Ratio(0.5, 0.8, 0.9),
    }
    ratios |= {(b, a): Ratio(1 / r.high, 1 / r.median, 1 / r.low) for (a, b), r in ratios.items()}
    assert choose(named, ratios=ratios).picked == "onnxruntime/static-int8"


def test_what_took_twice_the_time_is_no_tie_however_wide_the_interval():
    fast = contender("litert/dynamic-int8", latency_p50_ms=2.4, size_bytes=900)
    small = contender("openvino/static-int8", latency_p50_ms=5.0, size_bytes=300)
    ratios = {("openvino/static-int8", "litert/dynamic-int8"): Ratio(0.9, 2.0, 4.0)}
    ratios |= {(b, a): Ratio(1 / r.high, 1 / r.median, 1 / r.low) for (a, b), r in ratios.items()}
    chosen = choose([fast, small], ratios=ratios)
    assert chosen.picked == "litert/dynamic-int8"
    assert chosen.decisions["openvino/static-int8"].reason.startswith("takes 2.00 x the time")


def test_without_measurements_the_profiles_order_decides_then_precision():
    items = [
        contender("openvino/static-int8", engine_rank=1, precision="int8"),
        contender("litert/fp32", engine_rank=0),
        contender("litert/dynamic-int8", engine_rank=0, precision="int8", scheme_rank=3),
        contender("litert/static-int8", engine_rank=0, precision="int8", scheme_rank=1),
    ]
    chosen = choose(items, Contract(latency_p95_ms=1.0))
    assert chosen.picked == "litert/static-int8"
    assert chosen.alternates == ("litert/dynamic-int8", "litert/fp32", "openvino/static-int8")
    assert chosen.budgets["latency_p95_ms"] == "unverified"
    assert choose(items, is_int8_faster=False).picked == "litert/fp32"


def test_an_undecided_candidate_ships_only_when_accepted_and_says_so():
    doubtful = contender(verdict="undecided", verdict_reason="about 300 samples would show it")
    refused = choose([doubtful])
    assert refused.picked is None
    assert refused.closest == doubtful.recipe
    accepted = choose([doubtful], accept_uncertain=True)
    assert accepted.picked == doubtful.recipe
    assert "300 samples" in accepted.decisions[doubtful.recipe].reason
