"""What the comparison with control finds and what it leaves alone, on a fleet that is simulated unkindly: devices of
different speeds and traffic, load that wanders, an hour that slows everyone, and looks at every window.
"""

import itertools
import math
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.sketch import _LOG_GAMMA, Sketch, merge
from edgekit.wire.messages import Moments
from fleet.rules import evalues, gates, judge
from fleet.rules.budget import Spent
from fleet.rules.evidence import Arm, DeviceEvidence, StageEvidence, Sums
from fleet.rules.gates import Gate, Outcome, Verdict

LATENCY = gates.parse("latency_p95 <= 1.1 * control")
ERRORS = gates.parse("error_rate <= control + 1%")
PAST_WINDOWS = 60
WINDOWS = 30
RUNS = 12


def sketch_of(values: NDArray[np.float64]) -> Sketch:
    index, counts = np.unique(np.ceil(np.log(values) / _LOG_GAMMA).astype(int), return_counts=True)
    bins = dict(zip(index.tolist(), counts.tolist(), strict=True))
    return Sketch(bins, 0, float(values.sum()), float(values.max()))


@dataclass(frozen=True)
class World:
    """`slower` and `more_errors` are what the release does to a canary."""

    slower: float = 1.0
    more_errors: float = 0.0
    devices: int = 24
    base_errors: float = 0.005


class Simulated:
    """One device over time: its own level, traffic and AR(1) load; windows on the old and on the new release."""

    def __init__(
        self, world: World, chance: np.random.Generator, hour: NDArray[np.float64], is_canary: bool
    ) -> None:
        level = math.log(8) + 0.5 * chance.normal()
        rate = int(np.clip(chance.lognormal(math.log(8), 0.7), 2, 60))
        load = np.zeros(len(hour))
        for at in range(1, len(load)):
            load[at] = 0.9 * load[at - 1] + 0.05 * chance.normal()
        self.windows: list[tuple[int, int, Sketch]] = []
        own_errors = world.base_errors * chance.lognormal(0, 0.5)
        for at in range(len(hour)):
            is_new = is_canary and at >= PAST_WINDOWS
            times = np.exp(level + hour[at] + load[at] + 0.25 * chance.normal(size=rate))
            times *= world.slower if is_new else 1.0
            errors = int(chance.binomial(rate, min(1.0, own_errors + (world.more_errors if is_new else 0.0))))
            self.windows.append((rate, errors, sketch_of(times)))

    def data(self, name: str, arm: Arm, until: int) -> DeviceEvidence:
        before, after = self.windows[:PAST_WINDOWS], self.windows[PAST_WINDOWS : PAST_WINDOWS + until]
        sums = sum(w[0] for w in before), sum(w[1] for w in before)
        past = Sums(len(before), *sums, len(before), merge(w[2] for w in before))
        sums = sum(w[0] for w in after), sum(w[1] for w in after)
        return device(name, arm, len(after), *sums, merge(w[2] for w in after), past)


def device(
    name: str,
    arm: Arm,
    windows: int,
    requests: int,
    errors: int,
    sketch: Sketch,
    past: Sums | None = None,
    **more: object,
) -> DeviceEvidence:
    is_canary = arm is Arm.CANARY
    known = {"last_report_at": 600.0, "notified_at": 0.0 if is_canary else None} | more
    known |= {"installed": True if is_canary else None, "order": 9 if is_canary else None}
    return DeviceEvidence(
        name, "p", arm, at_risk=True, windows=windows, requests=requests, errors=errors, warm_windows=windows,
        sketch=sketch, past=past, **known,
    )  # fmt: skip


def verdict(gate: Gate, devices: list[DeviceEvidence], **more: object) -> Verdict:
    """The gate's verdict, as the first stage of two would have it."""
    data = StageEvidence({d.device: d for d in devices}, now=600.0)
    judged = judge.judge((gate,), data, Spent(), stage=0, stages=2, **more)
    return next(v for v in judged.verdicts if v.gate == gate.text)


def verdicts(world: World, gate: gates.Gate, seed: int) -> list[Outcome]:
    """The gate's verdicts at every window of a stage."""
    chance = np.random.default_rng(seed)
    span = PAST_WINDOWS + WINDOWS
    hour = 0.2 * np.sin(2 * math.pi * (np.arange(span) / 90 + chance.random()))
    canaries = [Simulated(world, chance, hour, is_canary=True) for _ in range(world.devices)]
    controls = [Simulated(world, chance, hour, is_canary=False) for _ in range(world.devices)]
    looks = []
    for until in range(6, WINDOWS + 1, 8):
        devices = [d.data(f"n{i}", Arm.CANARY, until) for i, d in enumerate(canaries)]
        devices += [d.data(f"c{i}", Arm.CONTROL, until) for i, d in enumerate(controls)]
        looks.append(verdict(gate, devices).outcome)
    return looks


