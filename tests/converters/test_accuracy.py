"""What a drop is worth: bounds, the number of samples needed, shifted inputs, and the metrics themselves."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.data.halves import split
from converters.data.shifted import corrupted, told
from converters.judge import accuracy, metrics, text
from converters.measure import latency
from converters.measure.latency import Latency
from edgekit.errors import DataError, ProjectError
from edgekit.samples import Samples, stacked

TOP1 = metrics.BUILT_IN["top1"]


def outputs(labels, wrong, classes=5):
    """One-hot scores for the labels, with `wrong` samples off by one class."""
    given_ = np.asarray(labels).copy()
    given_[wrong] = (given_[wrong] + 1) % classes
    return {"y": np.eye(classes, dtype=np.float32)[given_]}


def compared(wrong_source, wrong_candidate, count=200, **options):
    labels = np.random.default_rng(1).integers(0, 5, count)
    source, candidate = (TOP1.digest(outputs(labels, wrong)) for wrong in (wrong_source, wrong_candidate))
    return accuracy.compare(TOP1, source, candidate, labels, sequence=None, seed=0, **options)


def test_a_drop_has_a_bound_above_it():
    found = compared(slice(0, 10), slice(0, 30))
    assert found.drop == pytest.approx(0.10)
    assert 0.10 < found.bound < 0.16


def test_no_difference_in_few_samples_is_not_shown_and_says_how_many_would():
    found = compared(slice(0, 0), slice(0, 0), count=50)
    judged = accuracy.judge(found, 0.01, is_bounded=True)
    assert judged.verdict == "undecided"
    assert "about 299" in judged.reason
    assert accuracy.judge(found, 0.1, is_bounded=True).verdict == "met"
    enough = compared(slice(0, 0), slice(0, 0), count=300)
    assert accuracy.judge(enough, 0.01, is_bounded=True).verdict == "met"


def test_one_harmful_flip_of_300_does_not_show_a_hundredth():
    found = compared(slice(0, 0), slice(0, 1), count=300)
    assert accuracy.judge(found, 0.01, is_bounded=True).verdict == "undecided"


def test_what_computes_the_same_function_needs_no_least_number_but_its_drop_is_judged():
    same = compared(slice(0, 0), slice(0, 0), count=10, is_same_function=True)
    assert accuracy.judge(same, 0.01, is_bounded=True, is_same_function=True).verdict == "met"
    other = compared(slice(0, 0), slice(0, 1), count=50, is_same_function=True)
    assert accuracy.judge(other, 0.01, is_bounded=True, is_same_function=True).verdict == "missed"


def test_a_drop_beyond_the_limit_is_missed_and_one_that_might_be_is_undecided():
    bad = compared(slice(0, 10), slice(0, 30))
    assert accuracy.judge(bad, 0.05, is_bounded=True).verdict == "missed"
    near = compared(slice(0, 10), slice(0, 16))
    assert accuracy.judge(near, 0.04, is_bounded=True).verdict == "undecided"
    assert accuracy.judge(near, 0.2, is_bounded=True).verdict == "met"


@given(st.lists(st.integers(1, 9), min_size=2, max_size=20), st.integers(0, 50))
def test_the_split_keeps_sequences_whole_and_loses_nothing(lengths, seed):
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    search, judged = split(len(sequence), sequence, seed)
    assert sorted([*search, *judged]) == list(range(len(sequence)))
    assert not set(sequence[search]) & set(sequence[judged])
    again = split(len(sequence), sequence, seed)
    assert np.array_equal(search, again[0])


def test_a_sequence_is_drawn_whole_so_that_its_frames_do_not_count_as_independent():
    labels = np.zeros(200, np.int64)
    sequence = np.repeat(np.arange(4), 50)
    source, candidate = (TOP1.digest(outputs(labels, slice(0, wrong))) for wrong in (0, 50))
    apart = accuracy.compare(TOP1, source, candidate, labels, sequence=None, seed=0)
    whole = accuracy.compare(TOP1, source, candidate, labels, sequence=sequence, seed=0)
    assert whole.bound > apart.bound


def test_a_shift_is_refused_only_where_the_candidate_breaks_and_the_source_does_not():
    # The recogniser of the design's worked example: accuracy 1 - CER.
    def judge(candidate, spread=0.001):
        drop = 0.8589 - candidate
        there = accuracy.Accuracy(
            0.8589, candidate, drop, drop + spread, 100, drop - spread, 100, "samples", 1
        )
        return accuracy.judge_shift(0.9828, there, TOP1, 0.01)

    assert judge(0.728).verdict == "refused"
    assert judge(0.804).verdict == "red"
    assert judge(0.8584).verdict == "fine"
    # Allowed are 0.03 and half of 0.1239: a point within it that may lie beyond is red, and says between what.
    doubtful = judge(0.8584, spread=0.1)
    assert doubtful.verdict == "red"
    assert "-0.0995 to +0.1005, 100 samples" in doubtful.reason
    assert "not ruled out" in doubtful.reason
    assert judge(0.728, spread=0.2).verdict == "refused"


def test_a_shift_without_a_finite_figure_is_refused():
    there = accuracy.Accuracy(0.9, float("nan"), float("nan"), np.inf, 100, trouble="top1 is nan")
    assert accuracy.judge_shift(0.95, there, TOP1, 0.01).verdict == "refused"


def test_metrics_on_values_known_by_hand():
    scores = {"y": np.array([[0.1, 0.9, 0.0], [0.8, 0.15, 0.05], [0.2, 0.3, 0.5]], np.float32)}
    labels = np.array([1, 1, 0])
    assert metrics.built_in("top1").score(scores, labels) == pytest.approx(1 / 3)
    assert metrics.built_in("top2").score(scores, labels) == pytest.approx(2 / 3)
    pixels = {"y": np.moveaxis(np.eye(3, dtype=np.float32)[[[[0, 1, 1], [2, 2, 2]]]], -1, 1)}
    assert metrics.built_in("top1").score(pixels, np.array([[[0, 1, 1], [2, 2, 0]]])) == pytest.approx(5 / 6)
    binary = {"y": np.array([[0.9], [0.8], [0.1], [0.2]], np.float32)}
    assert metrics.built_in("f1").score(binary, np.array([1, 0, 1, 0])) == pytest.approx(0.5)
    values = {"y": np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)}
    assert metrics.built_in("cosine").score(values, np.array([[2.0, 0.0], [0.0, 1.0]])) == pytest.approx(1.0)
    rmse = metrics.built_in("rmse")
    assert rmse.score(values, np.array([[1.0, 0.0], [0.0, 0.0]])) == pytest.approx(1.0)
    assert rmse.drop(1.0, 1.5) == pytest.approx(0.5)


def test_error_rates_of_text_count_edits_over_what_was_written(tmp_path):
    (tmp_path / "alphabet.txt").write_text("(blank)\na\nb\nc\n \n", encoding="utf-8")
    alphabet = text.read_alphabet(tmp_path / "alphabet.txt")
    # Steps a a blank a b read "aab"; blank c space c c read "c c".
    steps = np.array([[1, 1, 0, 1, 2], [0, 3, 4, 3, 3]])
    scores = {"y": np.eye(5, dtype=np.float32)[steps][:, None]}
    character, word = (metrics.built_in(name, alphabet) for name in ("cer", "wer"))
    assert character.score(scores, np.array(["aab", "c c"])) == 0
    assert character.score(scores, np.array(["ab", "c b"])) == pytest.approx(2 / 5)
    assert word.score(scores, np.array(["aab", "c b"])) == pytest.approx(1 / 3)
    ids = np.array([[1, 1, 2, -1], [3, 4, 2, -1]])
    assert metrics.built_in("cer").score(scores, ids) == pytest.approx(1 / 6)
    assert character.drop(0.1, 0.3) == pytest.approx(0.2)
    with pytest.raises(ProjectError, match="alphabet"):
        metrics.built_in("cer").score(scores, np.array(["aab", "c c"]))
    with pytest.raises(ProjectError, match=r"has 3 lines, and the model wrote class 4"):
        metrics.built_in("cer", text.Alphabet(("", "a", "b"))).score(scores, np.array(["aab", "c c"]))


@given(st.text("abc", max_size=8), st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_edits_are_a_distance(left, middle, right):
    assert text.distance(left, left) == 0
    assert text.distance(left, right) == text.distance(right, left) <= max(len(left), len(right))
    assert text.distance(left, right) <= text.distance(left, middle) + text.distance(middle, right)


def test_mean_average_precision_on_boxes_known_by_hand():
    wanted = np.array(
        [[[0, 0, 10, 10, 1], [20, 20, 30, 30, 1]], [[5, 5, 9, 9, 2], [0, 0, 0, 0, -1]]], np.float64
    )
    right = np.array(
        [
            [[0, 0, 10, 10, 0.9, 1], [20, 20, 30, 30, 0.8, 1]],
            [[5, 5, 9, 9, 0.7, 2], [0, 0, 0, 0, 0, 0]],
        ],
        np.float32,
    )
    score = metrics.built_in("map").score
    assert score({"rows": right}, wanted) == pytest.approx(1)
    parted = {"boxes": right[..., :4], "scores": right[..., 4], "classes": right[..., 5]}
    assert score(parted, wanted) == pytest.approx(1)
    # One of two boxes of class 1 is not found: 51 of 101 points of recall; class 2 is whole.
    missed = right.copy()
    missed[0, 1, 4] = 0
    assert score({"rows": missed}, wanted) == pytest.approx((51 / 101 + 1) / 2)
    # A box of IoU .8 counts up to that threshold: 7 of 10.
    narrow = right.copy()
    narrow[1, 0, 2] = 8.25
    assert score({"rows": narrow}, wanted) == pytest.approx((1 + 0.7) / 2)
    with pytest.raises(DataError, match=r"file\.py:function"):
        score({"scores": np.zeros((2, 10))}, wanted)


def test_resampling_sums_and_resampling_samples_give_the_same_bound():
    labels = np.random.default_rng(1).integers(0, 5, 120)
    source, candidate = (TOP1.digest(outputs(labels, slice(0, wrong))) for wrong in (5, 17))
    sequence = np.repeat(np.arange(30), 4)
    whole = dataclasses.replace(
        TOP1, parts=None, whole=lambda digest, wanted: float((metrics.first(digest) == wanted).mean())
    )
    by_sums, by_samples = (
        accuracy.compare(metric, source, candidate, labels, sequence=sequence, seed=3)
        for metric in (TOP1, whole)
    )
    assert by_sums.bound == pytest.approx(by_samples.bound, rel=0.15)
    assert by_sums.low == pytest.approx(by_samples.low, abs=0.05)
    assert by_sums.drop == pytest.approx(0.1)


def test_an_unknown_metric_and_labels_of_another_shape_are_refused():
    with pytest.raises(ProjectError, match="known are top1"):
        metrics.built_in("accuraccy")
    with pytest.raises(DataError, match="one label for each answer"):
        TOP1.score({"y": np.zeros((4, 3), np.float32)}, np.zeros(3))


def test_corruption_is_repeatable_keeps_types_and_leaves_flags_and_lengths_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8)).astype(np.uint8)
    tokens = np.arange(12).reshape(4, 3)
    first = corrupted(Samples({"x": pixels, "ids": tokens}), seed=1)
    again = corrupted(Samples({"x": pixels, "ids": tokens}), seed=1)
    assert first.inputs["x"].dtype == np.uint8
    assert np.array_equal(first.inputs["x"], again.inputs["x"])
    assert np.array_equal(first.inputs["ids"], again.inputs["ids"])
    assert not np.array_equal(first.inputs["x"], pixels)
    flags = np.array([[0, 1, 1]] * 4)
    assert np.array_equal(corrupted(Samples({"x": pixels, "flags": flags}), seed=1).inputs["flags"], flags)
    assert corrupted(Samples({"flags": flags}), seed=1) is None
    assert "no shift check" in told(Samples({"flags": flags}))
    # A number a sample may be a length; alone, it is what the model looks at.
    lengths = np.arange(1, 5)
    assert np.array_equal(
        corrupted(Samples({"x": pixels, "lengths": lengths}), seed=1).inputs["lengths"], lengths
    )
    assert corrupted(Samples({"user": lengths}), seed=1) is not None


def test_tokens_are_replaced_by_what_other_samples_have_at_the_same_place():
    tokens = np.random.default_rng(0).integers(1, 1000, (200, 20))
    tokens[:, 0] = 101
    data = Samples({"ids": tokens, "mask": np.ones_like(tokens)})
    changed = corrupted(data, seed=1).inputs["ids"]
    assert changed.dtype == tokens.dtype
    assert 0.1 < np.mean(changed != tokens) < 0.2
    assert all(set(changed[:, place]) <= set(tokens[:, place]) for place in range(20))
    assert (changed[:, 0] == 101).all()
    assert np.array_equal(changed, corrupted(data, seed=1).inputs["ids"])
    assert told(data) == "shift check: ids: resample"
    ragged = stacked([row[: 5 + index % 3] for index, row in enumerate(tokens)])
    assert corrupted(Samples({"ids": ragged}), seed=1).inputs["ids"][4].shape == ragged[4].shape


def test_a_ratio_sees_through_noise_that_hits_both():
    random = np.random.default_rng(0)
    machine = random.lognormal(0, 0.5, 40)
    slow = Latency(2.0, 3.0, tuple(2 * machine * random.lognormal(0, 0.02, 40)))
    fast = Latency(1.0, 1.5, tuple(machine * random.lognormal(0, 0.02, 40)))
    found = latency.ratio(slow, fast)
    assert found.low < 2 < found.high
    assert found.high - found.low < 0.1
    assert latency.ratio(fast, fast).is_tie


def test_a_costly_metric_is_drawn_less_often_on_the_search_half_and_its_bound_is_about_the_same():
    calls = 0

    def share(digest, wanted):
        nonlocal calls
        calls += 1
        return float((digest["y"].reshape(len(wanted), -1)[:, 0] == wanted).mean())

    metric = metrics.Metric("share", whole=share)
    labels = np.random.default_rng(1).integers(0, 5, 120).astype(np.float32)
    source = {"y": np.repeat(labels[:, None], 10_000, axis=1)}
    candidate = {"y": source["y"].copy()}
    candidate["y"][:12] += 1
    found = {}
    for is_coarse in (False, True):
        before = calls
        score = accuracy.compare(
            metric, source, candidate, labels, sequence=None, seed=0, is_coarse=is_coarse
        )
        found[is_coarse] = (calls - before, score)
    assert found[True][0] < found[False][0] / 3
    assert found[True][1].drop == found[False][1].drop == pytest.approx(0.1)
    assert found[True][1].bound == pytest.approx(found[False][1].bound, abs=0.03)
