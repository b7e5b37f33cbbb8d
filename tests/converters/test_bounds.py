"""Bounds of a drop on data of known truth: what small numbers of differing groups show, and what they do not."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import beta

from converters.judge import accuracy, fidelity, kinds, metrics, text
from converters.judge.accuracy import Place

TOP1 = metrics.BUILT_IN["top1"]
ALPHA = 0.05


def answers(right):
    return {"value": np.where(right, 1, 0)}


def compared(worse, count, better=0, metric=TOP1, **options):
    """A source that is right but on the last `better` samples, a candidate that is but on the first `worse`."""
    source, candidate = np.ones(count, bool), np.ones(count, bool)
    candidate[:worse] = False
    source[count - better :] = False
    labels = np.ones(count, int)
    options = {"sequence": None, "seed": 0} | options
    return accuracy.compare(metric, answers(source), answers(candidate), labels, **options)


@pytest.mark.parametrize("place", [Place(), Place(0, 4), Place(3, 4), Place(7, 8)])
@pytest.mark.parametrize("worse", [0, 1, 2, 5, 20])
@pytest.mark.parametrize("count", [60, 300, 1000, 3000])
def test_the_bound_of_flips_is_clopper_and_pearsons(count, worse, place):
    exact = beta.ppf(1 - place.alpha, worse + 1, count - worse)
    # One part in ten is the noise of the draws that lie beyond .05 / 14 of them.
    assert compared(worse, count, place=place).bound == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_all_places_of_a_line_share_one_error_and_the_first_gets_most(count):
    shares = [Place(index, count).alpha for index in range(count)]
    assert sum(shares) == pytest.approx(ALPHA)
    assert shares == sorted(shares, reverse=True)


def test_helpful_flips_lower_the_drop_but_widen_its_interval():
    one_way, both_ways = compared(3, 1000), compared(13, 1000, better=10)
    assert both_ways.drop == pytest.approx(one_way.drop)
    assert both_ways.bound > one_way.bound + 0.002
    assert both_ways.low < one_way.low - 0.002


def test_many_candidates_judged_on_one_half_need_more_samples_each():
    one, eight = (compared(0, 400, place=place) for place in (Place(), Place(7, 8)))
    assert accuracy.judge(one, 0.01, is_bounded=True).verdict == "met"
    found = accuracy.judge(eight, 0.01, is_bounded=True)
    assert found.verdict == "undecided"
    assert "for all 8 judged" in found.reason
    assert "about 570" in found.reason
    assert accuracy.judge(compared(0, 580, place=Place(7, 8)), 0.01, is_bounded=True).verdict == "met"
    # The first in the line needs fewer.
    assert accuracy.judge(compared(0, 400, place=Place(0, 8)), 0.01, is_bounded=True).verdict == "met"


def test_a_sequence_counts_as_one_sample():
    sequence = np.repeat(np.arange(40), 25)
    whole = compared(25, 1000, sequence=sequence)
    assert (whole.groups, whole.unit, whole.samples) == (40, "sequences", 1000)
    assert whole.bound == pytest.approx(beta.ppf(0.95, 2, 39), rel=0.06)
    found = accuracy.judge(compared(0, 1000, sequence=sequence), 0.01, is_bounded=True)
    assert found.verdict == "undecided"
    assert "40 judged sequences cannot show it, about 299 would" in found.reason


def test_no_difference_in_texts_read_without_error_is_no_proof_in_few_of_them():
    cer = metrics.built_in("cer")
    ids = np.tile([1, 2, 3, 4, -1], (60, 1))
    found = accuracy.compare(cer, {text.IDS: ids}, {text.IDS: ids}, ids, sequence=None, seed=0)
    assert found.bound == pytest.approx(0.049, abs=0.003)
    assert accuracy.judge(found, 0.01, is_bounded=cer.is_bounded).verdict == "undecided"


def test_errors_as_large_as_the_worst_seen_are_expected_again():
    cer = metrics.built_in("cer")
    right = np.tile([1, 2, 3, 4, -1], (200, 1))
    wrong = right.copy()
    wrong[0, :4] = 9
    found = accuracy.compare(cer, {text.IDS: right}, {text.IDS: wrong}, right, sequence=None, seed=0)
    assert found.bound == pytest.approx(beta.ppf(0.95, 2, 199), rel=0.06)


def test_a_metric_of_whole_outputs_needs_as_many_samples_as_its_spread_says():
    share = dataclasses.replace(
        TOP1,
        parts=None,
        whole=lambda digest, wanted: float((metrics.first(digest) == wanted).mean()),
        is_bounded=False,
    )
    for count in (100, 1000):
        for worse, better in ((0, 0), (0, count // 10), (2, 0), (10, 5)):
            by_parts, by_whole = (
                compared(worse, count, better=better, metric=metric) for metric in (TOP1, share)
            )
            assert by_whole.bound - by_whole.drop > 0.3 * (by_parts.bound - by_parts.drop)
            assert by_whole.bound < by_parts.bound + 0.25 * (by_parts.bound - by_parts.drop)
    assert compared(0, 100, metric=share).bound > 0.02


def test_the_bound_of_an_f1_sees_rare_positives():
    f1 = metrics.BUILT_IN["f1"]
    labels = np.zeros(600, int)
    labels[:40] = 1
    source, candidate = labels.copy(), labels.copy()
    candidate[0] = 0
    found = accuracy.compare(f1, {"value": source}, {"value": candidate}, labels, sequence=None, seed=0)
    # One of 40 positives: as many as 4.7 may be lost of every 40, which costs F1 .063.
    assert found.drop == pytest.approx(1 - 78 / 79, abs=1e-3)
    assert 0.04 < found.bound < 0.08
    same = accuracy.compare(f1, {"value": source}, {"value": source}, labels, sequence=None, seed=0)
    assert same.bound == pytest.approx(3 / 80, rel=0.15)


def test_a_metric_that_gives_no_number_is_a_miss_that_says_so():
    def odd(outputs, wanted):
        return float("nan") if not outputs["value"][0] else 1.0

    users = metrics.users("own.py:odd", odd)
    whole = compared(1, 100, metric=users)
    judged = accuracy.judge(whole, 1.0, is_bounded=False)
    assert judged.verdict == "missed"
    assert "own.py:odd of this candidate is nan" in judged.reason

    def sometimes(outputs, wanted):
        return float("inf") if len(np.unique(outputs["value"])) < 2 else 1.0

    # Whole, it is finite; a draw without the one sample that differs is not.
    drawn = accuracy.judge(
        compared(1, 100, better=1, metric=metrics.users("own.py:sometimes", sometimes)), 1.0, is_bounded=False
    )
    assert drawn.verdict == "missed"
    assert "own.py:sometimes is not a finite number on" in drawn.reason
    assert "resampled sets of samples" in drawn.reason


def test_an_output_that_is_no_number_is_a_miss_with_its_sample():
    rmse = metrics.BUILT_IN["rmse"]
    labels = np.random.default_rng(0).normal(size=(80, 3))
    broken = labels.copy()
    broken[17, 1] = np.nan
    found = accuracy.compare(rmse, {"value": labels}, {"value": broken}, labels, sequence=None, seed=0)
    judged = accuracy.judge(found, 1e9, is_bounded=False)
    assert judged.verdict == "missed"
    assert "rmse of this candidate is nan" in judged.reason
    assert "judged sample 17" in judged.reason
    infinite = accuracy.compare(rmse, {"value": broken}, {"value": labels}, labels, sequence=None, seed=0)
    assert "of the source" in accuracy.judge(infinite, 1e9, is_bounded=False).reason


def test_limits_where_none_is_given():
    assert accuracy.default_drop(TOP1, 0.8) == (
        0.01,
        "no max_accuracy_drop given: 0.01 top1 holds (one point)",
    )
    for name in ("top5", "f1", "cer", "wer", "map", "cosine", "agreement"):
        assert accuracy.default_drop(metrics.built_in(name), 0.5)[0] == 0.01
    own = metrics.users("own.py:f", lambda *_: 0.0)
    assert accuracy.default_drop(own, 0.7)[0] == 0.01
    assert accuracy.default_drop(own, 31.0)[0] == pytest.approx(0.62)
    rmse = metrics.BUILT_IN["rmse"]
    limit, told = accuracy.default_drop(rmse, 2.0, scale=50.0)
    assert limit == pytest.approx(0.5)
    assert "constant guess" in told
    limit, told = accuracy.default_drop(rmse, 2.0, scale=3.0)
    assert limit == pytest.approx(0.04)
    assert "2% of the source" in told
    assert accuracy.default_drop(rmse, 0.0, scale=3.0)[0] == pytest.approx(0.03)
    with_labels = metrics.Metric("sqnr", parts=None, whole=lambda *_: 0.0, is_bounded=False)
    assert accuracy.default_drop(with_labels, 30.0)[0] == pytest.approx(1.5)
    without = dataclasses.replace(with_labels, by_labels=False)
    assert accuracy.default_drop(without, 100.0)[0] == 0.01
    # A hundredth of the signal's power is 20 dB.
    assert without.drop(100.0, 20.0) == pytest.approx(0.01)


def test_the_bound_of_a_figure_in_decibels_is_in_decibels():
    chance = np.random.default_rng(0)
    values = chance.normal(size=(200, 1, 8)).astype(np.float32)
    (judge,) = kinds.infer({"y": values}, {"y": "values"})
    metric = fidelity.as_metric(judge)
    source, noisy = (
        metric.digest({"y": values + size * chance.normal(size=values.shape)}) for size in (0, 0.03)
    )
    wanted = metrics.first(source)
    same = accuracy.compare(metric, source, source, wanted, sequence=None, seed=0)
    assert same.drop == same.bound == 0
    told = accuracy.compare(metric, source, noisy, wanted, sequence=None, seed=0)
    assert 30 < told.candidate < 31
    # The share of noise in the signal's power.
    assert 0.0008 < told.drop < told.bound < 0.0011