def outcomes(world: World, gate: gates.Gate) -> tuple[float, float]:
    """The shares of rollouts that were stopped at some look, and that would pass at the last."""
    seen = [verdicts(world, gate, seed) for seed in range(RUNS)]
    stopped = sum(Outcome.VIOLATED in looks for looks in seen)
    return stopped / RUNS, sum(looks[-1] is Outcome.SATISFIED for looks in seen) / RUNS


def test_a_good_release_is_not_stopped_and_mostly_passes() -> None:
    stopped, passed = outcomes(World(), LATENCY)
    assert stopped == 0
    assert passed >= 0.5


def test_a_good_release_is_not_stopped_by_the_errors_it_always_had() -> None:
    assert outcomes(World(), ERRORS)[0] == 0


def test_a_release_exactly_at_the_limit_seldom_passes() -> None:
    """It is surely worse than control, and not shown to be within what is allowed."""
    _, passed = outcomes(World(slower=1.1), LATENCY)
    assert passed <= 0.17


def test_thirty_percent_more_latency_is_stopped_with_24_devices_a_side_and_never_passes() -> None:
    stopped, passed = outcomes(World(slower=1.3), LATENCY)
    assert stopped >= 0.84
    assert passed == 0


def test_two_points_more_errors_are_stopped_with_24_devices_a_side_and_never_pass() -> None:
    stopped, passed = outcomes(World(more_errors=0.02), ERRORS)
    assert stopped >= 0.84
    assert passed == 0


@pytest.mark.proof
def test_a_release_that_is_surely_worse_and_surely_within_the_limit_is_not_stopped() -> None:
    """An operator who allows a tenth is not stopped by two hundredths, however sure they are."""
    stopped, passed = outcomes(World(slower=1.02, devices=60), gates.parse("latency_p95 <= 1.2 * control"))
    assert stopped == 0
    assert passed >= 0.9


def flat(name: str, arm: Arm, errors: int = 0, requests: int = 1000, **more: object) -> DeviceEvidence:
    past = Sums(60, 10_000, 50, 60, Sketch())
    return device(name, arm, 9, requests, errors, Sketch(), past, **more)


def test_five_devices_a_side_are_needed_and_the_verdict_says_so() -> None:
    said = verdict(LATENCY, [flat(f"n{i}", Arm.CANARY) for i in range(4)])
    assert said.outcome is Outcome.INCONCLUSIVE
    assert "5 of each are needed" in said.words


def test_no_errors_anywhere_pass_only_after_enough_requests() -> None:
    def outcome(requests: int) -> Outcome:
        canary = [flat(f"n{i}", Arm.CANARY, requests=requests) for i in range(6)]
        return verdict(ERRORS, [*canary, *(flat(f"c{i}", Arm.CONTROL) for i in range(6))]).outcome

    assert outcome(10) is Outcome.INCONCLUSIVE
    assert outcome(2000) is Outcome.SATISFIED


ABSOLUTE = gates.parse("error_rate < 1%")


def binomial_fleet(rate: float, requests: int, seed: int, count: int = 24) -> list[DeviceEvidence]:
    chance = np.random.default_rng(seed)
    rates = np.minimum(1.0, rate * chance.lognormal(-0.125, 0.5, size=count))
    return [
        flat(f"n{i}", Arm.CANARY, int(chance.binomial(requests, p)), requests) for i, p in enumerate(rates)
    ]


def test_an_absolute_gate_neither_stops_half_its_limit_nor_passes_twice_its_limit() -> None:
    good = [verdict(ABSOLUTE, binomial_fleet(0.005, 400, seed)).outcome for seed in range(60)]
    bad = [verdict(ABSOLUTE, binomial_fleet(0.02, 400, seed)).outcome for seed in range(60)]
    assert good.count(Outcome.VIOLATED) == 0
    assert good.count(Outcome.SATISFIED) >= 54
    assert bad.count(Outcome.SATISFIED) == 0
    assert bad.count(Outcome.VIOLATED) >= 30


def test_one_error_in_a_hundred_requests_decides_nothing() -> None:
    said = verdict(ABSOLUTE, [flat("n", Arm.CANARY, errors=1, requests=100)])
    assert said.outcome is Outcome.INCONCLUSIVE
    assert verdict(ABSOLUTE, [flat("n", Arm.CANARY, requests=100)]).outcome is Outcome.INCONCLUSIVE
    assert verdict(ABSOLUTE, [flat("n", Arm.CANARY, requests=300)]).outcome is Outcome.SATISFIED
    assert verdict(ABSOLUTE, [flat("n", Arm.CANARY, errors=60, requests=300)]).outcome is Outcome.VIOLATED


def test_a_device_that_claims_ten_million_requests_hides_nobody() -> None:
    liar = flat("liar", Arm.CANARY, requests=10**7)
    honest = [flat(f"n{i}", Arm.CANARY, errors=200) for i in range(23)]
    control = [flat(f"c{i}", Arm.CONTROL, errors=5) for i in range(40)]
    assert verdict(ABSOLUTE, [liar, *honest]).outcome is Outcome.VIOLATED
    assert verdict(ERRORS, [liar, *honest, *control]).outcome is Outcome.VIOLATED


def test_a_device_that_claims_ten_million_errors_accuses_nobody() -> None:
    liar = flat("liar", Arm.CANARY, errors=10**7, requests=10**7)
    honest = [flat(f"n{i}", Arm.CANARY, errors=3 + i % 4) for i in range(23)]
    control = [flat(f"c{i}", Arm.CONTROL, errors=3 + i % 4) for i in range(40)]
    assert verdict(ABSOLUTE, [liar, *honest]).outcome is not Outcome.VIOLATED
    assert verdict(ERRORS, [liar, *honest, *control]).outcome is Outcome.SATISFIED


def test_a_device_that_claims_far_more_traffic_than_it_ever_had_is_compared_with_nobody() -> None:
    past = Sums(60, 600, 3, 60)

    def one(name: str, arm: Arm, errors: int, requests: int) -> DeviceEvidence:
        return device(name, arm, 30, requests, errors, Sketch(), past)

    honest = [one(f"n{i}", Arm.CANARY, 1 + i % 3, 300) for i in range(11)]
    control = [one(f"c{i}", Arm.CONTROL, 1 + i % 3, 300) for i in range(20)]
    busier = verdict(ERRORS, [one("liar", Arm.CANARY, 0, 14_000), *honest, *control])
    incredible = verdict(ERRORS, [one("liar", Arm.CANARY, 0, 16_000), *honest, *control])
    assert "(12 canaries" in busier.words
    assert "(11 canaries" in incredible.words


def test_a_liar_among_control_does_not_blind_the_comparison() -> None:
    liar = flat("liar", Arm.CONTROL, errors=10**7, requests=10**7)
    bad = [flat(f"n{i}", Arm.CANARY, errors=200) for i in range(24)]
    control = [flat(f"c{i}", Arm.CONTROL, errors=3 + i % 4) for i in range(40)]
    assert verdict(ERRORS, [liar, *bad, *control]).outcome is Outcome.VIOLATED


def slowed(name: str, arm: Arm, slower: float) -> DeviceEvidence:
    chance = np.random.default_rng(sum(name.encode()))
    before, after = (sketch_of(np.exp(0.2 * chance.normal(size=400))) for _ in range(2))
    now = Sketch({i + round(math.log(slower) / _LOG_GAMMA): n for i, n in after.bins.items()}, 0, 1.0, 1e9)
    return device(name, arm, 9, 400, 0, now, Sums(60, 400, 0, 60, before))


def test_one_broken_device_of_24_does_not_decide() -> None:
    canary = [*(slowed(f"n{i}", Arm.CANARY, 1.0) for i in range(23)), slowed("broken", Arm.CANARY, 50.0)]
    control = [slowed(f"c{i}", Arm.CONTROL, 1.0) for i in range(24)]
    assert verdict(LATENCY, [*canary, *control]).outcome is not Outcome.VIOLATED


def test_a_fault_of_one_profile_is_seen_though_all_devices_together_look_well() -> None:
    def of_profile(name: str, arm: Arm, errors: int, profile: str) -> DeviceEvidence:
        return msgspec.structs.replace(flat(name, arm, errors), profile=profile)

    devices = [of_profile(f"n{i}", Arm.CANARY, 4, "common") for i in range(190)]
    devices += [of_profile(f"r{i}", Arm.CANARY, 90, "rare") for i in range(10)]
    devices += [of_profile(f"c{i}", Arm.CONTROL, 3 + i % 4, "common") for i in range(190)]
    devices += [of_profile(f"k{i}", Arm.CONTROL, 3 + i % 4, "rare") for i in range(10)]
    said = verdict(ERRORS, devices)
    assert said.outcome is Outcome.VIOLATED
    assert "profile rare" in said.words


def test_the_closing_stage_is_satisfied_without_control_and_pauses_at_a_sure_change() -> None:
    def outcome(slower: float) -> Verdict:
        return verdict(LATENCY, [slowed(f"n{i}", Arm.CANARY, slower) for i in range(10)], is_closing=True)

    assert outcome(1.0).outcome is Outcome.SATISFIED
    assert (outcome(1.5).outcome, outcome(1.5).is_weak) == (Outcome.VIOLATED, True)


def test_before_and_after_may_pause_and_never_turns_back() -> None:
    gate = gates.parse("latency_p95 <= 1.2 * before")
    good = verdict(gate, [slowed(f"n{i}", Arm.CANARY, 1.0) for i in range(10)])
    bad = verdict(gate, [slowed(f"n{i}", Arm.CANARY, 1.5) for i in range(10)])
    assert good.outcome is Outcome.SATISFIED
    assert (bad.outcome, bad.is_weak) == (Outcome.VIOLATED, True)


def metered(
    name: str, arm: Arm, now: float, before: float = 0.5, metric: str = "metric:sold"
) -> DeviceEvidence:
    jitter = (sum(name.encode()) % 7 - 3) * 0.01
    found = {metric: Moments(30, 30 * (now + jitter))}
    past = Sums(60, 600, 0, 60, Sketch(), {metric: Moments(60, 60 * before)})
    return device(name, arm, 30, 300, 0, Sketch(), past, metrics=found)


def test_drift_and_custom_metrics_are_judged_per_device() -> None:
    drift = gates.parse("drift_psi < 0.2")
    sold = gates.parse("metric:sold >= 0.9 * control")

    def drifted(value: float) -> list[DeviceEvidence]:
        return [metered(f"n{i}", Arm.CANARY, value, metric="drift_psi") for i in range(12)]

    def trade(value: float) -> list[DeviceEvidence]:
        control = [metered(f"c{i}", Arm.CONTROL, 0.5) for i in range(30)]
        return [*(metered(f"n{i}", Arm.CANARY, value) for i in range(12)), *control]

    assert verdict(drift, drifted(0.1)).outcome is Outcome.SATISFIED
    assert verdict(drift, drifted(0.4)).outcome is Outcome.VIOLATED
    assert verdict(drift, [flat("n", Arm.CANARY)]).outcome is Outcome.INCONCLUSIVE
    assert verdict(sold, trade(0.5)).outcome is Outcome.SATISFIED
    assert verdict(sold, trade(0.3)).outcome is Outcome.VIOLATED
    assert verdict(gates.parse("metric:sold >= 0.4"), trade(0.2)).outcome is Outcome.VIOLATED


def test_the_permutation_score_holds_its_level_where_scores_are_skewed() -> None:
    """A plain t statistic would be beyond 2.58 twice as often as it may."""
    chance = np.random.default_rng(1)
    beyond = {"plain": 0, "refined": 0}
    for _ in range(1000):
        pool = chance.exponential(size=224) ** 1.5
        canary, control = pool[:24], pool[24:]
        squares = ((canary - canary.mean()) ** 2).sum() + ((control - control.mean()) ** 2).sum()
        t = float((canary.mean() - control.mean()) / math.sqrt(squares / 222 * (1 / 24 + 1 / 200)))
        beyond["plain"] += t > 2.58
        beyond["refined"] += evalues.permutation_score(canary, control, t) > 2.58
    assert beyond["plain"] >= 7
    assert beyond["refined"] <= 9


def test_an_e_value_has_a_mean_of_one_while_nothing_is_wrong() -> None:
    chance = np.random.default_rng(2)
    normal = np.mean([evalues.of_normal(float(z), 0.1, 0.03) for z in chance.normal(size=40_000)])
    share = sum(
        math.comb(40, k) * 0.05**k * 0.95 ** (40 - k) * evalues.of_share(k, 40, 0.05) for k in range(41)
    )
    silence = 0.0
    for arms in itertools.product((0, 1), repeat=5):
        # Of 6 canaries (the last of which comes to be at risk only after the second event) and 9 control devices.
        chance_of, left = 1.0, [9, 5]
        for at, arm in enumerate(arms):
            left[1] += at == 2
            chance_of *= left[arm] / sum(left)
            left[arm] -= 1
        moments = [[float(at) for at, arm in enumerate(arms) if arm == which] for which in (0, 1)]
        entered = np.array([-1.0] * 5 + [1.5])
        silence += chance_of * evalues.of_silence(moments[1], moments[0], (6, 9), entered)
    assert normal <= 1.1
    assert share == pytest.approx(1)
    assert silence == pytest.approx(1)
